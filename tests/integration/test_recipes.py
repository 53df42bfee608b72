"""Every shipped recipe, whole, with the verdict it was made for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import ELSEWHERE, edgetune, report_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "out"


@pytest.mark.parametrize("name", ["demo-dora", "demo-qlora", "demo-two", "demo-full"])
def test_a_good_recipe_passes(out: Path, name: str) -> None:
    done = edgetune("build", name, *ELSEWHERE, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    report = report_of(done)
    assert report["fidelity"]["retention"]["value"] >= 0.95
    assert report["task_metrics"]["exact_match"]["base"] < 0.5


def test_demo_fails_fails_and_says_what_was_lost(out: Path) -> None:
    done = edgetune("build", "demo-fails", *ELSEWHERE, "-o", out, "--json")
    assert done.returncode == 1, done.stderr
    report = report_of(done)
    assert report["verdict"] == "fail"
    failed = {c["name"] for c in report["checks"] if c["verdict"] == "fail"}
    assert failed & {"retention", "kl_mean"}
    text = (out / "demo-fails" / "reports" / f"{report['device']}.md").read_text()
    assert "of what the fine-tune changed" in text


def test_demo_erased_is_lost_at_4_bits_and_survives_at_8(out: Path) -> None:
    """The same adapter: below the step of the one scheme, above the noise of the other."""
    done = edgetune("build", "demo-erased", *ELSEWHERE, "-o", out, "--thorough", "--json")
    assert done.returncode == 1, done.stderr
    lost = report_of(done)
    failed = {c["name"] for c in lost["checks"] if c["verdict"] == "fail"}
    assert {"retention", "exact_match_drop"} <= failed
    assert lost["fidelity"]["retention"]["value"] < 0
    modules = lost["survival"]["modules"]
    assert len(modules) == 16
    assert all(m["snr"] < 1 and m["below_step"] > 0.99 for m in modules)
    assert lost["survival"]["items"] == 240
    worst = modules[0]
    assert worst["kl_mean"]["value"] == max(m["kl_mean"]["value"] for m in modules)
    assert worst["retention"]["value"] < 0.5 < modules[-1]["retention"]["value"]
    least = min(modules, key=lambda m: m["snr"])
    text = (out / "demo-erased" / "reports" / f"{lost['device']}.md").read_text()
    assert f"erased in: {least['name']}".replace("_", "\\_") in text

    done = edgetune(
        "build", "demo-erased", *ELSEWHERE, "--scheme", "w8a16-rtn", "-o", out, "--json"
    )
    assert done.returncode == 0, done.stderr
    kept = report_of(done)
    assert kept["fidelity"]["retention"]["low"] >= 0.95
    metric = kept["task_metrics"]["exact_match"]
    assert metric["base"] < 0.2 < 0.9 < metric["candidate"]
    assert lost["task_metrics"]["exact_match"]["candidate"] < 0.5
    assert f"less than the limit: {worst['name']}".replace("_", "\\_") in text
    below = {m["name"]: m["snr"] for m in modules}
    assert all(m["snr"] > 5 * below[m["name"]] for m in kept["survival"]["modules"])


def test_auto_takes_the_merge_that_is_the_trained_model(out: Path) -> None:
    done = edgetune("build", "demo-qlora", *ELSEWHERE, "--onto", "auto", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    merge = report_of(done)["merge"]
    assert merge["onto"] == merge["certificate"]["chosen"] == "dequantized"
    own, other = merge["certificate"]["candidates"]
    assert own["kl_mean"]["value"] < 1e-9
    assert other["kl_mean"]["low"] > 1e-3
    assert merge["modules"]["count"] == 16


def test_a_qlora_merged_onto_weights_it_never_saw_fails(out: Path) -> None:
    done = edgetune("build", "demo-qlora", *ELSEWHERE, "--onto", "original", "-o", out, "--json")
    assert done.returncode == 1, done.stderr
    report = report_of(done)
    assert report["merge"]["onto"] == "original"
    assert report["merge"]["parity_against"] == "adapters over the original base"
    assert report["task_metrics"]["exact_match"]["difference"] < -0.04


def test_a_merge_in_the_base_s_type_reports_its_rounding(out: Path) -> None:
    done = edgetune("build", "demo", *ELSEWHERE, "--merge-dtype", "base", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    merge = report_of(done)["merge"]
    assert merge["rounding_max_abs"] > 0
    assert merge["parity_enforced"] is False


def test_without_quantization_nothing_is_lost(out: Path) -> None:
    done = edgetune("build", "demo", *ELSEWHERE, "--scheme", "fp32", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    report = report_of(done)
    assert report["variant"] == "cpu-fp32"
    assert report["fidelity"]["kl_mean"]["value"] < 1e-6


def test_a_cache_of_8_bits_keeps_the_answers(out: Path) -> None:
    flags = (*ELSEWHERE, "--kv-cache", "int8", "-o", out)
    done = edgetune("build", "demo", *flags, "--json")
    assert done.returncode == 0, done.stderr
    report = report_of(done)
    assert report["variant"] == "cpu-w8a16-rtn-kv8"
    assert 0 < report["fidelity"]["kl_mean"]["high"] < 0.002
    lock = json.loads((out / "demo" / "edgetune.lock").read_text(encoding="utf-8"))
    assert lock["data"]["calibrated_on"] == "calibration data"
    assert lock["recipe"]["kv_cache"] == "int8"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-a", "triage-lora", "-a", "booking-dora"], "DoRA"),
        (["-a", "triage-lora", "-a", "velan-qlora"], "different bases"),
    ],
)
def test_adapters_that_do_not_add_up_are_refused(
    tmp_path: Path, flags: list[str], sentence: str
) -> None:
    data = Path(__file__).parents[2] / "recipes" / "data" / "demo"
    flags = [str(data / f) if f != "-a" else f for f in flags]
    done = edgetune("build", "-m", data / "edgetune-demo-base", *flags, "-o", tmp_path / "out")
    assert done.returncode == 4
    assert sentence in done.stderr


def test_flags_alone_are_enough_without_data(tmp_path: Path) -> None:
    data = Path(__file__).parents[2] / "recipes" / "data" / "demo"
    done = edgetune(
        *("build", "-m", data / "edgetune-demo-base", "-a", data / "triage-lora", *ELSEWHERE),
        *("-o", tmp_path / "out", "--json"),
    )
    assert done.returncode == 0, done.stderr
    report = report_of(done)
    assert report["identifier"] == "triage-lora@elsewhere"
    assert report["task_metrics"] == {}
