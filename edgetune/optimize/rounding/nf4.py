"""NF4 kept as NF4: the codes and scales that bitsandbytes gave a weight, found again.

In a merged checkpoint a linear that was trained on as NF4, and that no adapter changed, holds code
· absmax in float32 (QLoRA, Dettmers et al. 2023, appendix E has the codes). Each block of 64 holds
a code of −1 or 1, so that the largest value of a block is the very absmax, that of double
quantization dequantized. Rounding it again with ONNX Runtime's own function therefore gives the
same codes; that nothing was lost is checked, value for value.
"""

from __future__ import annotations

import numpy as np
import torch
from onnxruntime.capi._pybind_state import quantize_matmul_bnb4

from edgetune.checkpoint.nf4 import nf4_values
from edgetune.errors import StepFailedError
from edgetune.optimize.rounding.block import Block, Rounded
from edgetune.optimize.widths import Width

_NF4 = 1  # ONNX Runtime's number of it


def round_block(block: Block, width: Width) -> Rounded:
    """Rows as a MatMulBnb4 stores them: `packed` has the earlier of two values in the upper half,
    `scales` are the blocks' absmax. Raises StepFailedError for weights that are not NF4, ValueError
    where a block would reach into the next row."""
    outputs, inputs = block.values.shape
    size = width.group_size
    if size is None or inputs % size:
        msg = f"{block.module}: rows of {inputs} values are no whole blocks of NF4"
        raise ValueError(msg)
    values = np.ascontiguousarray(block.values.to(torch.float32).numpy())
    packed = np.zeros(outputs * inputs // 2, dtype=np.uint8)
    scales = np.zeros(outputs * inputs // size, dtype=np.float32)
    quantize_matmul_bnb4(packed, values, scales, size, _NF4, outputs, inputs)
    groups = inputs // size
    found = Rounded(packed.reshape(outputs, groups, size // 2), scales.reshape(outputs, groups))
    kept = nf4_values(found.packed, found.scales).reshape(outputs, inputs)
    if not np.array_equal(kept, values):
        msg = f"{block.module}: its weights are not NF4 any more, so NF4 would round them"
        raise StepFailedError(msg, f"store it otherwise: protect: {{{block.module}: w8}}")
    return found
