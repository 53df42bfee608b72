"""The demo's files: tokenizer, models, adapters and items, written and read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from demo_data import Pair, Task
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    BitsAndBytesConfig,
    GenerationConfig,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
PAD, END = 0, 4
CONTEXT = 1024
BASE_NAME = "edgetune-demo-base"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
Row = tuple[list[int], list[float]]


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer files by hand, so that they name no library version."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[END],
        "pad_token": SPECIAL[PAD],
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    write_json(folder / "tokenizer_config.json", config)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer as a user would."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, turns: Sequence[Pair], ask_weight: float) -> Row:
    """Encode a chat with a weight per token: 1 on the answers, `ask_weight` on the rest."""
    ids: list[int] = []
    weights: list[float] = []
    for question, answer in turns:
        for text, weight in (
            (f"<|user|>\n{question}<|end|>\n<|assistant|>\n", ask_weight),
            (f"{answer}<|end|>", 1.0),
            ("\n", ask_weight),
        ):
            piece = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
            ids += piece
            weights += [weight] * len(piece)
    # The line break after the last turn is the next turn's beginning, not something to learn.
    return ids[:-1], weights[:-1]


def check_template(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> None:
    """Make sure that training renders a chat exactly as the shipped chat template does."""
    messages = as_messages(pair)["messages"]
    rendered = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    if list(rendered)[:-1] != encode(tokenizer, [pair], 0.0)[0]:
        raise RuntimeError("the chat template and the training rows differ")  # noqa: EM101


def fresh(folder: Path) -> None:
    """Make the folder anew, so that nothing of an earlier run stays in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_card(folder: Path) -> None:
    """Say under which license the folder is, as Hugging Face's model cards do."""
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")


def save_full(model: Phi3ForCausalLM, folder: Path) -> None:
    """Write a whole model in bf16 with its generation settings."""
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=PAD, eos_token_id=[END, PAD], pad_token_id=PAD
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    write_card(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def save_adapter(model: PeftModel, folder: Path, base_name: str) -> None:
    """Write a PEFT folder in bf16; by hand, since PEFT adds a card and the machine's paths."""
    state = get_peft_model_state_dict(model)
    tensors = {key: state[key].to(torch.bfloat16).contiguous() for key in sorted(state)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    write_json(folder / "adapter_config.json", plain)
    write_card(folder)


def load(folder: Path) -> Phi3ForCausalLM:
    """Load shipped bf16 weights to compute in float32."""
    return Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_nf4(folder: Path) -> Phi3ForCausalLM:
    """Load the shipped base as bitsandbytes' doubly quantized nf4."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = Phi3ForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=torch.float32, device_map="cpu"
    )
    return model.eval()


def load_dequantized(folder: Path) -> Phi3ForCausalLM:
    """Load the base with the values that its nf4 form stands for, as plain float32."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    model = load(folder)
    for name, module in load_nf4(folder).named_modules():
        if isinstance(module, Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            model.get_submodule(name).weight.data.copy_(weight)
    return model


def as_messages(pair: Pair) -> dict[str, list[dict[str, str]]]:
    """Write one item in TRL's conversational format."""
    roles = ("user", "assistant")
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, pair, strict=True)]}


def items_path(out: Path, task: Task, part: str) -> Path:
    """Give the file of one part of a task's items."""
    return out / f"{task.name.rpartition('-')[0]}.{part}.jsonl"


def read_items(out: Path, task: Task, part: str) -> list[Pair]:
    """Read one part of a task's items."""
    pairs: list[Pair] = []
    for line in items_path(out, task, part).read_text(encoding="utf-8").splitlines():
        user, assistant = json.loads(line)["messages"]
        pairs.append((user["content"], assistant["content"]))
    return pairs
