"""The recipe: what is to be built, from what, and how much may be lost on the way."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from edgetune.documents import Strict, load_document
from edgetune.errors import UsageError
from edgetune.files import is_file, is_folder, shipped_folder

DEFAULT_SCHEME = "w8a16-rtn"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class TrainedAs(Strict):
    """How the base was quantized while its adapter was trained (bitsandbytes' settings)."""

    type: Literal["nf4", "fp4"]
    double_quant: bool = False
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"


class Base(Strict):
    """A base model: a Hugging Face folder, or a hub id (`owner/name`, `owner/name@revision`), and
    how the adapter saw it in training."""

    path: str
    revision: str | None = None
    trained_as: TrainedAs | None = None
    # The command that makes a folder which is too large to ship; told where the folder is absent.
    made_by: str | None = None


class AdapterRef(Strict):
    """An adapter to merge (a folder or a hub id), with the weight of its delta."""

    path: str
    revision: str | None = None
    weight: float = 1.0


class Combine(Strict):
    """How PEFT's `add_weighted_adapter` makes one LoRA adapter of several; without it their deltas
    add up, each with its weight.

    The `_svd` ways work on the deltas and cut the result to `rank`; `density` is the share of
    values that is kept; the `dare` ways draw them at random, from `seed`.
    """

    how: Literal[
        "cat",
        "svd",
        "ties",
        "ties_svd",
        "dare_linear",
        "dare_linear_svd",
        "dare_ties",
        "dare_ties_svd",
        "magnitude_prune",
        "magnitude_prune_svd",
    ]
    density: float | None = Field(default=None, gt=0, le=1)
    rank: int | None = Field(default=None, gt=0)
    majority_sign_method: Literal["total", "frequency"] = "total"
    seed: int = Field(default=0, ge=0)


class Data(Strict):
    """JSON lines files: what is scored, and what calibrates."""

    evaluation: str | None = None
    calibration: str | None = None


class Tolerances(Strict):
    """What may be lost against the trained model; null switches a check off."""

    retention: float | None = Field(default=0.95, ge=0, le=1)
    kl_mean: float | None = Field(default=0.05, ge=0)
    task_metric_drop: float | None = Field(default=0.02, ge=0, le=1)


class Budgets(Strict):
    """What the package may cost on its device; null means no budget."""

    time_to_answer_ratio: float | None = Field(default=1.0, gt=0)
    ttft_ms: float | None = Field(default=None, gt=0)
    decode_tokens_per_s: float | None = Field(default=None, gt=0)
    peak_rss_mb: float | None = Field(default=None, gt=0)
    package_bytes: int | None = Field(default=None, gt=0)


class Recipe(Strict):
    """One build, for any number of devices."""

    name: str
    description: str = ""
    base: Base
    base_before: str | None = None
    adapters: tuple[AdapterRef, ...] = ()
    combine: Combine | None = None
    task: str = "text-generation"
    data: Data = Data()
    # Which text the package carries to check itself with: the evaluation items, or none of them.
    self_test_data: Literal["evaluation", "builtin"] = "evaluation"
    scheme: str = DEFAULT_SCHEME
    group_size: int | None = None
    # Modules that are stored otherwise: {end of a module's name: w8, w8-g64 or fp32}.
    protect: dict[str, str] = Field(default_factory=dict)
    # How keys and values of the text so far are held.
    kv_cache: Literal["float32", "int8"] = "float32"
    onto: Literal["dequantized", "original", "auto"] = "dequantized"
    merge_dtype: Literal["float32", "base"] = "float32"
    tolerances: Tolerances = Tolerances()
    budgets: Budgets = Budgets()
    require_on_device: bool = False
    devices: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _expand_short_forms(cls, values: Any) -> Any:
        """`base: PATH` and `adapters: [PATH]` are short for the forms with keys."""
        if isinstance(values, dict):
            if isinstance(values.get("base"), str):
                values = {**values, "base": {"path": values["base"]}}
            adapters = values.get("adapters")
            if isinstance(adapters, list | tuple):
                expanded = tuple({"path": a} if isinstance(a, str) else a for a in adapters)
                values = {**values, "adapters": expanded}
        return values

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name) or name == "steps":
            msg = "a name has only a-z, 0-9, '.', '_' and '-', and is not 'steps'"
            raise ValueError(msg)
        return name


def load_recipe(path: Path) -> Recipe:
    """Read `<name>.yaml`. Paths in it are taken from the file's own folder.

    Raises UsageError with file:line:column for each problem.
    """
    recipe = load_document(path, Recipe, {"name": path.stem})
    if recipe.name != path.stem:
        msg = f"{path}: name is {recipe.name!r}, but the file is called {path.name!r}"
        raise UsageError(msg, "leave `name` out, or rename the file")
    folder = path.resolve().parent
    changes: dict[str, Any] = {
        "base": recipe.base.model_copy(update={"path": _from(folder, recipe.base.path)}),
        "adapters": tuple(
            a.model_copy(update={"path": _from(folder, a.path)}) for a in recipe.adapters
        ),
        "data": Data(
            evaluation=_from(folder, recipe.data.evaluation) if recipe.data.evaluation else None,
            calibration=_from(folder, recipe.data.calibration) if recipe.data.calibration else None,
        ),
    }
    if recipe.base_before:
        changes["base_before"] = _from(folder, recipe.base_before)
    return recipe.model_copy(update=changes)


def find_recipe(name_or_path: str) -> Path:
    """The file that a RECIPE argument means: an existing file, else a shipped recipe's name."""
    path = Path(name_or_path)
    if is_file(path):
        return path
    shipped = shipped_folder("recipes")
    if path.suffix not in (".yaml", ".yml") and "/" not in name_or_path:
        found = shipped / f"{name_or_path}.yaml"
        if is_file(found):
            return found
    names = [p.stem for p in shipped.glob("*.yaml")]
    close = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.5)
    meant = f"did you mean {close[0]!r}? " if close else ""
    msg = f"{name_or_path}: no such recipe file or shipped recipe"
    raise UsageError(msg, f"{meant}`edgetune recipes list` shows the shipped ones")


def _from(folder: Path, path: str) -> str:
    """A path as written in a recipe, from the recipe's folder; hub ids stay as they are."""
    here = folder / path
    if Path(path).is_absolute() or is_file(here) or is_folder(here) or path.startswith("."):
        return str(here)
    # `owner/name` may be a hub id (`@revision` may hold more); anything deeper can only be a path.
    return path if path.partition("@")[0].count("/") == 1 else str(here)


def parse_trained_as(text: str) -> TrainedAs:
    """`nf4|fp4[+double][:float32|bfloat16|float16]` as on the command line.

    Raises UsageError for anything else.
    """
    match = re.fullmatch(r"(nf4|fp4)(\+double)?(?::(float32|bfloat16|float16))?", text)
    if match is None:
        msg = f"--trained-as {text}: not of the form nf4|fp4[+double][:bfloat16]"
        raise UsageError(msg, "for example --trained-as nf4+double:bfloat16")
    return TrainedAs.model_validate(
        {
            "type": match[1],
            "double_quant": bool(match[2]),
            "compute_dtype": match[3] or "bfloat16",
        }
    )


# What `edgetune recipes init` writes; a test reads it back and checks that it names every key.
TEMPLATE = """\
# A recipe: what to build, from what, and how much may be lost on the way.
# Paths are taken from this file's folder. Delete what you do not need: only `base` is required.

description: A support assistant fine-tuned with LoRA

base:
  path: ../models/my-base        # a Hugging Face folder, or a hub id like owner/name
  # revision: main               # for a hub id: branch, tag or commit
  # trained_as:                  # QLoRA: the 4-bit weights the adapter saw in training
  #   type: nf4                  # or fp4
  #   double_quant: true
  #   compute_dtype: bfloat16
  # made_by: make my-base        # told to whoever builds without having the folder

adapters:                        # none for a full fine-tune
  - path: ../adapters/my-lora    # a folder, or a hub id
    # revision: main
    # weight: 1.0                # several LoRA adapters: a true weighted sum of their deltas

# combine:                       # or as PEFT's add_weighted_adapter does it
#   how: ties                    # cat, svd, ties, dare_linear, dare_ties, magnitude_prune; …_svd
#   density: 0.5                 # the share of values that is kept
#   rank: 16                     # of the …_svd ways
#   majority_sign_method: total  # of ties and dare_ties; or frequency
#   seed: 0                      # what dare draws from

# base_before: ../models/base    # full fine-tune: the model it started from, for retention

task: text-generation
data:                            # JSON lines: text, prompt + completion, or messages
  evaluation: my-evaluation.jsonl
  # calibration: my-calibration.jsonl
# self_test_data: evaluation       # or `builtin`: the package carries none of the evaluation text

scheme: w8a16-rtn                # w4a16-kquant-mixed, …: docs/schemes.md; auto: by measurement
# group_size: 128                # 16, 32, 64, 128 or 256; larger is faster and coarser
# protect: {v_proj: w8}          # modules by the end of their name: w8, w8-g64, or fp32
# kv_cache: float32              # int8: half the memory of a long context; docs/kv-cache.md
# onto: dequantized              # QLoRA: merge onto the weights the adapter saw, or `original`;
                                 # auto: both, and the one nearer to the trained model is taken
# merge_dtype: float32           # or `base`: the base's own type, rounding reported

tolerances:                      # against the trained model; null switches a check off
  retention: 0.95                # of what the fine-tune changed, this share must survive
  kl_mean: 0.05                  # nats a token
  task_metric_drop: 0.02

budgets:                         # on the device; null: none
  time_to_answer_ratio: 1.0      # 128 prompt + 64 new tokens, package / unconverted model
  # ttft_ms: 500
  # decode_tokens_per_s: 10
  # peak_rss_mb: 2000
  # package_bytes: 500000000

# require_on_device: false       # true: a budget that was not measured makes it inconclusive
# devices: [generic-x86-64]      # default: this machine
"""
