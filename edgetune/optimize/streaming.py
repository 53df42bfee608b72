"""onnxruntime-genai's builder, made to read and write a weight at a time.

Its `Model` loads the whole checkpoint, and quantizes a float32 copy of the whole graph: for a
model of 0.5 billion parameters 4.4 GB, where 0.3 come out. The functions here take the place of
the four methods that do it. The weights they write have the same bytes (tested), and the head's
quantized weight serves a tied embedding at 8 bits too, where the builder knows that for 4 only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from edgetune.checkpoint.folder import read_checkpoint
from edgetune.checkpoint.mapped import mapped_model
from edgetune.optimize.streamed import (
    Matrix,
    Streamed,
    Transposed,
    float_tensor,
    quantized_tensors,
    return_freed_memory,
)

_HEAD = "lm_head.MatMul.weight"


class _Packed:
    """Attention's three projections as one: what the builder reads of a linear layer."""

    def __init__(self, weight: Matrix) -> None:
        self.weight = weight


def streaming(model_class: Any) -> Mapping[str, Callable[..., Any]]:
    """{method of the builder's `Model`: what takes its place}."""
    make_initializer, to_nbits = model_class.make_initializer, model_class.to_nbits

    def load_weights(self: Any, input_path: str) -> Any:
        return_freed_memory()
        checkpoint = read_checkpoint(Path(input_path or self.model_name_or_path))
        model, self.mapped_files = mapped_model(checkpoint)
        return model

    def register(self: Any, tensor: Any, /, name: str, **options: Any) -> None:
        files = getattr(self, "mapped_files", None)  # some tables are made before loading
        source = _matrix_of(tensor, files.release) if files else None
        if source is None or options.get("to") != ir.DataType.FLOAT or options.get("raw"):
            make_initializer(self, tensor, name, **options)
        else:
            _register(self, float_tensor(name, source))

    def pack(self: Any, q: Any, k: Any, v: Any, **_: Any) -> _Packed:
        return _Packed(Matrix((q.weight, k.weight, v.weight), self.mapped_files.release))

    def share_embedding(self: Any, config: Any) -> None:  # noqa: ARG001
        wanted = bool(self.extra_options.get("shared_embeddings")) and not (
            self.exclude_embeds or self.exclude_lm_head
        )
        quantized = self.is_lm_head_quantized()
        self.tied_quantized_embeddings = wanted and quantized
        self.tied_unquantized_embeddings = wanted and not quantized

    def shared_names(self: Any) -> tuple[int, str, str, str]:
        bits = self.quant_attrs["bits"]
        return bits, f"{_HEAD}_Q{bits}", f"{_HEAD}_scales", ""

    def quantize(self: Any) -> ir.Model:
        return quantize_products(self) if _rounds_to_nearest(self) else to_nbits(self)

    return {
        "load_weights": load_weights,
        "make_initializer": register,
        "make_packed_matmul_float_class": pack,
        "make_tied_embeddings_init": share_embedding,
        "make_tied_quantized_embedding_input_names": shared_names,
        "to_nbits": quantize,
    }


def quantize_products(self: Any) -> ir.Model:
    """The builder's `to_nbits` for its `default` algorithm, symmetric: each product with a
    constant matrix becomes a MatMulNBits whose weight is quantized when it is written."""
    bits, group_size = self.quant_attrs["bits"], self.quant_attrs["matmul_block_size"]
    accuracy_level = self.quant_attrs["accuracy_level"]
    for node in self.model.graph:
        weight = node.inputs[1].const_value if node.op_type == "MatMul" else None
        if not isinstance(weight, Streamed):
            continue
        matrix: Matrix = weight.meta["matrix"]
        name = str(weight.name)
        self.model.graph.initializers.pop(name)
        packed, scales = quantized_tensors(name, matrix, bits, group_size)
        node.replace_input_with(1, _register(self, packed))
        node.resize_inputs(3)
        node.replace_input_with(2, _register(self, scales))
        node.op_type, node.domain = "MatMulNBits", "com.microsoft"
        node.name = f"{node.name}_Q{bits}"
        attributes = {"K": matrix.inputs, "N": matrix.outputs, "bits": bits}
        attributes["block_size"] = group_size
        if accuracy_level:
            attributes["accuracy_level"] = accuracy_level
        for key, value in sorted(attributes.items()):
            node.attributes.add(ir.AttrInt64(key, value))
    model: ir.Model = self.model
    return model


def _rounds_to_nearest(builder: Any) -> bool:
    """True where `quantize_products` does what the builder was asked for; it does the rest."""
    options = builder.quant_attrs
    return (
        builder.quantization_algo == "default"
        and bool(options["is_symmetric"])
        and not options["use_qdq"]
        and not options["nodes_to_exclude"]
        and not builder.int4_customized_weight_config
    )


def _register(builder: Any, tensor: Streamed) -> Any:
    value = builder.make_value(tensor.name, tensor.dtype, tensor.shape)
    value.const_value = tensor
    builder.model.graph.register_initializer(value)
    return value


def _matrix_of(tensor: Any, release: Callable[[], None]) -> Matrix | Transposed | None:
    """What `Streamed` needs of a matrix that the builder registers; None for what is no matrix."""
    if isinstance(tensor, Matrix | Transposed):
        return tensor
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2:
        return None
    if tensor.is_contiguous():
        return Matrix((tensor.detach(),), release)
    return Transposed(Matrix((tensor.detach().T,), release))
