"""Random models of named real shapes, for benchmarks: speed and memory depend on shapes alone.

Random weights say nothing about fidelity; no figure of accuracy comes from these.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from edgetune.checkpoint.folder import HEAD, CheckpointFolder
from edgetune.checkpoint.skeleton import meta_model
from edgetune.checkpoint.tensors import Output, row_blocks, write_checkpoint_weights

DEMO = Path(__file__).parent.parent / "recipes" / "data" / "demo" / "edgetune-demo-base"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SPREAD = 0.02  # the initializer's standard deviation of all of these families

# From the config.json of the named model on its publisher's page.
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152,
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936,
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "llama-3.2-1b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    "phi-3-mini": {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "vocab_size": 32064,
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "sliding_window": 2047,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}  # fmt: skip


def make_model(
    shape: str, folder: Path, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Path:
    """Write a random model of a named shape, a tensor at a time; the demo's tokenizer beside it.

    The same arguments give the same bytes. A folder that is there already is taken as it is.
    """
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    special = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    tokens = {key: special.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = {**SHAPES[shape], **tokens, "hidden_act": "silu", "dtype": str(dtype)[6:]}
    outputs = [
        Output(name, _SPELLING[dtype], tuple(weight.shape), _maker(number, weight, dtype, seed))
        for number, (name, weight) in enumerate(_parameters(config, folder))
    ]
    write_checkpoint_weights(folder, outputs)
    for name in _TOKENIZER:
        shutil.copyfile(DEMO / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def make_adapter(
    base: Path, folder: Path, rank: int = 16, seed: int = 0, *, dora: bool = False
) -> Path:
    """Write a random LoRA (or DoRA) adapter on every linear of a model, with PEFT."""
    from accelerate import init_empty_weights
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", use_dora=dora,
        task_type="CAUSAL_LM", base_model_name_or_path=str(base.name),
    )  # fmt: skip
    with init_empty_weights(include_buffers=False):
        model = get_peft_model(meta_model(_folder(config, base)), settings, low_cpu_mem_usage=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            key = name.replace(".default", "")
            spread = 1.0 if "magnitude" in name else 1 / math.sqrt(parameter.shape[-1])
            tensors[key] = torch.randn(parameter.shape, generator=generator) * spread
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings.inference_mode = True
    settings.save_pretrained(str(folder))
    return folder


_SPELLING = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}


def _parameters(config: dict[str, Any], folder: Path) -> Iterable[tuple[str, torch.nn.Parameter]]:
    named = meta_model(_folder(config, folder)).named_parameters()
    # A tied head is stored once, as the embedding.
    return [(n, p) for n, p in named if n != HEAD or not config["tie_word_embeddings"]]


def _folder(config: dict[str, Any], path: Path) -> CheckpointFolder:
    return CheckpointFolder(
        path=path, config=config, tensors={}, files=(), side_files=(), weight_bytes=0,
        quantization=None, tied=bool(config["tie_word_embeddings"]), generation={},
        model_type=config["model_type"],
    )  # fmt: skip


def _maker(number: int, parameter: torch.nn.Parameter, dtype: torch.dtype, seed: int) -> Any:
    def blocks() -> Iterable[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed * 100_003 + number)
        if parameter.ndim == 1:
            yield (1 + _SPREAD * torch.randn(parameter.shape, generator=generator)).to(dtype)
            return
        for start, stop in row_blocks(parameter.shape):
            rows = torch.randn(stop - start, *parameter.shape[1:], generator=generator)
            yield (rows * _SPREAD).to(dtype)

    return blocks


def main() -> None:
    """`shapes.py SHAPE BASE [ADAPTER lora|dora]`: make them where they are not there yet."""
    shape, base, *rest = sys.argv[1:]
    make_model(shape, Path(base))
    if rest and not (Path(rest[0]) / "adapter_config.json").is_file():
        make_adapter(Path(base), Path(rest[0]), dora=rest[1] == "dora")


if __name__ == "__main__":
    main()
