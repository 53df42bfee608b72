"""Why a recipe cannot be built, as far as it is known before any work. Writes and loads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgetune.checkpoint.adapter import PICKLE_FILE, WEIGHTS_FILE
from edgetune.checkpoint.combination import merge_problems
from edgetune.checkpoint.experts import experts_problems
from edgetune.checkpoint.families import unsupported_reason
from edgetune.checkpoint.reshaped import vocabulary_rows
from edgetune.errors import ENVIRONMENT, INPUT_REFUSED, Problem
from edgetune.estimates import weight_shapes
from edgetune.files import read_json
from edgetune.inputs import AdapterInput, Inputs
from edgetune.optimize.allocation_widths import (
    module_shapes,
    offered,
    own_widths,
    smallest_graph_bytes,
)
from edgetune.optimize.forms.decoder import export_problem
from edgetune.optimize.schemes import Scheme
from edgetune.optimize.widths import Widths
from edgetune.recipe import Recipe

_FEWEST_CALIBRATION_ITEMS = 8
_TOKENIZERS = {
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json",
    "sentencepiece.bpe.model",
}  # fmt: skip
BUILD_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "olive-ai",
    "onnx",
)


def problems(
    recipe: Recipe, inputs: Inputs, installed: Mapping[str, str | None]
) -> Iterator[Problem]:
    """Every reason why this recipe cannot be built, whatever the device."""
    missing = [name for name in BUILD_LIBRARIES if installed.get(name) is None]
    if missing:
        yield Problem(
            f"a build needs {', '.join(missing)}, not installed here",
            "install the build tools: python -m pip install 'edgetune[build]'",
            ENVIRONMENT,
        )
    base = inputs.base
    if inputs.before is not None and inputs.adapters:
        yield Problem(
            "base_before is for a full fine-tune, and this recipe has adapters",
            "leave base_before out: the base alone is the base without its adapters",
        )
    if (recipe.base.trained_as or base.quantization) and installed.get("bitsandbytes") is None:
        yield Problem(
            "a base trained on as 4-bit weights needs bitsandbytes, not installed here",
            "python -m pip install bitsandbytes",
            ENVIRONMENT,
        )
    yield from _input_problems(inputs)
    yield from experts_problems(base.config, str(base.path))
    # An unsupported base is told below, with every other reason why it cannot be merged onto.
    if not unsupported_reason(base.config) and (reason := export_problem(base.config)):
        hint = "this base cannot be exported rightly yet: choose another one"
        yield Problem(f"{base.path}: {reason}", hint, INPUT_REFUSED)
    trained_as = recipe.base.trained_as.model_dump() if recipe.base.trained_as else None
    weighted = [(entry.adapter, entry.weight) for entry in inputs.adapters]
    combine = recipe.combine.model_dump() if recipe.combine else None
    yield from merge_problems(base, weighted, trained_as, recipe.onto, combine)


def _input_problems(inputs: Inputs) -> Iterator[Problem]:
    """What the line would stumble over after the merge, or do without being meant to."""
    place, files = _tokenizer_of(inputs)
    if not {Path(name).name for name in files} & _TOKENIZERS:
        yield Problem(
            f"{place}: no tokenizer (tokenizer.json)",
            "copy the tokenizer's files of the model into the folder",
            INPUT_REFUSED,
        )
    elif inputs.evaluation and inputs.evaluation.chats and not _has_template(place, files):
        yield Problem(
            f"{inputs.evaluation.path}: holds chats, and {place} has no chat template",
            "give `prompt` and `completion` as text, or put chat_template.jinja beside the weights",
        )
    seen: dict[str, AdapterInput] = {}
    for entry in inputs.adapters:
        if entry.weight == 0:
            yield Problem(
                f"{entry.adapter.path}: its weight is 0, so it would change nothing",
                "leave the adapter out, or give it a weight",
            )
        weights = (WEIGHTS_FILE, PICKLE_FILE)
        digest = next(entry.digests[name] for name in weights if name in entry.digests)
        if digest in seen:
            yield Problem(
                f"{entry.adapter.path}: the same weights as {seen[digest].adapter.path}",
                "name it once, with a weight in a recipe",
            )
        seen[digest] = entry


def choice_problems(
    recipe: Recipe, scheme: Scheme, protected: Widths, inputs: Inputs
) -> Iterator[Problem]:
    """Limits that no choice of widths can meet, and what a choice cannot be made by."""
    base, calibration, tolerances = inputs.base, inputs.calibration, recipe.tolerances
    if calibration is not None and calibration.items < _FEWEST_CALIBRATION_ITEMS:
        yield Problem(
            f"{calibration.path}: calibration data too short: {calibration.items} items, "
            f"{scheme.name} needs at least {_FEWEST_CALIBRATION_ITEMS}",
            "give more items, or leave data.calibration out: text is sampled from the model then",
        )
    compared = bool(inputs.adapters) or inputs.before is not None
    by_retention = tolerances.retention is not None and compared
    if scheme.most_bits is None and tolerances.kl_mean is None and not by_retention:
        yield Problem(
            f"{scheme.name} chooses by tolerances, and neither kl_mean nor retention can be asked",
            "give tolerances.kl_mean, or a number of bits a weight, such as auto-5.5",
        )
    shapes = weight_shapes(base)
    refused: dict[str, list[str]] = {}
    for module, words in own_widths(protected, module_shapes(shapes, base.tied)).items():
        if words not in offered(module):
            refused.setdefault(words, []).append(module)
    for words, modules in refused.items():
        yield Problem(
            f"protect: {words} is no width that {scheme.name} chooses from "
            f"({modules[0]}{f' and {len(modules) - 1} more' if modules[1:] else ''})",
            f"choose one of {', '.join(offered(modules[0]))}",
        )
    smallest = smallest_graph_bytes(base.config, shapes, base.tied, protected)
    package = smallest + sum((base.path / name).stat().st_size for name in base.side_files)
    budget = recipe.budgets.package_bytes
    if budget is not None and budget < package:
        yield Problem(
            f"budgets.package_bytes is {budget}, and the smallest possible package of this model "
            f"takes about {package} bytes (predicted)",
            "raise the budget, protect less, or choose a smaller base",
        )
    weights = sum(math.prod(shape) for shape in shapes.values())
    if scheme.most_bits is not None and scheme.most_bits * weights / 8 < smallest:
        yield Problem(
            f"{scheme.name}: the smallest possible graph of this model takes "
            f"{math.ceil(800 * smallest / weights) / 100:g} bits a weight (predicted)",
            "ask for more bits",
        )


def _tokenizer_of(inputs: Inputs) -> tuple[Path, tuple[str, ...]]:
    """(folder, files) of the tokenizer that will ship: an adapter's that changed the vocabulary."""
    for adapter in (entry.adapter for entry in inputs.adapters):
        if adapter.tokenizer_files and vocabulary_rows(adapter, inputs.base) is not None:
            return adapter.path, adapter.tokenizer_files
    return inputs.base.path, inputs.base.side_files


def _has_template(folder: Path, files: Sequence[str]) -> bool:
    if any("chat_template" in name for name in files):
        return True
    settings = folder / "tokenizer_config.json"
    config = read_json(settings) if settings.is_file() else None
    return isinstance(config, dict) and bool(config.get("chat_template"))
