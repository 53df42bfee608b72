"""What the merged checkpoint holds, tensor by tensor, and how each one is made.

Touched tensors (those that an adapter changes, and every linear that was 4-bit) are made in
float32; all others are copied byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from edgetune.checkpoint.adapter import base_shape
from edgetune.checkpoint.experts import Place, place_of, stored_names
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder, is_statistic
from edgetune.checkpoint.four_bit import four_bit_weight
from edgetune.checkpoint.header import TensorEntry
from edgetune.checkpoint.tensors import (
    TORCH_DTYPES,
    Output,
    Rows,
    check_finite,
    dtype_name,
    load_blocks,
    load_rows,
    load_tensor,
    row_blocks,
    same_values,
)
from edgetune.errors import InputRefusedError
from edgetune.merge.adapted import Adapted, replaced_alone
from edgetune.merge.changes import Change
from edgetune.merge.layer import merged_bias, merged_weight
from edgetune.merge.ledger import Source, Tokens
from edgetune.merge.unit import Merger, Unit


@dataclass
class Rounding:
    """The largest change of a touched value when it is stored in the base's type."""

    max_abs: float = 0.0


@dataclass(frozen=True)
class Work:
    """All that makes a merged checkpoint."""

    base: CheckpointFolder
    adapted: Adapted
    four_bit: frozenset[str]
    trained_as: Mapping[str, Any] | None
    merge_dtype: str
    rounding: Rounding = field(default_factory=Rounding)
    merger: Merger = field(default_factory=Merger)
    changes: list[Change] = field(default_factory=list)
    # The 4-bit weight that was dequantized last, {module: weight}: it is asked for in blocks.
    held: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def untied(self) -> bool:
        """True when a tied base is stored with two embeddings."""
        return replaced_alone(self.base, self.adapted)


def make_outputs(work: Work) -> tuple[list[Output], int]:
    """(every tensor of the merged checkpoint, how many of them are touched)."""
    names = {n for n in work.base.tensors if not is_statistic(n)}
    if work.untied:
        names |= {EMBEDDING, HEAD}
    _prove_one_embedding(work)
    outputs = [_output(work, name) for name in sorted(names)]
    return [output for output, _ in outputs], sum(touched for _, touched in outputs)


def base_rows(
    base: CheckpointFolder, four_bit: frozenset[str], trained_as: Mapping[str, Any] | None
) -> Callable[[str], torch.Tensor]:
    """Reads whole tensors of the base as the adapter saw them, by name, in float32."""
    work = Work(base, Adapted(), four_bit, trained_as, "float32")

    def load(name: str) -> torch.Tensor:
        whole = _rows(work, name)(0, _shape(work, name)[0])
        work.held.clear()
        return whole

    return load


def _output(work: Work, name: str) -> tuple[Output, bool]:
    module, _, leaf = name.rpartition(".")
    layer = work.adapted.layers.get(module)
    unit = _unit(work, name)
    entry, source = _stored(work, name)
    shape = _shape(work, name)
    blocks: Callable[[], Iterable[torch.Tensor]]
    changed = True
    if unit is not None:
        place = place_of(work.base.model_type, name)
        leaf = place.parameter.rpartition(".")[2]
        shape = shape if place.expert is not None else _unit_shape(unit, leaf)
        blocks = partial(_merged_leaf, work, unit, leaf, place)
    elif layer is not None and leaf == "weight":
        blocks = partial(merged_weight, layer, _rows(work, name), shape)
    elif layer is not None and any(part == "lora_B.bias" for _, part in layer.parts):
        columns = (base_shape(work.base, f"{module}.weight") or (0, 0))[1]
        blocks = partial(_bias, work, name, columns)
    elif source is not None or _tokens(work, name):
        blocks = partial(_whole, _rows(work, name), shape)
    elif module in work.four_bit and leaf == "weight":
        blocks, changed = partial(_whole, _rows(work, name), shape), False
    else:
        copied = partial(load_blocks, work.base.path, entry)
        return Output(name, entry.dtype, entry.shape, copied), False
    dtype = "F32" if work.merge_dtype == "float32" else _base_dtype(work, entry)
    return Output(name, dtype, shape, partial(_cast, work, name, dtype, blocks, changed)), True


def _names(work: Work, name: str) -> tuple[str, ...]:
    """A tensor's name, and of a tied embedding that stays tied also the other one."""
    if not work.base.tied or work.untied or name not in (EMBEDDING, HEAD):
        return (name,)
    return (name, HEAD if name == EMBEDDING else EMBEDDING)


def _unit(work: Work, name: str) -> Unit | None:
    places = (place_of(work.base.model_type, n).parameter for n in _names(work, name))
    modules = (parameter.rpartition(".")[0] for parameter in places)
    return next((work.adapted.units[m] for m in modules if m in work.adapted.units), None)


def _tokens(work: Work, name: str) -> Tokens | None:
    tokens = work.adapted.tokens
    if work.base.tied and name == HEAD and HEAD not in tokens:
        return tokens.get(EMBEDDING)  # PEFT ties trained tokens, whatever else differs
    return next((tokens[n] for n in _names(work, name) if n in tokens), None)


def _unit_shape(unit: Unit, leaf: str) -> tuple[int, ...]:
    """The shape of a merged parameter: the base's, or that of the resized one that is stored."""
    own = unit.stored(leaf)
    return own.entry.shape if own else unit.leaves[leaf]


def _merged_leaf(work: Work, unit: Unit, leaf: str, place: Place) -> Iterator[torch.Tensor]:
    """A merged parameter of a unit, or the part of it that one stored tensor holds."""

    def weights(leaf: str) -> torch.Tensor:
        parameter, shape = f"{unit.module}.{leaf}", unit.leaves[leaf]
        names = stored_names(work.base.model_type, parameter, shape)
        parts = [_rows(work, name)(0, _shape(work, name)[0]) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts).reshape(shape)

    merged = work.merger.leaf(unit, leaf, weights)
    if place.expert is not None:
        merged = merged[place.expert]
        if place.half is not None:
            merged = merged.chunk(2)[place.half]
    yield merged


def _shape(work: Work, name: str) -> tuple[int, ...]:
    """A tensor's shape in the merged model: a resized vocabulary has the adapter's rows."""
    entry, source = _stored(work, name)
    if source is not None:
        return source.entry.shape
    return base_shape(work.base, name) or entry.shape


def _stored(work: Work, name: str) -> tuple[TensorEntry, Source | None]:
    """(the base's entry of a tensor, the adapter's tensor that takes its place if any)."""
    base = work.base
    tied = base.tied and name in (EMBEDDING, HEAD)
    entry = base.tensors.get(name) or base.tensors[base.tied_source]
    source = work.adapted.replaced.get(name)
    if source is None and tied:
        # a tied model has one parameter for both: what replaced it under one name holds for both
        other = HEAD if name == EMBEDDING else EMBEDDING
        if other not in work.adapted.saved_modules:
            source = work.adapted.replaced.get(other)
    return entry, source


def _prove_one_embedding(work: Work) -> None:
    """Two tensors that replace the one parameter of a tied model must be the same."""
    both = [work.adapted.replaced.get(n) for n in (EMBEDDING, HEAD) if n in work.adapted.replaced]
    if work.adapted.saved_modules & {EMBEDDING, HEAD} or not work.base.tied or len(both) < 2:
        return
    one, other = (source for source in both if source)
    read = work.adapted.ledger.load_rows
    if not same_values(one.entry.shape, partial(read, one), partial(read, other)):
        msg = f"{work.base.path}: the adapter stores two different embeddings for its tied one"
        raise InputRefusedError(msg, "name the base that this adapter was trained on")


def _rows(work: Work, name: str) -> Rows:
    """Reads rows of the weight that the adapter saw, in float32; single trained ones in place."""
    rows, tokens = _base_rows(work, name), _tokens(work, name)
    if tokens is None:
        return rows

    def with_tokens(start: int, stop: int) -> torch.Tensor:
        block = rows(start, stop)
        trained = work.adapted.ledger.load(tokens.source)
        for number, index in enumerate(tokens.indices):
            if start <= index < stop:
                block[index - start] = trained[number]
        return block

    return with_tokens


def _base_rows(work: Work, name: str) -> Rows:
    """As `_own_rows`, or rows of the tensor that an adapter brings in its place."""
    _, source = _stored(work, name)
    if source is not None:
        return partial(work.adapted.ledger.load_rows, source)
    return _own_rows(work, name)


def _own_rows(work: Work, name: str) -> Rows:
    """Reads rows of the base's own tensor as the adapter saw it, in float32."""
    entry, _ = _stored(work, name)
    module = name.rpartition(".")[0]
    if module not in work.four_bit:
        return lambda start, stop: load_rows(work.base.path, entry, start, stop).to(torch.float32)

    def unpacked(start: int, stop: int) -> torch.Tensor:
        if module not in work.held:
            work.held.clear()
            work.held[module] = four_bit_weight(work.base, module, work.trained_as)
        return work.held[module][start:stop].clone()

    return unpacked


def _whole(rows: Rows, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    for start, stop in row_blocks(shape):
        yield rows(start, stop)


def _bias(work: Work, name: str, columns: int) -> Iterator[torch.Tensor]:
    entry, source = _stored(work, name)
    if source is None:
        bias = load_tensor(work.base.path, entry, torch.float32)
    else:
        bias = work.adapted.ledger.load(source)
    yield merged_bias(work.adapted.layers[name.rpartition(".")[0]], bias, columns)


def _cast(
    work: Work,
    name: str,
    dtype: str,
    blocks: Callable[[], Iterable[torch.Tensor]],
    changed: bool,
) -> Iterator[torch.Tensor]:
    """Blocks in the type they are stored in; what an adapter changed and the rounding are noted."""
    change, start = Change(name), 0
    own, rows = _own_rows(work, name), (base_shape(work.base, name) or (0,))[0]
    for block in blocks():
        check_finite(block, f"{name} (merged)", work.base.path)
        cast = block.to(TORCH_DTYPES[dtype])
        if dtype != "F32":
            check_finite(cast, f"{name} (merged, as {dtype})", work.base.path)
            change_of_value = (cast.float() - block).abs().max()
            work.rounding.max_abs = max(work.rounding.max_abs, float(change_of_value))
        if changed:
            change.add_block(own, rows, start, block, cast)
            start += block.shape[0]
        yield cast
    work.held.clear()
    if changed:
        work.changes.append(change)


def _base_dtype(work: Work, entry: TensorEntry) -> str:
    """The type of a plain base's tensor; of a packed one, what its config names."""
    if entry.dtype in ("F32", "F16", "BF16"):
        return entry.dtype
    named = work.base.config.get("dtype") or work.base.config.get("torch_dtype") or "bfloat16"
    return dtype_name(getattr(torch, str(named).removeprefix("torch.")))
