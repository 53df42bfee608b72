"""Tiny random models and adapters, built offline: 2 layers, width 64, a byte-level vocabulary.

Adapters get nonzero random values everywhere (a fresh LoRA's B is zero, so merging it wrongly
would go unseen).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCABULARY = 288  # 256 bytes, 4 special tokens, a few merges; the rest of the rows is spare
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,  # wide enough for logits that differ
    "bos_token_id": None,
    "eos_token_id": 259,
    "pad_token_id": 259,
}


def build_base(
    folder: Path, model_type: str = "llama", *, dtype: str = "bfloat16", seed: int = 0,
    max_shard_size: str = "5GB", tokenizer: bool = True, **config: Any,
) -> Path:  # fmt: skip
    """A random base of a family, saved as safetensors with tokenizer and generation config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = AutoConfig.for_model(model_type, **{**_SHAPE, **config})
    model = AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # they start as zeros and ones
                parameter += torch.randn_like(parameter) * 0.1
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        build_tokenizer(folder)
    return folder


def build_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of a few merges, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("t", "h"), ("th", "e"), ("i", "n"), ("e", "r")]
    tokens = [*alphabet, "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    tokens += ["".join(pair) for pair in merges]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def make_adapter(
    base: Path, kind: str = "lora", *, folder: Path, seed: int = 1, strength: float = 0.12,
    save: dict[str, Any] | None = None, **config: Any,
) -> Path:  # fmt: skip
    """An adapter over `base` with random values: `kind` is lora or dora, `config` LoraConfig's."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    settings |= {"task_type": "CAUSAL_LM", "use_dora": kind == "dora", **config}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(**settings))
    randomize(model, strength)
    model.save_pretrained(folder, **(save or {}))
    return folder


def randomize(model: Any, strength: float) -> None:
    """Give every adapter parameter, saved module and trained bias random values."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if "lora_magnitude_vector" in name:
                parameter *= 1 + 0.3 * noise
            elif "lora_" in name:
                parameter.copy_(noise * strength)
            elif "modules_to_save" in name or (parameter.requires_grad and name.endswith("bias")):
                parameter += noise * 0.1


def build_four_bit(base: Path, folder: Path, quant_type: str, double_quant: bool) -> Path:
    """`base` as a serialized bitsandbytes 4-bit checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant, bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=settings, device_map="cpu"
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def logits(model: Any, count: int = 24) -> Any:
    """The logits [2, count, vocabulary] of a model on fixed random tokens."""
    import torch

    tokens = torch.randint(0, 256, (2, count), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model(input_ids=tokens).logits.float()


def edit_header(file: Path, change: Any) -> None:
    """Rewrite a safetensors file with `change(header)` applied; the tensors' bytes stay."""
    import json

    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def edit_tensors(file: Path, change: Any) -> None:
    """Rewrite a safetensors file with `change(tensors)` applied."""
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(change(tensors), file, metadata={"format": "pt"})
