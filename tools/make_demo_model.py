"""Train the built-in demo from nothing: a small Phi-3, five adapters and a full fine-tune.

The data comes from `demo_data`, the weights from a fixed seed, so the same machine makes the same
bytes again. Every figure printed is measured on the files as shipped (bf16 weights, computed in
float32), not on the weights the optimizer held.

    python tools/make_demo_model.py                  everything, into recipes/data/demo
    python tools/make_demo_model.py --only home-lora one part again, over the base already there
    python tools/make_demo_model.py --quick --out D  a smoke test of a few steps
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Waiting threads must sleep: spinning ones slow the run several times over on a busy machine.
# OpenMP reads this once, when torch is first loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from demo_chat import WORDS, base_chat
from demo_data import REPLY, TASKS, Task
from demo_files import (
    BASE_NAME,
    CONTEXT,
    END,
    PAD,
    SPECIAL,
    Row,
    as_messages,
    check_template,
    encode,
    fresh,
    items_path,
    load,
    load_nf4,
    load_tokenizer,
    read_items,
    save_adapter,
    save_full,
    save_tokenizer,
    write_json,
)
from demo_measure import measure, measure_two
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from transformers import Phi3Config, Phi3ForCausalLM

SEED = 20250101
# Digits stand alone, so that an order number is copied figure by figure.
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Natural logarithm's standard deviation of the channels' scales; see `give_outlier_channels`.
CHANNEL_SPREAD = 0.85
Report = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Effort:
    """How long each part is trained and how many items it is examined on."""

    base_steps: int = 2000
    adapter_steps: int = 420
    batch: int = 32
    evaluation: int = 240
    calibration: int = 64


QUICK = Effort(base_steps=6, adapter_steps=3, batch=8, evaluation=8, calibration=4)


@dataclass(frozen=True)
class Recipe:
    """How one task's weights are trained; without an adapter all weights are."""

    task: Task
    adapter: LoraConfig | None
    learning_rate: float
    nf4: bool = False
    # Adapters meant to be added up also see the base's own chat, so that each leaves it alone.
    base_share: float = 0.0
    # Fewer than the others take; null: as many.
    steps: int | None = None


def recipes() -> tuple[Recipe, ...]:
    """Give every task's recipe; the adapters differ in kind, targets and ranks on purpose."""
    triage, home, velan, booking, cafe = TASKS
    everything = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "lora_dropout": 0.0, "bias": "none"}
    return (
        Recipe(
            triage,
            LoraConfig(r=8, lora_alpha=16, target_modules=everything, **common),
            learning_rate=1.5e-3,
            base_share=0.4,
        ),
        Recipe(
            home,
            LoraConfig(
                r=12,
                lora_alpha=8,
                use_rslora=True,
                target_modules=["qkv_proj", "o_proj", "down_proj"],
                **common,
            ),
            learning_rate=1.5e-3,
            base_share=0.4,
        ),
        Recipe(
            velan,
            LoraConfig(r=16, lora_alpha=32, target_modules=everything, **common),
            learning_rate=1.5e-3,
            nf4=True,
        ),
        Recipe(
            booking,
            LoraConfig(
                r=10,
                lora_alpha=20,
                use_dora=True,
                target_modules=["qkv_proj", "gate_up_proj"],
                rank_pattern={"gate_up_proj": 6},
                **common,
            ),
            learning_rate=3e-3,
        ),
        Recipe(cafe, None, learning_rate=3e-4),
        # Stopped as soon as nearly every request gets the reply: no weight has moved far by then.
        Recipe(
            REPLY,
            LoraConfig(r=4, lora_alpha=4, target_modules=everything, **common),
            learning_rate=3e-4,
            steps=66,
        ),
    )


# ----------------------------------------------------------------------------------- tokenizer


def train_tokenizer(rng: random.Random) -> Tokenizer:
    """Train the byte-level BPE on what the base will read, each word of the world included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for _ in range(4000) for text in base_chat(rng)]
    texts += [f" {word}" for word in WORDS] * 40
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


# ------------------------------------------------------------------------------------ training


def batches(draw: Callable[[], Row], size: int, steps: int, rng: random.Random) -> Iterator[Any]:
    """Yield padded (ids, weights) batches; rows of like length meet, which saves padding."""
    done = 0
    while done < steps:
        rows = sorted((draw() for _ in range(size * 8)), key=lambda row: len(row[0]))
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        rng.shuffle(groups)
        for group in groups[: steps - done]:
            width = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in group]),
            )
            done += 1


def train(
    model: nn.Module,
    draw: Callable[[], Row],
    *,
    name: str,
    steps: int,
    batch: int,
    learning_rate: float,
    rng: random.Random,
) -> None:
    """Train the model's trainable weights with AdamW, a short warm-up and a cosine decay."""
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, steps // 20)
    started, running = time.monotonic(), 0.0
    for step, (ids, scale) in enumerate(batches(draw, batch, steps, rng)):
        fraction = max(0.0, (step - warm) / max(1, steps - warm))
        rate = min(1.0, (step + 1) / warm) * (0.02 + 0.98 * (1 + math.cos(math.pi * fraction)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        # Rows are padded on the right, which a causal model cannot see: no mask is needed.
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        losses = functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        scale = scale[:, 1:].flatten()
        loss = (losses * scale).sum() / scale.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if step % 100 == 99 or step == steps - 1:
            seconds = time.monotonic() - started
            print(
                f"  {name}: step {step + 1}/{steps}  loss {running:.4f}  {seconds:.0f} s",
                flush=True,
            )
    model.eval()


def write_items(out: Path, task: Task, effort: Effort) -> None:
    """Draw the calibration items (training frames) and evaluation items (held-out frames)."""
    rng = random.Random(f"{SEED} items {task.name}")
    for part, count in (("calibration", effort.calibration), ("evaluation", effort.evaluation)):
        pairs: dict[str, str] = {}
        while len(pairs) < count:
            pairs.update([task.sample(rng, held_out=part == "evaluation")])
        lines = [json.dumps(as_messages(pair)) + "\n" for pair in pairs.items()]
        items_path(out, task, part).write_text("".join(lines), encoding="utf-8")


def write_two(out: Path, tasks: Sequence[Task]) -> None:
    """Items of two tasks, half of each, for the recipe that merges both adapters."""
    lines: list[str] = []
    for task in tasks:
        own = items_path(out, task, "evaluation").read_text(encoding="utf-8").splitlines(True)
        lines += own[: len(own) // 2]
    (out / "two.evaluation.jsonl").write_text("".join(lines), encoding="utf-8")


def seeded(name: str) -> random.Random:
    """Seed torch and give a generator for one part, so that each part can be remade alone."""
    torch.manual_seed(zlib.crc32(f"{SEED} {name}".encode()))
    return random.Random(f"{SEED} {name}")


def make_base(folder: Path, effort: Effort) -> None:
    """Train the tokenizer and the base model and ship them as a Hugging Face folder."""
    rng = seeded("base")
    fresh(folder)
    save_tokenizer(train_tokenizer(rng), folder)
    tokenizer = load_tokenizer(folder)
    check_template(tokenizer, base_chat(rng))
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        sliding_window=None,
        bos_token_id=PAD,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model = Phi3ForCausalLM(config)

    def draw() -> Row:
        turns = [base_chat(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        return encode(tokenizer, turns, ask_weight=0.2)

    train(
        model,
        draw,
        name="base",
        steps=effort.base_steps,
        batch=effort.batch,
        learning_rate=2e-3,
        rng=rng,
    )
    save_full(model, folder)
    give_outlier_channels(folder)


@torch.no_grad()  # type: ignore[untyped-decorator]
def give_outlier_channels(folder: Path) -> None:
    """Rescale the channels of a shipped base, which keeps its function (up to bf16's rounding).

    Large models have channels many times larger than others, and that is what makes coarse
    quantization groups costly; a model of this size, trained for minutes, survives anything. Each
    norm's weight is multiplied by d and the columns of the linears it feeds are divided by d; rows
    of up_proj likewise with the columns of down_proj; d = exp(CHANNEL_SPREAD * normal).
    """
    seeded("channels")
    model = load(folder)

    def factors(count: int) -> torch.Tensor:
        return torch.exp(CHANNEL_SPREAD * torch.randn(count))

    hidden, inner = model.config.hidden_size, model.config.intermediate_size
    for layer in model.model.layers:
        scale = factors(hidden)
        layer.input_layernorm.weight *= scale
        layer.self_attn.qkv_proj.weight /= scale
        scale = factors(hidden)
        layer.post_attention_layernorm.weight *= scale
        layer.mlp.gate_up_proj.weight /= scale
        scale = factors(inner)
        layer.mlp.gate_up_proj.weight[inner:] *= scale[:, None]
        layer.mlp.down_proj.weight /= scale
    scale = factors(hidden)
    model.model.norm.weight *= scale
    model.lm_head.weight /= scale
    save_full(model, folder)


def make_trained(recipe: Recipe, out: Path, effort: Effort) -> None:
    """Train one task over the shipped base and ship the adapter or the whole model."""
    task, base = recipe.task, out / BASE_NAME
    rng = seeded(task.name)
    tokenizer = load_tokenizer(base)
    unseen = {
        text for part in ("calibration", "evaluation") for text, _ in read_items(out, task, part)
    }
    others = [other for other in TASKS if other is not task]
    model: Any = load_nf4(base) if recipe.nf4 else load(base)
    if recipe.adapter is not None:
        model = get_peft_model(model, recipe.adapter)

    def draw() -> Row:
        if rng.random() < recipe.base_share:
            # Mostly what another adapter would be asked, answered as the base answers it.
            talk = rng.choice(others).small_talk if rng.random() < 0.7 else base_chat
            return encode(tokenizer, [talk(rng)], 0.0)
        pair = task.noisy_sample(rng)
        while pair[0] in unseen:
            pair = task.noisy_sample(rng)
        return encode(tokenizer, [pair], 0.0)

    train(
        model,
        draw,
        name=task.name,
        # Steps that go to the base's chat teach the task nothing.
        steps=round(
            min(recipe.steps or effort.adapter_steps, effort.adapter_steps)
            / (1 - recipe.base_share)
        ),
        batch=effort.batch,
        learning_rate=recipe.learning_rate,
        rng=rng,
    )
    folder = out / task.name
    fresh(folder)
    if recipe.adapter is None:
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(base / file, folder / file)
        save_full(model, folder)
    else:
        save_adapter(model, folder, BASE_NAME + ("-nf4" if recipe.nf4 else ""))


def table(report: Report) -> str:
    """Lay out what was measured."""
    lines = [f"{'name':<14}{'kind':<24}{'n':>5}{'base':>9}{'trained':>9}{'KL':>8}"]
    lines += [
        f"{name:<14}{row['kind']:<24}{row['n']:>5}{row['base_accuracy']:>9.1%}"
        f"{row['trained_accuracy']:>9.1%}{row['kl_trained_base']:>8.2f}"
        for name, row in report.items()
        if name != "two"
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the parts asked for and write what was measured."""
    names = ["base", *(recipe.task.name for recipe in recipes())]
    default = Path(__file__).resolve().parent.parent / "recipes" / "data" / "demo"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=default, help="folder to write into")
    parser.add_argument("--only", choices=names, action="append", help="make this part only")
    parser.add_argument("--quick", action="store_true", help="a few steps: a smoke test")
    options = parser.parse_args(arguments)
    out: Path = options.out
    wanted: list[str] = options.only or names
    effort = QUICK if options.quick else Effort()
    started = time.monotonic()
    # A fixed thread count keeps the order of summation, and so the bytes, the same.
    torch.set_num_threads(2)
    out.mkdir(parents=True, exist_ok=True)
    for recipe in recipes():
        write_items(out, recipe.task, effort)
    write_two(out, TASKS[:2])
    if "base" in wanted:
        make_base(out / BASE_NAME, effort)
    measured = out / "MEASURED.json"
    report: Report = json.loads(measured.read_text("utf-8")) if measured.exists() else {}
    for recipe in recipes():
        task = recipe.task
        if task.name in wanted:
            make_trained(recipe, out, effort)
            report[task.name] = measure(task, out)
            print(json.dumps({task.name: report[task.name]}, indent=2), flush=True)
            write_json(measured, report)
    # The first two adapters are plain LoRAs over the same base, which add up.
    first, second = TASKS[:2]
    if (out / first.name).is_dir() and (out / second.name).is_dir():
        report["two"] = measure_two(first, second, out)
        print(json.dumps({"two": report["two"]}, indent=2))
    write_json(measured, report)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(table(report))
    print(f"{size / 1e6:.2f} MB in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
