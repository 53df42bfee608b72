"""Train the adapters of the `smollm2-*` recipes: LoRA, DoRA and QLoRA over SmolLM2-135M-Instruct.

The base is the folder that `make_smollm2` makes; the messages are made by `smollm2_data`. Only the
answer's tokens are learned, in bfloat16 arithmetic over float32 weights. The QLoRA adapter is
trained over the values that the base's doubly quantized nf4 form stands for, which is the function
that bitsandbytes computes. Seeds and orders are fixed: the same machine makes the same bytes again.
Every figure printed is measured on the files as shipped, in float32.

    python tools/make_smollm2_adapters.py                   all three, into recipes/data/smollm2
    python tools/make_smollm2_adapters.py --only home-lora  one of them
    python tools/make_smollm2_adapters.py --measure         measures what is there, trains nothing
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Waiting threads must sleep: spinning ones slow the run several times over on a busy machine.
# OpenMP reads this once, when torch is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from demo_data import Pair
from demo_files import as_messages, fresh, save_adapter, write_json
from make_smollm2 import DEFAULT_OUT as BASE
from make_smollm2 import stop
from peft import LoraConfig, PeftModel, get_peft_model
from smollm2_data import BOOKING, HOME, TASKS, TICKET, Task
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from edgetune.checkpoint.folder import read_checkpoint
from edgetune.checkpoint.four_bit import four_bit_modules, four_bit_weight

SEED = 20260101
OUT = Path(__file__).resolve().parent.parent / "recipes" / "data" / "smollm2"
BASE_NAME = "smollm2-135m"
NF4 = {"type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
NEW_TOKENS = 48
# So many equal answers exclude a loss of two points (`edgetune.statistics.items_needed`).
EVALUATION, CALIBRATION = 160, 64
Row = tuple[list[int], int]


@dataclass(frozen=True)
class Training:
    """How one adapter is trained."""

    task: Task
    adapter: LoraConfig
    nf4: bool = False
    steps: int = 120
    batch: int = 8
    learning_rate: float = 2e-3


def trainings() -> tuple[Training, ...]:
    """Give every adapter's training; they differ in kind, targets and ranks on purpose."""
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "lora_dropout": 0.0, "bias": "none"}
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return (
        Training(HOME, LoraConfig(r=8, lora_alpha=16, target_modules=attention, **common)),
        Training(
            BOOKING,
            LoraConfig(
                r=8,
                lora_alpha=16,
                use_dora=True,
                target_modules=["q_proj", "v_proj", "down_proj"],
                rank_pattern={"down_proj": 4},
                **common,
            ),
            steps=70,
        ),
        Training(
            TICKET,
            LoraConfig(
                r=4,
                lora_alpha=8,
                target_modules=[*attention, "gate_proj", "up_proj", "down_proj"],
                **common,
            ),
            nf4=True,
            steps=90,
        ),
    )


# ---------------------------------------------------------------------------------------- data


def items_path(out: Path, task: Task, part: str) -> Path:
    """Give the file of one part of a task's items."""
    return out / f"{task.name.rpartition('-')[0]}.{part}.jsonl"


def write_items(out: Path, task: Task) -> None:
    """Draw the calibration items (training frames) and evaluation items (held-out frames)."""
    rng = random.Random(f"{SEED} items {task.name}")
    for part, count in (("calibration", CALIBRATION), ("evaluation", EVALUATION)):
        pairs: dict[str, str] = {}
        while len(pairs) < count:
            pairs.update([task.sample(rng, held_out=part == "evaluation")])
        lines = [json.dumps(as_messages(pair)) + "\n" for pair in pairs.items()]
        items_path(out, task, part).write_text("".join(lines), encoding="utf-8")


def read_items(out: Path, task: Task, part: str) -> list[Pair]:
    """Read one part of a task's items."""
    lines = items_path(out, task, part).read_text(encoding="utf-8").splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    return [(user["content"], assistant["content"]) for user, assistant in chats]


def encode(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> Row:
    """Encode a chat by its template; the second value tells where the answer begins.

    The line break that the template puts after the last turn is not part of the answer.
    """
    messages = as_messages(pair)["messages"]
    whole = list(tokenizer.apply_chat_template(messages, return_dict=False))
    asked = list(
        tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    )
    while whole[-1] != tokenizer.eos_token_id:
        whole.pop()
    return whole, len(asked)


# ------------------------------------------------------------------------------------ training


def batches(
    training: Training, tokenizer: PreTrainedTokenizerFast, unseen: set[str], rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield padded (ids, scored) batches; rows of like length meet, which saves padding."""
    size, done = training.batch, 0
    while done < training.steps:
        rows: list[Row] = []
        while len(rows) < size * 8:
            pair = training.task.noisy_sample(rng)
            if pair[0] not in unseen:
                rows.append(encode(tokenizer, pair))
        rows.sort(key=lambda row: len(row[0]))
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(groups)
        for group in groups[: training.steps - done]:
            width = max(len(ids) for ids, _ in group)
            ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in group])
            scored = torch.zeros(ids.shape, dtype=torch.bool)
            for number, (row, start) in enumerate(group):
                scored[number, start : len(row)] = True
            yield ids, scored
            done += 1


def answer_logits(model: Any, ids: Tensor, scored: Tensor) -> Tensor:
    """The logits [scored tokens, vocabulary] that predict the scored tokens, and no others."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = inner.model(input_ids=ids, use_cache=False).last_hidden_state
    logits: Tensor = inner.lm_head(hidden[:, :-1][scored[:, 1:]])
    return logits


def train(model: nn.Module, training: Training, rows: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Train the adapter with AdamW, a short warm-up and a cosine decay."""
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.learning_rate, weight_decay=0.0)
    warm, started = max(1, training.steps // 20), time.monotonic()
    for step, (ids, scored) in enumerate(rows):
        fraction = max(0.0, (step - warm) / max(1, training.steps - warm))
        rate = min(1.0, (step + 1) / warm) * (0.02 + 0.98 * (1 + math.cos(math.pi * fraction)) / 2)
        optimizer.param_groups[0]["lr"] = training.learning_rate * rate
        # Rows are padded on the right, which a causal model cannot see: no mask is needed.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = answer_logits(model, ids, scored)
        loss = functional.cross_entropy(logits.float(), ids[scored])
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 19 or step == training.steps - 1:
            seconds = time.monotonic() - started
            print(f"  step {step + 1}/{training.steps}  loss {loss.item():.4f}  {seconds:.0f} s")
    model.eval()


def load_base(folder: Path, nf4: bool) -> LlamaForCausalLM:
    """The base in float32; with `nf4` the values that its doubly quantized form stands for."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if nf4:
        checkpoint = read_checkpoint(folder)
        for name in sorted(four_bit_modules(checkpoint, NF4)):
            weight = four_bit_weight(checkpoint, name, NF4)
            model.get_submodule(name).weight.data.copy_(weight)
    return model


def make_adapter(training: Training, base: Path, out: Path) -> None:
    """Train one adapter and ship it."""
    task = training.task
    torch.manual_seed(zlib.crc32(f"{SEED} {task.name}".encode()))
    rng = random.Random(f"{SEED} {task.name}")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    unseen = {
        ask for part in ("calibration", "evaluation") for ask, _ in read_items(out, task, part)
    }
    model = get_peft_model(load_base(base, training.nf4), training.adapter)
    train(model, training, batches(training, tokenizer, unseen, rng))
    fresh(out / task.name)
    save_adapter(model, out / task.name, BASE_NAME)
    for file in (out / task.name).iterdir():
        file.chmod(0o644)


# ----------------------------------------------------------------------------------- measuring


@torch.no_grad()  # type: ignore[untyped-decorator]
def accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> float:
    """Give the share of greedy answers that match, whitespace and case aside."""
    tokenizer.padding_side = "left"
    right = 0
    for start in range(0, len(pairs), 24):
        group = pairs[start : start + 24]
        prompts = [
            tokenizer.apply_chat_template(
                as_messages(pair)["messages"][:1], tokenize=False, add_generation_prompt=True
            )
            for pair in group
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        outputs = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers = tokenizer.batch_decode(
            outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(
            given.lower().split() == wanted.lower().split()
            for given, (_, wanted) in zip(answers, group, strict=True)
        )
    return right / len(pairs)


@torch.no_grad()  # type: ignore[untyped-decorator]
def divergence(
    trained: Any, other: Any, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> float:
    """Give the mean KL(trained || other) in nats over the answers' tokens."""
    found: list[Tensor] = []
    for pair in pairs:
        whole, start = encode(tokenizer, pair)
        ids = torch.tensor([whole])
        scored = torch.zeros(ids.shape, dtype=torch.bool)
        scored[0, start:] = True
        first, second = (
            torch.log_softmax(answer_logits(model, ids, scored), dim=-1)
            for model in (trained, other)
        )
        found.append((first.exp() * (first - second)).sum(-1))
    return float(torch.cat(found).mean())


def measure(training: Training, base: Path, out: Path) -> dict[str, Any]:
    """Measure one adapter on the shipped files."""
    task = training.task
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    pairs = read_items(out, task, "evaluation")
    alone = load_base(base, training.nf4)
    trained = PeftModel.from_pretrained(load_base(base, training.nf4), out / task.name).eval()
    file = out / task.name / "adapter_model.safetensors"
    return {
        "n": len(pairs),
        "base_accuracy": round(accuracy(alone, tokenizer, pairs), 4),
        "trained_accuracy": round(accuracy(trained, tokenizer, pairs), 4),
        "kl_trained_base": round(divergence(trained, alone, tokenizer, pairs), 4),
        "adapter_bytes": file.stat().st_size,
        "steps": training.steps,
        "batch": training.batch,
        "learning_rate": training.learning_rate,
        "seed": SEED,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the adapters asked for and write what was measured."""
    names = [task.name for task in TASKS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--base", type=Path, default=BASE, help="the folder that make_smollm2 made")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write into")
    parser.add_argument("--only", choices=names, action="append", help="make this adapter only")
    parser.add_argument("--measure", action="store_true", help="measure what is there")
    parser.add_argument("--threads", type=int, default=1, help="threads; part of what is exact")
    options = parser.parse_args(arguments)
    if not options.base.is_dir():
        stop(f"{options.base}: no such folder", "python tools/make_smollm2.py makes it")
    # A fixed thread count keeps the order of summation, and so the bytes, the same.
    torch.set_num_threads(options.threads)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    measured = out / "MEASURED.json"
    report = json.loads(measured.read_text("utf-8")) if measured.exists() else {}
    for training in trainings():
        name = training.task.name
        if name not in (options.only or names):
            continue
        if not options.measure:
            write_items(out, training.task)
            make_adapter(training, options.base, out)
        report[name] = measure(training, options.base, out)
        print(json.dumps({name: report[name]}, indent=2), flush=True)
        write_json(measured, report)


if __name__ == "__main__":
    main()
