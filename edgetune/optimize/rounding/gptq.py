"""What the GPTQ pass rounded (`optimize.gptq`), read where the builder asks for it.

Head and embedding are rounded to nearest: the one stands behind the layers, and the other's rows no
input weighs.
"""

from __future__ import annotations

from pathlib import Path

from edgetune.errors import StepFailedError
from edgetune.optimize.rounding import rtn
from edgetune.optimize.rounding.block import Block, Rounded
from edgetune.optimize.widths import Width

HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
PACKED, SCALES, ZERO_POINTS, STEPS = "packed", "scales", "zero_points", "steps"


def file_of(codes: Path, module: str) -> Path:
    """Where a module's codes lie: a safetensors file with the tensors of a `Rounded`."""
    return codes / f"{module}.safetensors"


def round_block(block: Block, width: Width, codes: Path) -> Rounded:
    """The block's rows as the pass rounded them. Raises StepFailedError for a module that it did
    not round, or not at this width."""
    if block.module in (HEAD, EMBEDDING):
        return rtn.round_block(block, width)
    from safetensors import safe_open

    file = file_of(codes, block.module)
    stop = block.start + block.values.shape[0]
    if not file.is_file():
        raise _fault(block, "wrote no codes for it")
    with safe_open(file, framework="np") as tensors:
        if tensors.metadata() != {"width": width.name}:
            raise _fault(block, "rounded it to another width")
        if tensors.get_slice(SCALES).get_shape()[0] < stop:
            raise _fault(block, "wrote too few rows of it")
        names = tensors.keys()
        found = {name: tensors.get_slice(name)[block.start : stop] for name in names}
    return Rounded(found[PACKED], found[SCALES], found.get(ZERO_POINTS), found.get(STEPS))


def _fault(block: Block, what: str) -> StepFailedError:
    msg = f"{block.module}: the GPTQ pass {what}"
    return StepFailedError(msg, "this is an error in edgetune; please report it")
