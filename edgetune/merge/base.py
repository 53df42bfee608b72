"""A base proved to be whole: exactly the tensors that its config.json calls for.

transformers only warns of a tensor that is missing, and fills it with random numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgetune.checkpoint.adapter import base_shape
from edgetune.checkpoint.folder import EMBEDDING, HEAD, CheckpointFolder, is_statistic
from edgetune.checkpoint.header import FLOAT_DTYPES
from edgetune.errors import InputRefusedError

# Buffers in old Llama checkpoints; the model computes them itself.
_IGNORED = re.compile(r".*rotary_emb\.inv_freq")


def prove_base(base: CheckpointFolder, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the stored tensors with the model's parameters, {name: shape}.

    Raises InputRefusedError naming a tensor that is missing, is none of the model's, has another
    shape, or is not stored as floating point numbers.
    """
    names = {n for n in base.tensors if not is_statistic(n) and not _IGNORED.fullmatch(n)}
    wanted = set(shapes)
    if base.tied:
        wanted -= {EMBEDDING, HEAD} - names - {base.tied_source}
    if missing := sorted(wanted - names):
        raise _unfit(base, missing[0], "is missing; config.json calls for it")
    if strange := sorted(names - wanted):
        raise _unfit(base, strange[0], "is none that config.json calls for")
    for name in sorted(names):
        shape = base_shape(base, name) or ()
        if shape != shapes[name]:
            text = f"is {list(shape)}, config.json calls for {list(shapes[name])}"
            raise _unfit(base, name, text)
        packed = name.removesuffix(".weight") in base.packed
        if not packed and base.tensors[name].dtype not in FLOAT_DTYPES:
            raise _unfit(base, name, f"is stored as {base.tensors[name].dtype}")


def _unfit(base: CheckpointFolder, name: str, text: str) -> InputRefusedError:
    msg = f"{base.path}: tensor {name!r} {text}"
    return InputRefusedError(msg, "config.json and weight files do not belong together")
