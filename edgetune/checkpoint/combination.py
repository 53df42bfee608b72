"""Whether adapters can be merged onto a base together, with these weights. Standard library only.

`merge_problems` is all that can be known from configs and headers; the merge itself proves the
rest (each tensor used exactly once, every number finite).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.checkpoint import adapter_fields
from edgetune.checkpoint.adapter import TRAINED_TOKENS, Adapter, split_name
from edgetune.checkpoint.combine import combine_problems
from edgetune.checkpoint.experts import EXPERTS, merge_reason
from edgetune.checkpoint.families import is_four_bit
from edgetune.checkpoint.fit import fit_problems
from edgetune.checkpoint.folder import CheckpointFolder
from edgetune.checkpoint.peft_types import label_of
from edgetune.checkpoint.reshaped import vocabulary_rows
from edgetune.errors import INPUT_REFUSED, InputRefusedError, Problem, UsageError
from edgetune.files import is_folder

Weighted = Sequence[tuple[Adapter, float]]
# What a quantized copy of a base is called after it: QLoRA adapters are trained over such copies.
_QUANTIZED = re.compile(r"[-_.](bnb[-_])?(nf4|fp4|4bit)$", re.IGNORECASE)
_OTHER_BASE = "name the original model, of a supported family, plain or in bitsandbytes 4-bit"
_ONE_BY_ONE = "build each of them on its own, or merge the LoRA adapters only"


def merge_problems(
    base: CheckpointFolder,
    adapters: Weighted,
    trained_as: Mapping[str, Any] | None,
    onto: str,
    combine: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """Every reason why these adapters cannot be merged onto this base."""
    if reason := merge_reason(base.config):
        return [Problem(f"{base.path}: {reason}", _OTHER_BASE, INPUT_REFUSED)]
    found = list(_quantization_problems(base, adapters, trained_as, onto))
    for adapter, _ in adapters:
        found.extend(fit_problems(adapter, base))
    if combine:
        found.extend(combine_problems([adapter for adapter, _ in adapters], combine))
    found.extend(_weight_problems(adapters, combined=combine is not None))
    found.extend(_base_problems([adapter for adapter, _ in adapters]))
    return found


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise the first problem as an error of its exit code; nothing when there is none."""
    for problem in problems:
        kind = InputRefusedError if problem.exit_code == INPUT_REFUSED else UsageError
        raise kind(problem.message, problem.hint)


def merge_warnings(base: CheckpointFolder, adapters: Sequence[Adapter]) -> list[str]:
    """What is odd about the inputs but does not stop a merge."""
    known = _names_of(base)
    found = []
    for adapter in adapters:
        name = adapter.base_name or ""
        bare = _QUANTIZED.sub("", name)
        if name and not {name, _last(name), bare, _last(bare)} & known:
            found.append(
                f"{adapter.path.name}: trained over {name!r}, merged onto {base.path.name!r}; "
                "names and shapes fit, the weights are taken to be the same"
            )
        if unknown := adapter_fields.unknown_fields(adapter.config):
            found.append(
                f"{adapter.path.name}: adapter_config.json has fields that "
                f"PEFT 0.21 does not know, ignored: {', '.join(unknown)}"
            )
        rows = vocabulary_rows(adapter, base)
        if rows is not None and not adapter.tokenizer_files:
            found.append(
                f"{adapter.path.name}: changes the vocabulary to {rows} and brings no tokenizer; "
                "the base's is used"
            )
        if rows is None or not adapter.tokenizer_files:
            found.extend(_side_file_warnings(base, adapter))
    return found


def _quantization_problems(
    base: CheckpointFolder, adapters: Weighted, trained_as: Mapping[str, Any] | None, onto: str
) -> Iterator[Problem]:
    stored = base.quantization if is_four_bit(base.quantization) else None
    if (stored is not None) != bool(base.packed):
        kinds = ("4-bit", "none are") if stored else ("plain", "4-bit ones are")
        message = f"{base.path}: config.json says {kinds[0]} weights, and {kinds[1]} stored"
        yield Problem(message, "take the config.json that belongs to them", INPUT_REFUSED)
    if base.model_type in EXPERTS and (stored or trained_as):
        message = f"{base.path}: 4-bit weights of a mixture of experts are not supported"
        yield Problem(message, "train over the plain weights", INPUT_REFUSED)
    if trained_as and not adapters:
        message = "trained_as says how the base was quantized under an adapter; there is none"
        yield Problem(message, "leave trained_as out for a full fine-tune")
    if stored and onto == "original":
        message = (
            f"{base.path}: its weights are stored in 4 bits: there is no original to merge onto"
        )
        yield Problem(message, "leave --onto out, or name the unquantized base")
    if stored and trained_as:
        has = {
            "type": str(stored.get("bnb_4bit_quant_type", "fp4")),
            "double_quant": bool(stored.get("bnb_4bit_use_double_quant", False)),
        }
        if differing := [k for k, v in has.items() if trained_as[k] != v]:
            key = differing[0]
            message = (
                f"{base.path}: stored in 4 bits with {key} {has[key]}, but trained_as says "
                f"{trained_as[key]}"
            )
            yield Problem(message, "leave trained_as out: the base carries it", INPUT_REFUSED)


def _weight_problems(adapters: Weighted, *, combined: bool) -> Iterator[Problem]:
    """`combined`: the types of the adapters are judged by `combine_problems`."""
    for adapter, weight in adapters:
        if not math.isfinite(weight):
            yield Problem(f"{adapter.path}: its weight is {weight}", "give a finite number")
    if len(adapters) == 1 and adapters[0][1] == 1:
        return
    for adapter, _ in adapters:
        plain = adapter_fields.is_plain_lora(adapter.config)
        if not combined and (not plain or adapter.config.get("layer_replication")):
            message = (
                f"{adapter.path}: only plain LoRA adapters add up; {label_of(adapter.peft_type)} "
                "with these options is merged alone, with weight 1"
            )
            yield Problem(message, _ONE_BY_ONE, INPUT_REFUSED)
            continue
        if adapter.use_dora and not combined:
            message = (
                f"{adapter.path}: the magnitude of DoRA makes a weighted sum undefined: it is "
                "merged alone, with weight 1"
            )
            yield Problem(message, _ONE_BY_ONE, INPUT_REFUSED)
        # the stored weight under a LoRA embedding is read and compared by the merge itself
        whole = [n for n in adapter.tensors if not n.endswith(".base_layer.weight")]
        whole = sorted(n for n in whole if split_name(n)[1] in ("", TRAINED_TOKENS))
        if whole:
            message = (
                f"{adapter.path}: {whole[0]} takes the base's place (modules_to_save, bias, "
                "trained tokens or a stored embedding), which makes a weighted sum undefined"
            )
            yield Problem(message, _ONE_BY_ONE, INPUT_REFUSED)


def _base_problems(adapters: Sequence[Adapter]) -> Iterator[Problem]:
    bases = {_resolved(a.base_name, a.path): a for a in adapters if a.base_name}
    if len(bases) > 1:
        told = "; ".join(f"{a.path.name} over {a.base_name!r}" for a in bases.values())
        message = f"the adapters were trained over different bases: {told}"
        yield Problem(message, "merge adapters of one base only", INPUT_REFUSED)


def _resolved(name: str, adapter: Path) -> str:
    """One spelling for one base: an existing folder resolved, a hub id as it is."""
    for folder in (Path(name), adapter / name):
        if is_folder(folder):
            return str(folder.resolve())
    return name.rstrip("/")


def _names_of(base: CheckpointFolder) -> set[str]:
    """What an adapter may call this base: its path, its last part, its hub name, its own word."""
    names = {str(base.path), str(base.path.resolve()), base.path.name, base.path.resolve().name}
    own = base.config.get("_name_or_path")
    names |= {str(own), _last(str(own))} if own else set()
    for part in base.path.absolute().parts:
        if part.startswith("models--"):  # the hub cache: models--owner--name/snapshots/revision
            names |= {part.removeprefix("models--").replace("--", "/"), part.split("--")[-1]}
    return names


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _side_file_warnings(base: CheckpointFolder, adapter: Adapter) -> Iterator[str]:
    """A chat template beside the adapter that is not the base's: the base's is what ships."""
    name = "chat_template.jinja"
    own, shipped = adapter.path / name, base.path / name
    if own.is_file() and not (shipped.is_file() and own.read_bytes() == shipped.read_bytes()):
        yield (
            f"{adapter.path.name}: brings a {name} that differs from the base's; the base's is "
            "used: copy it into the base's folder if the adapter was trained with it"
        )
