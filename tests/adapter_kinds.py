"""Random adapters of every type that PEFT can merge, each with an effect that shows.

Many types start as the identity, so every trainable tensor gets noise; `strength` is chosen so
that the logits change well and stay of the base's size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """An adapter to make: PEFT's type, its config's fields, how strong the noise is.

    `targets` names groups of modules (`TARGETS`), so that one kind fits every base.
    """

    peft_type: str
    fields: dict[str, Any] = field(default_factory=dict)
    strength: float = 0.1
    targets: tuple[str, ...] = ("attention", "down")


# group: {model family: names}
TARGETS: dict[str, dict[str, list[str]]] = {
    "attention": {"phi3": ["qkv_proj"], "": ["q_proj", "v_proj"]},
    "square": {"phi3": ["o_proj"], "": ["q_proj", "o_proj"]},
    "down": {"": ["down_proj"]},
    "norms": {"": ["input_layernorm", "model.norm"]},
    "embeddings": {"": ["embed_tokens", "lm_head"]},
    "embedding": {"": ["embed_tokens"]},
}

KINDS: dict[str, Kind] = {
    "AdaLoRA": Kind("ADALORA", {"total_step": 10, "init_r": 6, "target_r": 4}, 0.3),
    "BOFT": Kind("BOFT", {"boft_block_size": 4}),
    "C3A": Kind("C3A", {"block_size": 16}, 0.5),
    "DEFT": Kind("DEFT"),
    "DEFT para": Kind("DEFT", {"para": True}),
    "DeLoRA": Kind("DELORA", {"r": 4}),
    "FourierFT": Kind("FOURIERFT", {"n_frequency": 200}, 0.5),
    "FRoD": Kind("FROD", {"progressbar": False}, 0.1, ("attention",)),
    "FRoD regenerated": Kind(
        "FROD", {"progressbar": False, "save_projection": False}, 0.1, ("attention",)
    ),
    "GLoRA": Kind("GLORA", {"r": 4}),
    "GraLoRA": Kind("GRALORA", {"r": 8}),
    "GraLoRA hybrid": Kind("GRALORA", {"r": 8, "hybrid_r": 4}),
    "HiRA": Kind("HIRA", {"r": 4}, 0.2),
    "HiRA embeddings": Kind("HIRA", {"r": 4}, 0.3, ("attention", "embeddings")),
    "HRA": Kind("HRA"),
    "IA3": Kind("IA3"),
    "LN tuning": Kind("LN_TUNING", {}, 0.1, ("norms",)),
    "LoHa": Kind("LOHA", {"r": 4}, 0.15),
    "LoHa rank pattern": Kind(
        "LOHA", {"r": 4, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 16}}, 0.2
    ),
    "LoHa with dropout": Kind("LOHA", {"r": 4, "rank_dropout": 0.5, "module_dropout": 0.5}, 0.15),
    "LoKr": Kind("LOKR", {"r": 4}),
    "LoKr decomposed": Kind("LOKR", {"r": 2, "decompose_both": True, "decompose_factor": 8}, 0.3),
    "MiSS": Kind("MISS", {"r": 8}),
    "MiSS bat": Kind("MISS", {"r": 8, "init_weights": "bat"}),
    "MiSS mini": Kind("MISS", {"r": 8, "mini_r": 4, "init_weights": "mini"}),
    "OFT": Kind("OFT", {"oft_block_size": 16}, 0.05),
    "OFT shared, exact": Kind(
        "OFT", {"oft_block_size": 16, "block_share": True, "use_cayley_neumann": False}
    ),
    "OSF": Kind("OSF", {"effective_rank": 8}, 0.03),
    "PEANuT": Kind("PEANUT", {"r": 4}),
    "PEANuT deep": Kind("PEANUT", {"r": 8, "depth": 2}, 0.3),
    "PSOFT": Kind("PSOFT", {"r": 8}),
    "PVeRA": Kind("PVERA", {"r": 8}, 0.3),
    "RandLoRA": Kind("RANDLORA", {"r": 8, "randlora_alpha": 64}, 0.02),
    "RandLoRA regenerated": Kind(
        "RANDLORA", {"r": 8, "randlora_alpha": 64, "save_projection": False}, 0.02
    ),
    "RoAd": Kind("ROAD", {"group_size": 16}),
    "RoAd 4": Kind("ROAD", {"group_size": 16, "variant": "road_4"}),
    "SHiRA": Kind("SHIRA", {"r": 4}),
    "Supertuning": Kind("SUPERTUNING", {"sparsity": 0.9, "r": 4, "lora_alpha": 8}),
    "Supertuning regenerated": Kind(
        "SUPERTUNING", {"sparsity": 0.9, "save_precomputed_indices": False}
    ),
    "TinyLoRA": Kind("TINYLORA", {"u": 8}, 0.5),
    "TinyLoRA tied": Kind("TINYLORA", {"u": 8, "weight_tying": 0.5, "save_projection": False}, 0.5),
    "trainable tokens": Kind(
        "TRAINABLE_TOKENS", {"token_indices": list(range(0, 250, 3))}, 0.3, ("embedding",)
    ),
    "Uni-LoRA": Kind("UNILORA", {}, 0.3),
    "Uni-LoRA saved": Kind("UNILORA", {"save_indices": True}, 0.3),
    "VB-LoRA": Kind("VBLORA", {"num_vectors": 16, "vector_length": 16}),
    "VB-LoRA top k": Kind(
        "VBLORA", {"num_vectors": 16, "vector_length": 16, "save_only_topk_weights": True}
    ),
    "VeRA": Kind("VERA", {"r": 8}, 0.3),
    "VeRA regenerated": Kind("VERA", {"r": 8, "save_projection": False}, 0.3),
    "WaveFT": Kind("WAVEFT", {"n_frequency": 200}, 0.05),
}


def make_kind(base: Path, kind: Kind, folder: Path, *, seed: int = 1) -> Path:
    """An adapter of this kind over a base, saved by PEFT."""
    import torch
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    family = model.config.model_type
    names = [n for g in kind.targets for n in TARGETS[g].get(family, TARGETS[g][""])]
    fields: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": names, **kind.fields}
    if kind.peft_type == "IA3":
        fields["feedforward_modules"] = ["down_proj"]
    peft = get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[kind.peft_type](**fields))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * kind.strength
    peft.save_pretrained(folder)
    return folder
