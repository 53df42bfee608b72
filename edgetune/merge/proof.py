"""An adapter's file holds exactly what PEFT would save for its config on this base."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from edgetune.checkpoint.adapter import WEIGHTS_FILE, Adapter, split_name
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder
from edgetune.checkpoint.skeleton import quiet
from edgetune.checkpoint.tensors import load_rows, same_values
from edgetune.errors import InputRefusedError
from edgetune.merge.ledger import Ledger, Source

_WRONG_BASE = "name the base that this adapter was trained on"


def prove_same(base: CheckpointFolder, tensor: str, source: Source, ledger: Ledger) -> None:
    """In a weighted sum, a stored base weight must be the base's own: only deltas add up."""
    name = base.tied_source if base.tied and tensor in (EMBEDDING, HEAD) else tensor
    entry = base.tensors[name]

    def own(start: int, stop: int) -> Any:
        return load_rows(base.path, entry, start, stop).float()

    fits = entry.shape == source.entry.shape
    if not fits or not same_values(entry.shape, partial(ledger.load_rows, source), own):
        msg = (
            f"{source.adapter.path}: {source.entry.name} is not the base's own weight, which "
            "makes a weighted sum undefined"
        )
        raise InputRefusedError(msg, _WRONG_BASE)


def prove_complete(model: Any, name: str, adapter: Adapter) -> None:
    """Compare the file's names with what PEFT would save for this config on this base."""
    expected, with_embeddings = _saved(model, name)
    found = adapter.tensors.keys()
    _refuse(adapter, expected.keys() - found, found - expected.keys() - with_embeddings.keys())
    for key in sorted(found):
        takes = (expected[key] if key in expected else with_embeddings[key]).shape
        _refuse_shape(adapter, key, tuple(takes))


def prove_whole(
    model: Any, name: str, adapter: Adapter, whole: Mapping[str, Source], modules: set[str]
) -> None:
    """As `prove_complete`, of what lies beside the units: saved modules, biases, embeddings,
    trained tokens."""
    config = model.peft_config[name]
    pattern = getattr(config, "rank_pattern", None)
    if adapter.peft_type == "ADALORA":  # PEFT would look for layers that are not there
        config.rank_pattern = None
    expected, with_embeddings = _saved(model, name)
    if adapter.peft_type == "ADALORA":
        config.rank_pattern = pattern
    inside = {key for key in expected if split_name(key)[0].rpartition(".")[0] in modules}
    missing = expected.keys() - inside - adapter.tensors.keys()
    _refuse(adapter, missing, whole.keys() - expected.keys() - with_embeddings.keys())
    for key in sorted(whole):
        takes = (expected[key] if key in expected else with_embeddings[key]).shape
        _refuse_shape(adapter, key, tuple(takes))


def _saved(model: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What PEFT would save of an adapter: by itself, and with the embeddings."""
    with quiet():
        from peft import get_peft_model_state_dict

        return (
            get_peft_model_state_dict(model, adapter_name=name),
            get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=True),
        )


def _refuse(adapter: Adapter, missing: set[str], unknown: set[str]) -> None:
    file = adapter.path / WEIGHTS_FILE
    if missing:
        msg = f"{file}: tensor {min(missing)!r} is missing{_more(missing)}"
        raise InputRefusedError(msg, "save the adapter again with PEFT's save_pretrained")
    if unknown:
        msg = f"{file}: tensor {min(unknown)!r} belongs to nothing that its config names"
        raise InputRefusedError(msg + _more(unknown), _WRONG_BASE)


def _refuse_shape(adapter: Adapter, key: str, takes: tuple[int, ...]) -> None:
    shape = adapter.tensors[key].shape
    if takes != shape:
        msg = f"{adapter.path / WEIGHTS_FILE}: tensor {key!r} is {list(shape)}"
        msg += f", this base takes {list(takes)}"
        raise InputRefusedError(msg, _WRONG_BASE)


def peft_refuses(adapter: Adapter, base: CheckpointFolder, why: BaseException) -> InputRefusedError:
    text = " ".join(str(why).split())[:300]
    msg = f"{adapter.path}: PEFT refuses it on {base.path.name} ({text})"
    return InputRefusedError(msg, _WRONG_BASE)


def _more(names: set[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
