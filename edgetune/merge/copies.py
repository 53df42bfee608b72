"""What an adapter's file holds twice: the same values both times, or the file is refused."""

from __future__ import annotations

from collections.abc import Mapping

from edgetune.checkpoint.adapter import PREFIX, TRAINED_TOKENS, is_beside, twin_of
from edgetune.checkpoint.folder import EMBEDDING, HEAD
from edgetune.errors import InputRefusedError
from edgetune.merge.ledger import Layer, Ledger, Source

_EMBEDDINGS = (EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight"))


def is_copy(
    source: Source, module: str, part: str, rows: Mapping[str, tuple[int, ...]], ledger: Ledger
) -> bool:
    """True for a tensor that the file holds twice, or that another one displaces: proved, noted.

    `rows`: of the modules that train single tokens of their own.
    """
    twin = twin_of(source.entry.name)
    if twin is None or (part == TRAINED_TOKENS and module in rows):
        if is_beside(part):
            ledger.note(source)
        return is_beside(part)
    entry = source.adapter.tensors.get(twin)
    other = Source(source.name, source.adapter, entry) if entry else None
    if other is None or not ledger.load(source).equal(ledger.load(other, note=False)):
        msg = f"{source.adapter.path}: {source.entry.name} is not the same as {twin}"
        raise InputRefusedError(msg, "save the adapter again with PEFT's save_pretrained")
    return True


def prove_tied_tokens(
    units: Mapping[str, Mapping[str, Source]], whole: Mapping[str, Source], ledger: Ledger
) -> list[str]:
    """Where PEFT stored a tied embedding's trained tokens again for the head: proved the same."""
    names = [f"{PREFIX}{module}.trainable_tokens_delta" for module in _EMBEDDINGS]
    one = units.get(_EMBEDDINGS[0], {}).get(names[0])
    other = whole.get(names[1])
    if one is None or other is None:
        return []
    if not ledger.load(one).equal(ledger.load(other)):
        msg = f"{one.adapter.path}: it stores two different tensors for its tied tokens"
        raise InputRefusedError(msg, "name the base that this adapter was trained on")
    return [names[1]]


def one_of_the_tied(layers: dict[str, Layer]) -> dict[str, Layer]:
    """With ensure_weight_tying the head's LoRA is the embedding's transposed: proved, left out."""
    embedding, head = (layers.get(module) for module in _EMBEDDINGS)
    if embedding is None or head is None:
        return layers
    ledger = head.ledger
    mirror = {"lora_A.weight": "lora_embedding_B", "lora_B.weight": "lora_embedding_A"}
    for (name, part), source in head.parts.items():
        twin = embedding.parts.get((name, mirror.get(part, "")))
        if twin is None or not ledger.load(source).equal(ledger.load(twin).T):
            msg = (
                f"{source.adapter.path}: {source.entry.name} is not the embedding's adapter "
                "transposed, and its config has ensure_weight_tying"
            )
            raise InputRefusedError(msg, "save the adapter again with PEFT's save_pretrained")
    return {module: layer for module, layer in layers.items() if module != head.module}
