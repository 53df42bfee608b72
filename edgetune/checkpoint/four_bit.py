"""4-bit bases as an adapter saw them in training: which linears, and their float32 weights.

bitsandbytes' own arithmetic does it, on the CPU, in float32: the block scales times the code
book, not rounded to the compute type. A plain checkpoint is quantized first, from the values it
stores (bfloat16 and float32 input give the same codes); what transformers would not have
quantized (the output embedding, tied weights) stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgetune.checkpoint.folder import CheckpointFolder
from edgetune.checkpoint.skeleton import meta_model, quiet
from edgetune.checkpoint.tensors import check_finite, load_tensor
from edgetune.errors import InputRefusedError

BLOCK_SIZE = 64  # what transformers' integration and bitsandbytes' Linear4bit always use
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def four_bit_modules(
    base: CheckpointFolder, trained_as: Mapping[str, Any] | None
) -> frozenset[str]:
    """The linears that were 4-bit when the adapter was trained; empty for a plain base."""
    if base.packed:
        return base.packed
    return quantized_by_transformers(meta_model(base), trained_as) if trained_as else frozenset()


def quantized_by_transformers(model: Any, trained_as: Mapping[str, Any]) -> frozenset[str]:
    """The linears of a model on the meta device that transformers' integration quantizes.

    The model is changed by it: hand over one that is not needed any more.
    """
    with quiet():
        from bitsandbytes.nn import Linear4bit
        from transformers.integrations.bitsandbytes import replace_with_bnb_linear
        from transformers.quantizers.base import HfQuantizer

        skip = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        replace_with_bnb_linear(model, skip, bitsandbytes_config(trained_as))
    return frozenset(n for n, m in model.named_modules() if isinstance(m, Linear4bit))


def bitsandbytes_config(trained_as: Mapping[str, Any]) -> Any:
    """transformers' BitsAndBytesConfig for a recipe's `trained_as`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=trained_as["type"],
        bnb_4bit_use_double_quant=trained_as["double_quant"],
        bnb_4bit_compute_dtype=getattr(torch, trained_as["compute_dtype"]),
    )


def four_bit_weight(
    base: CheckpointFolder, module: str, trained_as: Mapping[str, Any] | None
) -> torch.Tensor:
    """The float32 weight [out, in] that one 4-bit linear had in training.

    Raises InputRefusedError naming the tensor for broken statistics or numbers not finite.
    """
    with quiet():
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    name = f"{module}.weight"
    if module in base.packed:
        packed, state = _stored(base, name)
    elif trained_as:
        packed, state = quantize_4bit(
            load_tensor(base.path, base.tensors[name]),
            blocksize=BLOCK_SIZE,
            compress_statistics=trained_as["double_quant"],
            quant_type=trained_as["type"],
        )
    else:
        return load_tensor(base.path, base.tensors[name], torch.float32)
    state.dtype = torch.float32
    weight: torch.Tensor = dequantize_4bit(packed, state)
    check_finite(weight, name, base.path / base.tensors[name].file)
    return weight


def _stored(base: CheckpointFolder, name: str) -> tuple[torch.Tensor, Any]:
    """(packed weight, its bitsandbytes QuantState) of a serialized 4-bit linear."""
    from bitsandbytes.functional import QuantState

    prefix = f"{name}."
    try:
        statistics = {
            key.removeprefix(prefix): load_tensor(base.path, entry)
            for key, entry in base.tensors.items()
            if key.startswith(prefix)
        }
        state = QuantState.from_dict(statistics, torch.device("cpu"))
        packed = load_tensor(base.path, base.tensors[name], packed=True)
        packed = packed.reshape(-1).view(torch.uint8)
        if packed.numel() != -(-state.shape.numel() // 2) or not _is_sound(state):
            msg = f"{base.path}: tensor {name!r} does not fit its quantization state"
            raise InputRefusedError(msg, "copy the folder again from where it came from")
    except (KeyError, ValueError, AttributeError, TypeError, AssertionError) as why:
        msg = f"{base.path}: the 4-bit statistics of {name!r} are broken ({why})"
        raise InputRefusedError(msg, "copy the folder again from where it came from") from why
    return packed.reshape(-1, 1), state


def _is_sound(state: Any) -> bool:
    """Known types and one scale a block, so that bitsandbytes' kernels read only these tensors."""
    if state.quant_type not in ("nf4", "fp4") or state.blocksize not in _BLOCK_SIZES:
        return False
    blocks = -(-state.shape.numel() // state.blocksize)
    scale = torch.uint8 if state.nested else torch.float32
    if state.absmax.numel() != blocks or state.absmax.dtype != scale:
        return False
    if not state.nested:
        return True
    outer = state.state2
    return (
        outer.blocksize in _BLOCK_SIZES
        and outer.dtype == outer.absmax.dtype == outer.code.dtype == torch.float32
        and int(outer.code.numel()) == 256
        and int(outer.absmax.numel()) == -(-blocks // outer.blocksize)
    )
