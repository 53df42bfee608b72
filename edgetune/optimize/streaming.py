"""onnxruntime-genai's builder, made to read and write a weight at a time.

Its `Model` loads the whole checkpoint, and quantizes a float32 copy of the whole graph: for a
model of 0.5 billion parameters 4.4 GB, where 0.3 come out. The functions here take the place of
the methods that do it. Rounded to nearest, the weights that they write have the same bytes
(tested). Each module may have a width of its own; the head's quantized weight serves a tied
embedding at 8 bits too, where the builder knows that for 4 only; and an embedding of its own, which
the builder leaves in float32, may be quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from edgetune.checkpoint.folder import read_checkpoint
from edgetune.checkpoint.graph_weights import places_of
from edgetune.checkpoint.mapped import mapped_model
from edgetune.optimize.rounding import ROUNDERS, Rounder
from edgetune.optimize.streamed import (
    STEPS_SUFFIX,
    Matrix,
    Streamed,
    Transposed,
    float_tensor,
    quantized_tensors,
    return_freed_memory,
)
from edgetune.optimize.widths import NF4, Width, Widths

_HEAD, _EMBEDDING = "lm_head", "model.embed_tokens"
_WEIGHT = ".MatMul.weight"
_NF4 = 1  # ONNX Runtime's number of it
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class _Packed:
    """Attention's three projections as one: what the builder reads of a linear layer."""

    def __init__(self, weight: Matrix) -> None:
        self.weight = weight


def streaming(
    model_class: Any, widths: Widths, rounders: Mapping[str, Rounder] = ROUNDERS
) -> Mapping[str, Callable[..., Any]]:
    """{method of the builder's `Model`: what takes its place}; `widths`: of the modules, `rounders`
    by the names of algorithms."""
    make_initializer = model_class.make_initializer
    make_lookup = model_class.make_embedding_lookup
    is_packable = model_class.is_qkv_projection_packable
    head, own_embedding = widths.of(_HEAD), widths.of_embedding()

    def load_weights(self: Any, input_path: str) -> Any:
        return_freed_memory()
        checkpoint = read_checkpoint(Path(input_path or self.model_name_or_path))
        model, self.mapped_files = mapped_model(checkpoint)
        self.checkpoint_modules = {name.removesuffix(".weight") for name in checkpoint.tensors}
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

    def packable(self: Any, layer_id: int, attention: Any) -> bool:
        block = f"model.layers.{layer_id}.self_attn"
        own = {widths.of(f"{block}.{projection}") for projection in _PROJECTIONS}
        # A joint projection of the checkpoint has one width.
        joint = f"{block}.qkv_proj" in self.checkpoint_modules
        # The builder keeps the keys and values of a layer before it whose projections were three
        # products, and would give them to this one's attention.
        self.attention_attrs |= {"k_path": "", "v_path": ""}
        return bool(is_packable(self, layer_id, attention)) and (joint or len(own) == 1)

    def share_embedding(self: Any, config: Any) -> None:  # noqa: ARG001
        wanted = bool(self.extra_options.get("shared_embeddings")) and not (
            self.exclude_embeds or self.exclude_lm_head
        )
        self.tied_quantized_embeddings = wanted and head.quantized
        self.tied_unquantized_embeddings = wanted and not head.quantized

    def shared_names(self: Any) -> tuple[int, str, str, str]:
        name, width = self.looked_up
        zeros = "" if width.symmetric else f"{name}_zero_points"
        return width.bits, f"{name}_Q{width.bits}", f"{name}_scales", zeros

    def look_up(self: Any, embedding: Any, *rest: Any) -> Any:
        tied = self.tied_quantized_embeddings, self.tied_unquantized_embeddings
        self.looked_up, before = (f"{_HEAD}{_WEIGHT}", head), self.quant_attrs["matmul_block_size"]
        if not any(tied) and own_embedding.quantized:
            name = f"{_EMBEDDING}.weight"
            source = Matrix((embedding.detach(),), self.mapped_files.release)
            rounder = rounders[str(own_embedding.algorithm)]
            places = ((_EMBEDDING, 0),)
            tensors = quantized_tensors(name, source, own_embedding, rounder, places)
            _inputs(self, tensors, own_embedding)
            # The builder looks an embedding up in a quantized weight where it is a tied one's.
            self.looked_up, self.tied_quantized_embeddings = (name, own_embedding), True
        self.quant_attrs["matmul_block_size"] = self.looked_up[1].group_size
        try:
            return make_lookup(self, embedding, *rest)
        finally:
            self.quant_attrs["matmul_block_size"] = before
            self.tied_quantized_embeddings = tied[0]

    def quantize(self: Any) -> ir.Model:
        return quantize_products(self, widths, rounders)

    return {
        "load_weights": load_weights,
        "make_initializer": register,
        "make_packed_matmul_float_class": pack,
        "is_qkv_projection_packable": packable,
        "make_tied_embeddings_init": share_embedding,
        "make_tied_quantized_embedding_input_names": shared_names,
        "make_embedding_lookup": look_up,
        "to_nbits": quantize,
    }


def quantize_products(self: Any, widths: Widths, rounders: Mapping[str, Rounder]) -> ir.Model:
    """The builder's `to_nbits`: each product with a constant matrix becomes a MatMulNBits, or a
    MatMulBnb4, whose weight is rounded when it is written, unless its width is a float one."""
    accuracy_level = self.quant_attrs["accuracy_level"]
    for node in self.model.graph:
        weight = node.inputs[1].const_value if node.op_type == "MatMul" else None
        if not isinstance(weight, Streamed):
            continue
        matrix: Matrix = weight.meta["matrix"]
        name = str(weight.name)
        rows = [part.shape[0] for part in matrix.parts]
        places = places_of(name.removesuffix(_WEIGHT), rows, self.checkpoint_modules)
        width = widths.of(places[0][0])
        if not width.quantized:
            continue
        self.model.graph.initializers.pop(name)
        rounder = rounders[str(width.algorithm)]
        tensors = quantized_tensors(name, matrix, width, rounder, places)
        inputs = _inputs(self, tensors, width)
        node.resize_inputs(1 + len(inputs))
        for place, value in enumerate(inputs, 1):
            node.replace_input_with(place, value)
        node.domain = "com.microsoft"
        node.op_type, attributes = _operator_of(width, accuracy_level)
        node.name = f"{node.name}_{'Bnb4' if width.algorithm == NF4 else f'Q{width.bits}'}"
        attributes |= {"K": matrix.inputs, "N": matrix.outputs}
        for key, value in sorted(attributes.items()):
            node.attributes.add(ir.AttrInt64(key, value))
    model: ir.Model = self.model
    return model


def _operator_of(width: Width, accuracy_level: int | None) -> tuple[str, dict[str, int | None]]:
    """(operator of a product with a weight of this width, its attributes but the matrix's size)."""
    attributes: dict[str, int | None] = {"block_size": width.group_size}
    if width.algorithm == NF4:
        return "MatMulBnb4", attributes | {"quant_type": _NF4}
    attributes["bits"] = width.bits
    if accuracy_level:
        attributes["accuracy_level"] = accuracy_level
    return "MatMulNBits", attributes


def _inputs(builder: Any, tensors: Sequence[Streamed], width: Width) -> list[Any]:
    """The inputs that a quantized matrix is to its product or lookup. Scales in steps are
    multiplied out by nodes before all others, since an embedding is looked up with them too."""
    values = [_register(builder, tensor) for tensor in tensors]
    if not width.scales_in_steps:
        return values
    codes, counts, steps, *zeros = values
    name = str(counts.name).removesuffix(STEPS_SUFFIX)
    scales = builder.make_value(name, ir.DataType.FLOAT, counts.shape)
    to_float = ir.AttrInt64("to", ir.DataType.FLOAT)
    cast = ir.Node("", "Cast", [counts], [to_float], name=f"{name}_Cast")
    cast.outputs[0].name = f"{name}_counts"
    product = ir.Node("", "Mul", [cast.outputs[0], steps], outputs=[scales], name=f"{name}_Mul")
    graph = builder.model.graph
    if len(graph):
        graph.insert_before(graph[0], [cast, product])
    else:
        graph.extend([cast, product])
    return [codes, scales, *zeros]


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
