"""Calibration text: whose it is, how much, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import UsageError

torch = pytest.importorskip("torch")


def arguments(checkpoint: Path, data: Path | None) -> dict[str, Any]:
    shared = {"task": "text-generation", "seed": 0, "threads": 1, "layered": False}
    return {**shared, "checkpoint": str(checkpoint), "data": str(data) if data else None}


def rows(path: Path, count: int) -> Path:
    lines = [
        json.dumps({"prompt": f"the number {n} is", "completion": " either even or odd" * 3})
        for n in range(count)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def calibrate(checkpoint: Path, data: Path | None, out: Path) -> tuple[dict[str, Any], Any]:
    from edgetune.reference.calibration import FILE, calibration_step

    out.mkdir()
    facts = calibration_step(arguments(checkpoint, data), out, lambda _: None)
    return facts, json.loads((out / FILE).read_text(encoding="utf-8"))


def test_the_recipes_data_whole_texts(tmp_path: Path, tiny_llama: Path) -> None:
    facts, texts = calibrate(tiny_llama, rows(tmp_path / "data.jsonl", 40), tmp_path / "out")
    assert facts == {
        "source": "calibration data",
        "texts": 40,
        "tokens": sum(len(text) for text in texts),
    }
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(tiny_llama).decode(texts[7])
    assert text.startswith("the number 7 is either even or odd")


def test_no_more_than_is_of_use(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune.reference import calibration

    monkeypatch.setattr(calibration, "MOST_TOKENS", 1500)
    facts, texts = calibrate(tiny_llama, rows(tmp_path / "data.jsonl", 40), tmp_path / "out")
    assert facts["tokens"] == sum(len(text) for text in texts) == 1500


def test_too_short_data_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    data = rows(tmp_path / "data.jsonl", 4)
    with pytest.raises(UsageError) as raised:
        calibrate(tiny_llama, data, tmp_path / "out")
    assert raised.value.exit_code == 2
    assert str(raised.value.message).startswith(f"{data}: ")
    assert "tokens are too few to calibrate on, 1024 are the least" in raised.value.message
    assert "add rows to data.calibration" in str(raised.value.hint)


@pytest.mark.line  # it takes seconds
def test_without_data_the_model_is_sampled(tmp_path: Path, tiny_llama: Path) -> None:
    """As the reference does for evaluation, and never the same samples."""
    from edgetune.checkpoint.trained import load_plain
    from edgetune.reference.own_text import own_items
    from edgetune.reference.tokenizer import eos_token_ids, load_tokenizer

    facts, texts = calibrate(tiny_llama, None, tmp_path / "out")
    assert facts["source"] == "text sampled from the trained model"
    assert facts["tokens"] >= 1024
    tokenizer = load_tokenizer(tiny_llama)
    model, eos = load_plain(tiny_llama), eos_token_ids(tiny_llama, tokenizer)
    evaluated = own_items(model, tokenizer, eos, 256, 0, lambda _: None)
    own = {(*item.prompt_ids, *item.target_ids) for item in evaluated}
    assert not own & {tuple(text) for text in texts}
    again, same = calibrate(tiny_llama, None, tmp_path / "again")
    assert (again, same) == (facts, texts)
