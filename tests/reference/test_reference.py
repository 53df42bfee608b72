"""The step: what it writes is what plain torch says, and a merge that is not exact stops it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetune.checkpoint.trained import load_base_alone, load_trained_model
from edgetune.errors import StepFailedError, UsageError
from edgetune.reference.reference import reference_step
from tests.reference.conftest import CHATS, Arguments, merge, write_chats

pytestmark = pytest.mark.line

Make = Callable[..., Arguments]
ARRAYS = ("top_ids", "top_logprobs", "rest_logprob", "target_logprob", "base_kl")


def quiet(_: str) -> None:
    """Progress that nobody looks at."""


def run(arguments: Arguments, out: Path) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """(facts, self_test.json, items.jsonl) of a run."""
    out.mkdir(exist_ok=True)
    facts = reference_step(arguments, out, quiet)
    json.dumps(facts, allow_nan=False)
    head = json.loads((out / "self_test" / "self_test.json").read_text())
    lines = (out / "self_test" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return facts, head, [json.loads(line) for line in lines]


def logprobs(model: Any, item: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of one plain pass, float64 [targets, vocabulary]."""
    ids = torch.tensor([item["prompt_ids"] + item["target_ids"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(item["prompt_ids"]) - 1 : -1]
    return torch.log_softmax(logits.double(), -1)


def test_what_is_written_is_what_the_models_say(
    arguments: Make, tiny_phi3: Path, tokenizer: Any, tmp_path: Path
) -> None:
    job = arguments()
    facts, head, items = run(job, tmp_path)
    trained = load_trained_model(tiny_phi3, None, job["adapters"])
    base = load_base_alone(tiny_phi3, None, job["adapters"])
    log_p = torch.cat([logprobs(trained, item) for item in items])
    log_q = torch.cat([logprobs(base, item) for item in items])
    targets = torch.tensor([token for item in items for token in item["target_ids"]])
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    rows = torch.arange(len(targets))

    stored = np.load(tmp_path / "logprobs.npy")
    assert (stored.dtype, stored.shape) == (np.float32, (len(targets), 288))
    assert stored == pytest.approx(log_p.numpy(), abs=1e-4)
    array = {name: np.load(tmp_path / "self_test" / f"{name}.npy") for name in ARRAYS}
    assert array["top_ids"].shape == array["top_logprobs"].shape == (len(targets), 64)
    assert array["target_logprob"] == pytest.approx(log_p[rows, targets].numpy(), abs=1e-4)
    assert array["base_kl"] == pytest.approx(kl.numpy(), abs=1e-4)

    assert facts["kl_base"] == head["kl_base"]["value"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert head["retention_defined"] is True
    assert facts["positions"] == head["positions"] == len(targets)
    assert facts["items"] == head["items"] == head["items_in_data"] == len(CHATS)
    assert head["eos_token_ids"] == [259]
    assert (head["vocabulary_size"], head["top_k"]) == (288, 64)
    longest = max(len(item["target_ids"]) for item in items)
    assert head["max_new_tokens"] == longest + 8
    assert head["source"] == "evaluation data"

    first = log_p[: len(items[0]["target_ids"])]
    mean = float(first[torch.arange(len(first)), targets[: len(first)]].mean())
    assert items[0]["reference_answer_logprob"] == pytest.approx(mean, abs=1e-5)
    metric = head["metrics"]["answer_logprob"]
    assert metric["reference"] == pytest.approx(
        np.mean([item["reference_answer_logprob"] for item in items])
    )
    assert metric["n"] == head["metrics"]["exact_match"]["n"] == len(CHATS)
    for name, model in (("reference_answer", trained), ("base_answer", base)):
        ids = torch.tensor([items[1]["prompt_ids"]])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=longest + 8, eos_token_id=259, pad_token_id=259,
        )  # fmt: skip
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert items[1][name] == answer
    assert [item["answer"] for item in items] == [answer for _, answer in CHATS]


def test_right_and_wrong_answers_are_counted(
    arguments: Make, tiny_phi3: Path, taught: Path, tmp_path: Path
) -> None:
    chats = write_chats(tmp_path / "chats.jsonl", [*CHATS, ("a", "something else")])
    full = {"base": {"path": str(taught), "trained_as": None}, "adapters": []}
    job = arguments(
        **full, base_before=str(tiny_phi3), checkpoint=str(taught), evaluation=str(chats)
    )
    _, head, items = run(job, tmp_path / "out")
    assert [item["reference_exact"] for item in items] == [True] * len(CHATS) + [False]
    assert [item["base_exact"] for item in items] == [False] * len(items)
    assert items[-1]["reference_answer"] == CHATS[2][1]
    metric = head["metrics"]["exact_match"]
    assert metric == {"base": 0.0, "reference": 0.8, "n": 5}
    assert (
        head["metrics"]["answer_logprob"]["base"] < head["metrics"]["answer_logprob"]["reference"]
    )


def test_an_exact_merge_is_let_through(arguments: Make, tmp_path: Path) -> None:
    facts, _, _ = run(arguments(), tmp_path)
    assert facts["parity_max_abs"] < 1e-5
    assert facts["parity_limit"] == 1e-4 * max(1.0, facts["largest_logit"])
    assert facts["parity_enforced"] is True
    assert facts["parity_against"] == "trained model"
    assert {path.name for path in tmp_path.iterdir()} == {"logprobs.npy", "self_test"}


def test_a_merge_that_is_not_exact_stops_the_build(
    arguments: Make, tiny_phi3: Path, tmp_path: Path
) -> None:
    with pytest.raises(StepFailedError) as caught:
        run(arguments(checkpoint=str(tiny_phi3)), tmp_path)
    assert caught.value.exit_code == 6
    assert "not the same model as the trained model: logits differ by up to" in str(caught.value)
    assert "allowed are" in str(caught.value)
    assert caught.value.hint


def test_a_merge_rounded_to_the_base_s_type_is_reported_only(
    arguments: Make, tiny_phi3: Path, tmp_path: Path
) -> None:
    facts, _, _ = run(arguments(checkpoint=str(tiny_phi3), merge_dtype="base"), tmp_path)
    assert facts["parity_enforced"] is False
    assert facts["parity_max_abs"] > facts["parity_limit"]


def test_a_merge_with_another_vocabulary_stops_the_build(arguments: Make, tmp_path: Path) -> None:
    from tests.tiny import build_base

    other = build_base(tmp_path / "other", "phi3", vocab_size=300)
    with pytest.raises(StepFailedError, match="vocabulary of 300, expected 288"):
        run(arguments(checkpoint=str(other)), tmp_path / "out")


@pytest.mark.line
def test_a_merge_onto_the_original_is_held_to_the_original(
    arguments: Make, tiny_phi3: Path, lora: Path, merged: Path, tmp_path: Path
) -> None:
    four_bit = {"type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
    base = {"path": str(tiny_phi3), "trained_as": four_bit}
    facts, _, _ = run(arguments(base=base, onto="original"), tmp_path / "original")
    assert facts["parity_against"] == "adapters over the original base"
    assert facts["parity_max_abs"] < 1e-5
    assert not (tmp_path / "original" / "original.npy").exists()
    # the reference stays the model that was trained, on the 4-bit weights
    plain = tmp_path / "plain"
    run(arguments(), plain)
    trained = [np.load(folder / "logprobs.npy") for folder in (tmp_path / "original", plain)]
    assert np.abs(trained[0] - trained[1]).max() > 1e-3
    # and a merge onto the original is not what was trained
    with pytest.raises(StepFailedError, match="not the same model as the trained model"):
        run(arguments(base=base), tmp_path / "dequantized")


def test_a_full_fine_tune_has_nothing_to_retain_unless_its_base_is_named(
    arguments: Make, tiny_phi3: Path, merged: Path, tmp_path: Path
) -> None:
    full = {"base": {"path": str(merged), "trained_as": None}, "adapters": []}
    facts, head, items = run(arguments(**full), tmp_path / "unnamed")
    assert facts["kl_base"] is None
    assert head["kl_base"] is None
    assert head["retention_defined"] is False
    assert head["metrics"]["exact_match"]["base"] is None
    assert items[0]["base_answer"] is items[0]["base_exact"] is None
    assert not (tmp_path / "unnamed" / "self_test" / "base_kl.npy").exists()

    facts, head, items = run(arguments(**full, base_before=str(tiny_phi3)), tmp_path / "named")
    assert facts["kl_base"] > 0.01
    assert head["retention_defined"] is True
    assert items[0]["base_answer"] is not None


def test_a_base_before_with_another_vocabulary_is_refused(
    arguments: Make, merged: Path, tmp_path: Path
) -> None:
    from tests.tiny import build_base

    other = build_base(tmp_path / "other", "phi3", vocab_size=300)
    full = {"base": {"path": str(merged), "trained_as": None}, "adapters": []}
    with pytest.raises(UsageError, match="base alone has a vocabulary of 300"):
        run(arguments(**full, base_before=str(other)), tmp_path / "out")


def test_an_adapter_that_changes_nothing_has_nothing_to_retain(
    arguments: Make, tiny_phi3: Path, tmp_path: Path
) -> None:
    from tests.tiny import make_adapter

    zero = make_adapter(
        tiny_phi3, folder=tmp_path / "zero", target_modules=["qkv_proj"], strength=0.0
    )
    same = merge(tiny_phi3, zero, tmp_path / "same")
    adapters = [{"path": str(zero), "weight": 1.0}]
    facts, head, _ = run(arguments(adapters=adapters, checkpoint=str(same)), tmp_path / "out")
    assert facts["kl_base"] == 0
    assert head["retention_defined"] is False


@pytest.mark.line
def test_without_data_the_model_s_own_text_is_scored(arguments: Make, tmp_path: Path) -> None:
    facts, head, items = run(arguments(evaluation=None), tmp_path / "one")
    assert head["source"] == "sampled and built-in text"
    assert head["metrics"] == {}
    assert head["max_new_tokens"] == 0
    assert len(items) == facts["items"] == 30
    assert all(item["answer"] is item["reference_answer"] is None for item in items)
    samples = [item for item in items if item["id"].startswith("sample/")]
    assert len(samples) == 24
    assert max(len(item["target_ids"]) for item in samples) <= 64
    assert samples[12]["prompt_text"].startswith("<|user|>Hello")
    other = run(arguments(evaluation=None, seed=1), tmp_path / "other")[2]
    assert other != items


def test_data_that_does_not_fit_is_refused_with_its_line(arguments: Make, tmp_path: Path) -> None:
    path = write_chats(tmp_path / "long.jsonl", [("hi", "ab"), ("there " * 300, "ab")])
    with pytest.raises(UsageError, match=r"long.jsonl:2: \d+ tokens, and the model takes 256"):
        run(arguments(evaluation=str(path)), tmp_path / "out")
    path.write_text("")
    with pytest.raises(UsageError, match="the file is empty"):
        run(arguments(evaluation=str(path)), tmp_path / "out")


def test_positions_are_limited_and_the_rest_is_told(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune.reference import reference

    monkeypatch.setattr(reference, "most_positions", lambda _vocabulary: 20)
    facts, head, _ = run(arguments(), tmp_path)
    assert facts["positions"] <= 20 < head["positions_in_data"]
    assert facts["items"] < head["items_in_data"] == len(CHATS)


@pytest.mark.slow
@pytest.mark.line
def test_two_processes_write_the_same_bytes(
    arguments: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune.child import run_child
    from edgetune.files import digests_of_folder

    digests = []
    for zone in ("UTC", "Asia/Tokyo"):
        monkeypatch.setenv("TZ", zone)
        out = tmp_path / zone.replace("/", "-")
        out.mkdir()
        run_child(
            "edgetune.reference.reference:reference_step",
            arguments(evaluation=None),
            out,
            log=tmp_path / "log",
            progress=quiet,
        )
        digests.append(digests_of_folder(out))
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_private_data_is_measured_and_stays_at_home(arguments: Make, tmp_path: Path) -> None:
    facts, head, items = run(arguments(), tmp_path / "open")
    private, private_head, private_items = run(
        arguments(self_test_data="builtin"), tmp_path / "private"
    )
    # What the build measures on is the same to the last byte.
    assert (private, private_head, private_items) == (facts, head, items)
    for name in ("logprobs.npy", "self_test/items.jsonl", "self_test/top_logprobs.npy"):
        same = (tmp_path / "private" / name).read_bytes()
        assert same == (tmp_path / "open" / name).read_bytes()
    assert head["evaluation_text"] == {
        "items": len(CHATS),
        "bytes": (tmp_path / "open/self_test/items.jsonl").stat().st_size,
    }
    # What ships has no word of it, and is what a build without data measures.
    assert not (tmp_path / "private" / "shipped_logprobs.npy").exists()
    shipped = tmp_path / "private" / "shipped_self_test"
    run(arguments(evaluation=None), tmp_path / "none")
    for name in sorted(path.name for path in shipped.iterdir()):
        own = (tmp_path / "none" / "self_test" / name).read_bytes()
        assert (shipped / name).read_bytes() == own, name
    assert json.loads((shipped / "self_test.json").read_text())["evaluation_text"] is None
    carried = b"".join(path.read_bytes() for path in sorted(shipped.iterdir()))
    told = [text for chat in CHATS for text in chat if len(text) > 6]
    assert told
    assert [text for text in told if text.encode() in carried] == []


@pytest.mark.slow
def test_private_data_that_is_none_changes_nothing(arguments: Make, tmp_path: Path) -> None:
    run(arguments(evaluation=None, self_test_data="builtin"), tmp_path / "private")
    run(arguments(evaluation=None), tmp_path / "open")
    assert not (tmp_path / "private" / "shipped_self_test").exists()
    for path in sorted((tmp_path / "open" / "self_test").iterdir()):
        assert (tmp_path / "private/self_test" / path.name).read_bytes() == path.read_bytes()
