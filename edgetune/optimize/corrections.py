"""What onnxruntime-genai's builder (0.18) gets wrong, put right while it runs.

Each correction says what would be lost without it. Most faults are silent: the graph opens, runs
and answers, with other numbers than the model's. `tests/optimize/test_family_graphs.py` proves each
family's graph against torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from edgetune.optimize.rounding import ROUNDERS, Rounder
from edgetune.optimize.streaming import streaming
from edgetune.optimize.widths import Widths

# (frequencies [rotated/2], factor of cosine and sine) by the name the builder gives the table.
Tables = Mapping[str, tuple[Any, float]]


def settle_config(config: Any, architecture: str) -> Tables:
    """Say in a transformers config what the builder looks for in it; its rotary tables.

    Without this the builder finds no class for a config.json that names none; takes a Phi-3 for a
    LongRoPE one when its original length, which has a default of its own (4096), differs, and finds
    no `type` of a LongRoPE; finds no `rope_type` and no local base where rotary parameters are
    nested by layer type (Gemma 3); ignores the sliding window of a family whose every layer has
    one, while onnxruntime-genai then cuts the cache; takes a window that is wider than the context
    for one (Phi-3 128k), for which no cache is large enough; and norms an OLMo with an epsilon of
    its own.
    """
    tables = rotary_tables(config)
    config.architectures = [architecture]
    rope = config.rope_parameters
    if "full_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_theta = rope["full_attention"]["rope_theta"]
        config.rope_parameters = rope = dict(rope["full_attention"])
    if rope["rope_type"] == "longrope":
        rope["type"] = "longrope"
        config.original_max_position_embeddings = rope["original_max_position_embeddings"]
    elif hasattr(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = config.max_position_embeddings
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
        if config.sliding_window >= config.max_position_embeddings:
            config.sliding_window = None
        else:
            config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    if config.model_type == "olmo":
        config.rms_norm_eps = 1e-5  # written into transformers' OlmoLayerNorm
    return tables


def rotary_tables(config: Any) -> Tables:
    """The rotary frequencies of a config as transformers computes them."""
    rope = config.rope_parameters
    if "full_attention" in rope:
        return {
            "cos_cache_global": _frequencies(config, rope["full_attention"], "full_attention"),
            "cos_cache_local": _frequencies(config, rope["sliding_attention"], "sliding_attention"),
        }
    if rope["rope_type"] != "longrope":
        return {"cos_cache": _frequencies(config, rope, None)}
    beyond = rope["original_max_position_embeddings"] + 1
    short, long = _frequencies(config, rope, None), _frequencies(config, rope, None, beyond)
    return {"cos_cache": short, "cos_cache_small": short, "cos_cache_large": long}


def _frequencies(
    config: Any, rope: Mapping[str, Any], layer_type: str | None, length: int | None = None
) -> tuple[Any, float]:
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if rope["rope_type"] != "default":
        function = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
        frequencies, factor = function(config, "cpu", seq_len=length, layer_type=layer_type)
        return frequencies, float(factor)
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    width = int(head_size * (rope.get("partial_rotary_factor") or 1.0))
    steps = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    return 1.0 / (rope["rope_theta"] ** steps), 1.0


@contextmanager
def corrected(
    builder: Any, tables: Tables, widths: Widths, rounders: Mapping[str, Rounder] = ROUNDERS
) -> Iterator[None]:
    """The builder (its module) with its faults corrected, while the block runs."""
    corrections = make_corrections(builder, tables, widths, rounders)
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in corrections]
    for owner, name, correction in corrections:
        setattr(owner, name, correction)
    try:
        yield
    finally:
        for owner, name, original in before:
            if original is None:  # inherited
                delattr(owner, name)
            else:
                setattr(owner, name, original)


def make_corrections(
    builder: Any, tables: Tables, widths: Widths, rounders: Mapping[str, Rounder]
) -> list[tuple[Any, str, Any]]:
    """Every correction as (class, name of the method, its replacement)."""
    return [
        *_identity(builder.Model),
        *(
            (builder.Model, name, method)
            for name, method in streaming(builder.Model, widths, rounders).items()
        ),
        *_rotary(builder, tables),
        (builder.GemmaModel, "make_embedding", _exact_gemma(builder.Model.make_embedding)),
        (builder.OLMoModel, "make_layernorm", _centred(builder.OLMoModel.make_layernorm)),
        (builder.SmolLM3Model, "make_attention", _unrotated(builder.SmolLM3Model.make_attention)),
    ]


def _identity(model: Any) -> list[tuple[Any, str, Any]]:
    """The builder takes every linear that is as wide as the vocabulary for the head, and silently
    builds another model where a layer has such a one. And it writes into the graph, as its own, the
    git commit of whatever repository encloses the virtual environment."""

    def has_lm_head(self: Any, module: Any) -> bool:
        return module is self.weights.get_output_embeddings()

    commit = classmethod(lambda _: None)
    return [(model, "has_lm_head", has_lm_head), (model, "get_genai_commit", commit)]


def _rotary(builder: Any, tables: Tables) -> list[tuple[Any, str, Any]]:
    """The rotary tables are transformers' own, table for table.

    The builder's formulas lose every scaling of a Llama but Llama 3's own, know YaRN without its
    rounded bounds, divide by zero where its usual factors are left out, scale Gemma 3's local table
    with the global one's factor, and take LongRoPE's factor from fields that transformers ignores.
    """
    make_tables = builder.Model.make_rotary_embedding_caches
    current: list[str] = []

    def make_named(self: Any, **names: str) -> Any:
        current[:] = [names.get("cos_cache_name", "cos_cache")]
        return make_tables(self, **names)

    def from_scratch(self: Any) -> tuple[Any, Any]:
        import torch

        frequencies, factor = tables[current[0]]
        positions = torch.arange(self.rope_attrs["cache_length"], dtype=torch.int64).float()
        angles = torch.outer(positions, frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * factor, angles.sin() * factor

    def nothing(self: Any, config: Any) -> None:
        """Kinds of rotary embeddings need no settings: their tables are given."""

    return [
        (builder.Model, "make_rotary_embedding_caches", make_named),
        (builder.Model, "make_rotary_embedding_caches_from_scratch", from_scratch),
        (builder.Model, "make_rope_init", nothing),
        (builder.LlamaModel, "make_rope_init", nothing),
    ]


def _exact_gemma(make: Callable[..., Any]) -> Callable[..., Any]:
    """The builder rounds the factor of Gemma's embeddings to two decimals. (It also adds one to
    the weights of its norms in the type they are stored in, where bfloat16 rounds the sum: they
    are loaded in float32.)"""

    def make_embedding(self: Any, embedding: Any) -> Any:
        self.embed_attrs["scale"] = float(self.hidden_size) ** 0.5
        return make(self, embedding)

    return make_embedding


def _centred(make: Callable[..., Any]) -> Callable[..., Any]:
    """The builder norms an OLMo without subtracting the mean."""

    def make_layernorm(
        self: Any, layer_id: int, layernorm: Any, skip: bool, simple: bool, location: str
    ) -> Any:
        del simple
        return make(self, layer_id, layernorm, skip, False, location)

    return make_layernorm


def _unrotated(make: Callable[..., Any]) -> Callable[..., Any]:
    """The builder means to leave SmolLM3's every fourth layer unrotated, and rotates it outside of
    the attention instead, with positions that the graph no longer has."""

    def make_attention(self: Any, layer_id: int, *rest: Any, **options: Any) -> Any:
        before = self.attention_attrs["rope"]
        self.attention_attrs["rope"] = bool(self.no_rope_layers[layer_id])
        try:
            return make(self, layer_id, *rest, **options)
        finally:
            self.attention_attrs["rope"] = before

    return make_attention
