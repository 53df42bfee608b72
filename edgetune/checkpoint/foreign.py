"""What a folder without safetensors holds instead, by name. Standard library only."""

from __future__ import annotations

import re
from pathlib import Path

from edgetune.checkpoint.header import read_header
from edgetune.errors import InputRefusedError

_OTHER_FORMATS = (
    (r".*\.gguf", "GGUF, the format of llama.cpp"),
    (r"(tf_model|.*)\.h5|saved_model\.pb|.*\.tflite", "TensorFlow's"),
    (r".*\.msgpack", "Flax's"),
    (r".*\.(npz|npy)", "NumPy's or MLX's"),
    (r".*\.onnx", "an ONNX graph"),
    (r".*\.(mlmodel|mlpackage)", "Core ML's"),
    (r".*\.(engine|plan)", "TensorRT's"),
)
ORIGINAL = "name the original model, with config.json and *.safetensors"


def other_format(path: Path) -> str | None:
    """What a file, or a folder by the first file that is known, holds: `x.gguf is GGUF, …`."""
    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else [path.name]
    for pattern, what in _OTHER_FORMATS:
        for name in names:
            if re.fullmatch(pattern, name, re.IGNORECASE):
                return f"{name} is {what}"
    return None


def is_renamed_safetensors(path: Path) -> bool:
    """True for a file that is whole safetensors, whatever its name says."""
    try:
        read_header(path)
    except InputRefusedError:
        return False
    return True
