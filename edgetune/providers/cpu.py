"""ONNX Runtime's own CPU kernels: always there, needs no environment and no options."""

from __future__ import annotations

from typing import Final

EXECUTION_PROVIDER: Final = "CPUExecutionProvider"
SHORT_NAME: Final = "cpu"
DEVICE_KIND: Final = "cpu"
BUILDER_NAME: Final = "cpu"
# onnxruntime-genai's builder also takes fp16 and bf16 here, and exits 0, but the graph then fails
# at run time: ONNX Runtime's CPU kernels lack these types.
PRECISIONS: Final = ("fp32", "int8", "int4", "nf4", "int8 cache")
