"""How a plan stores each module: from a recipe's scheme to widths, and what speaks against them.

Standard library only, as `plan` is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from edgetune.checkpoint.adapter import PREFIX, Adapter, base_shape
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder
from edgetune.errors import Problem
from edgetune.optimize.schemes import Scheme, make_widths
from edgetune.optimize.widths import NF4, Widths, unused_rules
from edgetune.recipe import Recipe

_EMBEDDING = EMBEDDING.removesuffix(".weight")
_NF4_STATE = ".quant_state.bitsandbytes__nf4"


def plan_widths(
    recipe: Recipe,
    scheme: Scheme,
    group_size: int | None,
    base: CheckpointFolder,
    adapters: Iterable[Adapter],
) -> Widths:
    """The width of every module of a base. Raises UsageError as `make_widths` does."""
    never_packed = _linears(base) - base.packed if base.packed else frozenset()
    return make_widths(
        scheme,
        group_size,
        recipe.protect,
        layers=int(base.config.get("num_hidden_layers") or 0),
        changed=changed_modules(base, adapters) | never_packed,
    )


def changed_modules(base: CheckpointFolder, adapters: Iterable[Adapter]) -> frozenset[str]:
    """Modules of the base with a tensor of an adapter: its name begins with the module's."""
    modules = {name.removesuffix(".weight") for name in base.tensors}
    found = set()
    for name in (name for adapter in adapters for name in adapter.tensors):
        parts = name.removeprefix(PREFIX).split(".")
        found |= {".".join(parts[:count]) for count in range(1, len(parts))} & modules
    return frozenset(found)


def storage_problems(
    recipe: Recipe, scheme: Scheme, widths: Widths, base: CheckpointFolder, onto: Sequence[str]
) -> Iterator[Problem]:
    """Every reason why a base cannot be stored so; `onto`: what it may be merged onto."""
    yield from _protect_problems(recipe, scheme, widths, base)
    if scheme.algorithm == NF4:
        yield from _nf4_problems(recipe, scheme, widths, base, onto)


def _protect_problems(
    recipe: Recipe, scheme: Scheme, widths: Widths, base: CheckpointFolder
) -> Iterator[Problem]:
    """Protecting where nothing is at risk, or what the model does not have."""
    if recipe.protect and scheme.algorithm is None:
        yield Problem(
            f"the scheme {scheme.name} quantizes nothing, so it has nothing to protect",
            "leave `protect` out, or choose another scheme",
        )
    if base.tied and (tied := [w for w in recipe.protect if f".{_EMBEDDING}".endswith(f".{w}")]):
        yield Problem(
            f"protect: {tied[0]} is tied to the head, and stored as the head is",
            "name lm_head instead: the two are one matrix",
        )
    modules = [name.removesuffix(".weight") for name in base.tensors if name.endswith(".weight")]
    for words in unused_rules(widths, [*modules, "lm_head"]):
        if words in recipe.protect:
            yield Problem(
                f"protect: no module of {base.path} is called {words!r}",
                "name modules as config files of adapters do: v_proj, mlp.down_proj, lm_head",
            )


def _nf4_problems(
    recipe: Recipe, scheme: Scheme, widths: Widths, base: CheckpointFolder, onto: Sequence[str]
) -> Iterator[Problem]:
    """Keeping NF4 where the merged checkpoint would hold none, or rows that are no whole blocks."""
    seen, stored = recipe.base.trained_as, any(name.endswith(_NF4_STATE) for name in base.tensors)
    if not stored and (base.packed or seen is None or seen.type != NF4):
        yield Problem(
            f"the scheme {scheme.name} keeps a base's NF4 weights, and {base.path} has none",
            "choose another scheme; or, if its adapter was trained over NF4, say so: "
            "base.trained_as: {type: nf4}",
        )
        return
    if recipe.merge_dtype != "float32" or tuple(onto) != ("dequantized",):
        yield Problem(
            f"the scheme {scheme.name} keeps NF4 weights, which only a merge onto the dequantized "
            "base, stored in float32, still holds",
            "leave onto and merge_dtype out of the recipe, or choose another scheme",
        )
    kept = sorted(module for module in _linears(base) if widths.of(module).algorithm == NF4)
    if not kept:
        yield Problem(
            f"the scheme {scheme.name} would keep nothing: the adapters changed every NF4 weight, "
            "and what they changed has 8 bits",
            "choose w8a16-rtn, or a 4-bit scheme",
        )
    for module in kept:
        shape = base_shape(base, f"{module}.weight")
        if shape and shape[1] % (scheme.group_size or 1):
            yield Problem(
                f"{module} has rows of {shape[1]} values, which are no whole blocks of NF4",
                f"protect: {{{module}: w8}}, or choose another scheme",
            )


def _linears(base: CheckpointFolder) -> frozenset[str]:
    """Modules with a matrix, but for embedding and head."""
    shapes = {name: base_shape(base, name) for name in base.tensors if name.endswith(".weight")}
    others = (EMBEDDING, HEAD)
    found = (n for n, shape in shapes.items() if shape and len(shape) == 2 and n not in others)
    return frozenset(name.removesuffix(".weight") for name in found)
