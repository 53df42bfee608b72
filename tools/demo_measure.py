"""What the shipped demo can do: accuracies, divergences and the price of coarse weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from demo_data import Pair, Task
from demo_files import (
    BASE_NAME,
    as_messages,
    encode,
    load,
    load_dequantized,
    load_tokenizer,
    read_items,
)
from peft import PeftModel
from torch import Tensor, nn
from transformers import Phi3ForCausalLM, PreTrainedTokenizerFast


def load_trained(task: Task, out: Path) -> tuple[Phi3ForCausalLM, Any]:
    """Load a task's base as it stands alone, and the trained model, from the shipped files."""
    read = load_dequantized if task.name.endswith("-qlora") else load
    base = read(out / BASE_NAME)
    if task.name.endswith("-full"):
        return base, load(out / task.name)
    return base, PeftModel.from_pretrained(read(out / BASE_NAME), out / task.name).eval()


@torch.no_grad()  # type: ignore[untyped-decorator]
def accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> float:
    """Give the share of greedy answers that match, whitespace and case aside."""
    tokenizer.padding_side = "left"
    right = 0
    for start in range(0, len(pairs), 60):
        group = pairs[start : start + 60]
        prompts = [
            tokenizer.apply_chat_template(
                as_messages(pair)["messages"][:1], tokenize=False, add_generation_prompt=True
            )
            for pair in group
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        outputs = model.generate(**inputs, max_new_tokens=40)
        answers = tokenizer.batch_decode(
            outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(
            given.lower().split() == wanted.lower().split()
            for given, (_, wanted) in zip(answers, group, strict=True)
        )
    return right / len(pairs)


@torch.no_grad()  # type: ignore[untyped-decorator]
def answer_log_probs(
    model: Any, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> Tensor:
    """Give the log-probabilities at every answer token, the end token included."""
    found: list[Tensor] = []
    for pair in pairs:
        ids, weights = encode(tokenizer, [pair], 0.0)
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
        found.append(torch.log_softmax(logits[torch.tensor(weights[1:]) > 0], dim=-1))
    return torch.cat(found)


def divergence(trained: Tensor, other: Tensor) -> float:
    """Give the mean KL(trained || other) in nats."""
    return float((trained.exp() * (trained - other)).sum(-1).mean())


def rounded(model: nn.Module, bits: int, group: int) -> nn.Module:
    """Round every linear layer to symmetric integers in groups along its input, in place."""
    top = 2 ** (bits - 1)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            blocks = module.weight.data.unflatten(1, (-1, group))
            scale = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-9) / (top - 0.5)
            blocks = (blocks / scale).round().clamp(-top, top - 1) * scale
            module.weight.data = blocks.flatten(1)
    return model


def measure(task: Task, out: Path) -> dict[str, Any]:
    """Measure one task on the shipped files, and how much quantization would cost it."""
    tokenizer = load_tokenizer(out / BASE_NAME)
    pairs = read_items(out, task, "evaluation")
    base, trained = load_trained(task, out)
    log_probs = answer_log_probs(trained, tokenizer, pairs)
    result: dict[str, Any] = {
        "kind": task.kind,
        "n": len(pairs),
        "base_accuracy": accuracy(base, tokenizer, pairs),
        "trained_accuracy": accuracy(trained, tokenizer, pairs),
        "kl_trained_base": divergence(log_probs, answer_log_probs(base, tokenizer, pairs)),
    }
    for bits, group in ((8, 32), (4, 32), (4, 256)):
        merged = load_trained(task, out)[1]
        if isinstance(merged, PeftModel):
            merged = merged.merge_and_unload()
        coarse = rounded(merged, bits, group)
        name = f"int{bits}_group{group}"
        coarse_log_probs = answer_log_probs(coarse, tokenizer, pairs)
        result[f"kl_trained_{name}"] = divergence(log_probs, coarse_log_probs)
    return {key: round(v, 4) if isinstance(v, float) else v for key, v in result.items()}


def measure_two(first: Task, second: Task, out: Path) -> dict[str, Any]:
    """Measure two adapters added up, each with weight 1, on both tasks."""
    tokenizer = load_tokenizer(out / BASE_NAME)
    model = PeftModel.from_pretrained(load(out / BASE_NAME), out / first.name, "first")
    model.load_adapter(str(out / second.name), "second")
    model.base_model.set_adapter(["first", "second"])
    model.eval()
    result: dict[str, Any] = {"weights": [1.0, 1.0]}
    for task in (first, second):
        pairs = read_items(out, task, "evaluation")
        share = round(accuracy(model, tokenizer, pairs), 4)
        result[task.name] = {"n": len(pairs), "accuracy": share}
    return result
