"""Train the adapters of the `smollm2-*` recipes: LoRA, DoRA and QLoRA over SmolLM2-135M-Instruct.

The base is the folder that `make_smollm2` makes; the messages are made by `smollm2_data`. Only the
answer's tokens are learned, in bfloat16 arithmetic over float32 weights. The QLoRA adapter is
trained over the values that the base's doubly quantized nf4 form stands for, which is the function
that bitsandbytes computes. Seeds and orders are fixed: the same machine makes the same bytes again.
What the adapters can do is measured by `edgetune build smollm2-lora` and its like.

    python tools/make_smollm2_adapters.py                   all three, into recipes/data/smollm2
    python tools/make_smollm2_adapters.py --only home-lora  one of them
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
from demo_files import as_messages, fresh, save_adapter
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
# So many equal answers exclude a loss of two points (`edgetune.statistics.items_needed`).
EVALUATION, CALIBRATION = 160, 64
GROUPS = 10
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
            steps=170,
        ),
    )


# ---------------------------------------------------------------------------------------- data


def items_path(out: Path, task: Task, part: str) -> Path:
    """Give the file of one part of a task's items."""
    return out / f"{task.name.rpartition('-')[0]}.{part}.jsonl"


def write_items(out: Path, task: Task, tokenizer: PreTrainedTokenizerFast) -> None:
    """Draw the calibration items (training frames) and evaluation items (held-out frames).

    Evaluation items come in groups of one prompt length in tokens, since the reference answers
    prompts of one length together: a third of the time.
    """
    rng = random.Random(f"{SEED} items {task.name}")
    learned: dict[str, str] = {}
    while len(learned) < CALIBRATION:
        learned.update([task.sample(rng)])
    groups: dict[int, dict[str, str]] = {}
    full: list[dict[str, str]] = []
    while len(full) < GROUPS:
        pair = task.sample(rng, held_out=True)
        group = groups.setdefault(encode(tokenizer, pair)[1], {})
        if len(group) < EVALUATION // GROUPS:
            group.update([pair])
            if len(group) == EVALUATION // GROUPS:
                full.append(group)
    examined = {ask: answer for group in full for ask, answer in group.items()}
    for part, pairs in (("calibration", learned), ("evaluation", examined)):
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the adapters asked for."""
    names = [task.name for task in TASKS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--base", type=Path, default=BASE, help="the folder that make_smollm2 made")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write into")
    parser.add_argument("--only", choices=names, action="append", help="make this adapter only")
    parser.add_argument("--threads", type=int, default=1, help="threads; part of what is exact")
    options = parser.parse_args(arguments)
    if not options.base.is_dir():
        stop(f"{options.base}: no such folder", "python tools/make_smollm2.py makes it")
    # A fixed thread count keeps the order of summation, and so the bytes, the same.
    torch.set_num_threads(options.threads)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.base)
    for training in trainings():
        if training.task.name in (options.only or names):
            print(training.task.name)
            write_items(out, training.task, tokenizer)
            make_adapter(training, options.base, out)


if __name__ == "__main__":
    main()
