"""The demo's maker: its data, a smoke run of a few steps, and what the shipped demo claims."""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "data" / "demo"
TASKS = ("triage-lora", "home-lora", "velan-qlora", "booking-dora", "cafe-full", "reply-lora")

for _name in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(_name)


@pytest.fixture(scope="module")
def tools() -> Iterator[tuple[ModuleType, ModuleType]]:
    """Import the data and the script, which finds its neighbours by the import path."""
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("demo_data"), importlib.import_module("make_demo_model")
    sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def quick(tools: tuple[ModuleType, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the whole demo with a few steps."""
    out = tmp_path_factory.mktemp("demo")
    tools[1].main(["--quick", "--out", str(out)])
    return out


def test_held_out_frames_are_new(tools: tuple[ModuleType, ModuleType]) -> None:
    for task in tools[0].TASKS:
        assert len(task.frames) >= 10
        assert len(task.held_out) >= 4
        known = {re.sub(r"\W+", " ", text).lower() for text in task.frames}
        assert known.isdisjoint(re.sub(r"\W+", " ", text).lower() for text in task.held_out)
        assert set(task.openers).isdisjoint(task.held_out_openers)
        assert set(task.closers).isdisjoint(task.held_out_closers)


def test_evaluation_messages_are_never_drawn_for_training(
    tools: tuple[ModuleType, ModuleType],
) -> None:
    for task in tools[0].TASKS:
        rng = random.Random(1)
        training = {task.sample(rng)[0] for _ in range(3000)}
        assert training.isdisjoint(task.sample(rng, held_out=True)[0] for _ in range(600))


def test_answers_of_known_messages(tools: tuple[ModuleType, ModuleType]) -> None:
    rng = random.Random(2)
    for task in tools[0].TASKS:
        for _ in range(200):
            message, answer = task.sample(rng)
            assert "{" not in message
            for number in re.findall(r"\d{4}", message):
                assert number in answer


@pytest.mark.slow
@pytest.mark.line
def test_quick_run_ships_every_part(quick: Path) -> None:
    report = json.loads((quick / "MEASURED.json").read_text())
    assert set(report) == {*TASKS, "two"}
    for name in TASKS:
        assert {"n", "base_accuracy", "trained_accuracy", "kl_trained_base"} <= set(report[name])
        weights = "model" if name.endswith("-full") else "adapter_model"
        assert (quick / name / f"{weights}.safetensors").is_file()
        card = (quick / name / "README.md").read_text()
        assert card == "---\nlicense: apache-2.0\n---\n"


@pytest.mark.slow
@pytest.mark.line
def test_quick_run_names_no_machine(quick: Path) -> None:
    for file in quick.rglob("*.json*"):
        text = file.read_text()
        assert str(quick) not in text
        assert str(ROOT) not in text
    for name, base in (
        ("velan-qlora", "edgetune-demo-base-nf4"),
        ("home-lora", "edgetune-demo-base"),
    ):
        config = json.loads((quick / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == base


@pytest.mark.slow
@pytest.mark.line
def test_same_seed_same_bytes(
    tools: tuple[ModuleType, ModuleType], quick: Path, tmp_path: Path
) -> None:
    tools[1].main(["--quick", "--out", str(tmp_path), "--only", "base", "--only", "booking-dora"])
    base = "edgetune-demo-base"
    for file in (f"{base}/model.safetensors", f"{base}/tokenizer.json", "booking.evaluation.jsonl"):
        assert (tmp_path / file).read_bytes() == (quick / file).read_bytes()
    adapter = "booking-dora/adapter_model.safetensors"
    assert (tmp_path / adapter).read_bytes() == (quick / adapter).read_bytes()


@pytest.mark.usefixtures("tools")
def test_rounding_is_exact_on_the_grid() -> None:
    torch = importlib.import_module("torch")
    measure = importlib.import_module("demo_measure")
    linear = torch.nn.Linear(8, 1, bias=False)
    linear.weight.data = torch.tensor([[-7.5, 1.0, 2.0, 3.0, 0.75, 0.0, 0.0, 0.0]])
    measure.rounded(linear, 4, 4)
    expected = torch.tensor([[-8.0, 1.0, 2.0, 3.0, 0.7, 0.0, 0.0, 0.0]])
    assert torch.allclose(linear.weight.data, expected)


shipped = pytest.mark.skipif(not (DEMO / "MEASURED.json").exists(), reason="demo not made yet")


@shipped
def test_shipped_demo_meets_its_claims() -> None:
    report = json.loads((DEMO / "MEASURED.json").read_text())
    for name in TASKS:
        assert report[name]["n"] >= 200
        assert report[name]["base_accuracy"] < 0.5
        assert report[name]["trained_accuracy"] > 0.9
        # the slight one changes little, and still which reply is given
        assert report[name]["kl_trained_base"] > (0.005 if name == "reply-lora" else 0.5)


@shipped
def test_shipped_demo_is_small_and_bf16() -> None:
    safe_open = importlib.import_module("safetensors").safe_open
    assert sum(file.stat().st_size for file in DEMO.rglob("*") if file.is_file()) < 15_000_000
    for file in DEMO.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            kinds = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        assert kinds == {"BF16"}


@shipped
def test_shipped_items_are_conversations() -> None:
    for name in TASKS:
        task = name.rpartition("-")[0]
        seen: list[set[str]] = []
        for part, least in (("calibration", 64), ("evaluation", 200)):
            lines = (DEMO / f"{task}.{part}.jsonl").read_text().splitlines()
            assert len(lines) >= least
            messages = [json.loads(line)["messages"] for line in lines]
            assert all([m["role"] for m in pair] == ["user", "assistant"] for pair in messages)
            seen.append({pair[0]["content"] for pair in messages})
        assert seen[0].isdisjoint(seen[1])
