"""The straight line on the shipped demo, once, and what a user can then do with the package."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import ELSEWHERE, build_of, edgetune, report_of

pytestmark = pytest.mark.line


def test_the_package_is_laid_out_as_promised(demo: Path) -> None:
    package = demo / "demo"
    entries = {p.name for p in package.iterdir()}
    assert entries == {
        "manifest.json",
        "cpu-w8a16-rtn",
        "devices",
        "self_test",
        "edgetune.lock",
        "SHA256SUMS",
        "reports",
    }
    done = subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=package, check=False)
    assert done.returncode == 0
    for path in package.rglob("*"):
        assert not path.is_symlink()
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
    assert {p.name for p in (package / "reports").iterdir()} == {
        "generic-x86-64.json",
        "generic-x86-64.md",
        "generic-x86-64.html",
    }
    session = json.loads((package / "devices" / "generic-x86-64.json").read_text())["session"]
    assert session == {"intra_op_num_threads": 2}


def test_the_report_tells_what_was_measured(demo: Path) -> None:
    report = json.loads((demo / "demo" / "reports" / "generic-x86-64.json").read_text())
    assert report["verdict"] == "pass"
    assert report["identifier"] == "demo@generic-x86-64"
    fidelity = report["fidelity"]
    for name in ("perplexity_ratio", "kl_mean", "kl_p99", "top1_agreement", "retention"):
        entry = fidelity[name]
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert fidelity["retention"]["value"] > 0.95
    assert fidelity["kl_base"]["value"] > 0.5
    metric = report["task_metrics"]["exact_match"]
    assert metric["n"] >= 200
    assert metric["base"] < 0.5
    assert metric["reference"] > 0.9
    places = fidelity["kl_by_position"]
    assert sum(row["positions"] for row in places) == fidelity["positions"]
    total = sum(row["positions"] * row["kl"]["value"] for row in places)
    assert total / fidelity["positions"] == pytest.approx(fidelity["kl_mean"]["value"])
    weights = report["weights"]
    known = sum(row["bytes"] for row in weights["modules"]) + weights["other_bytes"]
    # The rest is the graph's structure: nodes and names.
    assert 0.97 < known / report["size"]["graph_bytes"] < 1
    assert {row["bits"] for row in weights["modules"]} == {8}
    assert report["provenance"]["base"]["name"] == "edgetune-demo-base"
    assert len(report["provenance"]["adapters"]) == 1
    assert report["merge"]["tensors_used"] == report["merge"]["tensors_total"] > 0
    assert report["merge"]["parity_max_abs"] < 1e-3
    assert report["evidence"]["on_device"] is True
    assert report["providers"]["used"] == ["CPUExecutionProvider"]
    assert report["latency"]["ratio"]["value"] > 0
    assert report["latency"]["candidate"]["decode_tokens_per_s"] > 0
    assert {s["name"] for s in report["steps"]} == {
        "merge",
        "reference",
        "optimize",
        "package",
        "validate",
    }


def test_the_plan_predicted_size_and_memory(demo: Path) -> None:
    """Within a tenth of what the build then measured; the merged checkpoint's is a bound."""
    done = edgetune("build", "demo", "-d", "generic-x86-64", "-o", demo, "--plan", "--json")
    predicted = json.loads(done.stdout)["plans"][0]["predicted"]
    path = demo / "demo" / "reports" / "generic-x86-64.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    graph = report["size"]["graph_bytes"]
    assert abs(predicted["graph_bytes"] / graph - 1) < 0.1
    memory = report["latency"]["candidate"]["peak_rss_mb"] * 1e6
    assert abs(predicted["device_memory_bytes"] / memory - 1) < 0.1
    merged = next(demo.glob("steps/merge-*/model.safetensors")).stat().st_size
    assert merged <= predicted["merged_bytes"] * 1.01 <= 1.5 * merged


def test_another_device_shares_steps_and_is_honest_about_latency(
    demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    # Without an emulator, wherever this runs: `test_emulated.py` has the case with one.
    nothing = {"EDGETUNE_ENVIRONMENTS": str(tmp_path / "none")}
    flags = ["build", "demo", "-d", "raspberry-pi-5", "-o", out, "--json"]
    done = edgetune(*flags, environment=nothing)
    assert done.returncode == 0, done.stderr
    cached = {s["name"]: s["cached"] for s in build_of(done)["steps"]}
    assert cached == {
        "merge": True,
        "reference": True,
        "optimize": True,
        "package": False,
        "validate": False,
    }
    report = report_of(done)
    assert report["evidence"]["on_device"] is report["evidence"]["emulated"] is False
    assert report["emulated"]["fidelity"] is None
    assert report["emulated"]["reason"].split("; ")[1].startswith(("make it: edgetune", "install"))
    assert report["latency"]["candidate"] is None
    assert report["fidelity"]["kl_mean"]["value"] >= 0
    budget = next(c for c in report["checks"] if c["name"] == "time_to_answer_ratio")
    assert budget["verdict"] == "not measured"


def test_changing_one_input_redoes_only_what_depends_on_it(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    flags = ["build", "demo", "-d", "generic-x86-64", "--scheme", "w8a16-rtn-g128", "-o", out]
    rows = json.loads(edgetune(*flags, "--plan", "--json").stdout)["plans"][0]["steps"]
    assert {r["name"]: r["state"] for r in rows} == {
        "merge": "done",
        "reference": "done",
        "optimize": "to do",
        "package": "to do",
        "validate": "to do",
    }
    assert next(r for r in rows if r["name"] == "optimize")["why"].startswith("changed: widths")


def test_validate_needs_the_package_alone_and_leaves_it_alone(demo: Path, tmp_path: Path) -> None:
    package = tmp_path / "elsewhere"
    shutil.copytree(demo / "demo", package)
    before = {p: p.stat().st_mtime_ns for p in package.rglob("*")}
    target = tmp_path / "report.json"
    done = edgetune("validate", package, "-o", target, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads(target.read_text())
    assert report["device"] == "generic-x86-64"
    assert report["latency"]["reference"] is None
    assert report["latency"]["ratio"] is None
    assert report["latency"]["candidate"]["decode_tokens_per_s"] > 0
    assert before == {p: p.stat().st_mtime_ns for p in package.rglob("*")}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("cpu-w8a16-rtn/model.onnx.data", "flip"),
        ("self_test/items.jsonl", "flip"),
        ("devices/generic-x86-64.json", "remove"),
        ("cpu-w8a16-rtn/extra.bin", "add"),
    ],
)
def test_a_tampered_package_is_refused(demo: Path, tmp_path: Path, file: str, change: str) -> None:
    package = tmp_path / "demo"
    shutil.copytree(demo / "demo", package)
    path = package / file
    if change == "flip":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif change == "remove":
        path.unlink()
    else:
        path.write_bytes(b"x")
    done = edgetune("validate", package)
    assert done.returncode == 4
    assert file in done.stderr
    assert "Traceback" not in done.stderr


def test_run_answers_as_the_fine_tune_does(demo: Path) -> None:
    item = json.loads((demo / "demo" / "self_test" / "items.jsonl").read_text().splitlines()[0])
    data = Path(__file__).parents[2] / "recipes" / "data" / "demo" / "home.evaluation.jsonl"
    question, answer = json.loads(data.read_text().splitlines()[0])["messages"]
    done = edgetune("run", demo / "demo", question["content"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == item["reference_answer"].strip() == answer["content"]


def test_inspect_describes_a_package_and_an_output_folder(demo: Path) -> None:
    facts = json.loads(edgetune("inspect", demo / "demo", "--json").stdout)
    assert facts["kind"] == "package"
    facts = json.loads(edgetune("inspect", demo, "--json").stdout)
    assert (facts["kind"], facts["packages"]) == ("output folder", ["demo"])


def test_until_merge_gives_a_checkpoint(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    done = edgetune("build", "demo", "-o", out, "--until", "merge", "--json")
    assert done.returncode == 0, done.stderr
    entry = build_of(done)
    assert [s["name"] for s in entry["steps"]] == ["merge"]
    assert entry["steps"][0]["cached"]
    assert (Path(entry["steps"][0]["path"]) / "config.json").is_file()
    assert entry["verdict"] is entry["package"] is entry["report"] is None


@pytest.mark.slow
def test_gptq_keeps_what_rounding_to_nearest_loses(demo: Path, tmp_path: Path) -> None:
    """At a size at which rounding to nearest answers every third request rightly."""
    out = shutil.copytree(demo, tmp_path / "out", symlinks=True)
    done = edgetune("build", "demo", *ELSEWHERE, "-o", out, "--scheme", "w4a16-gptq", "--json")
    # 240 answers may leave it undecided; nothing may have failed to build.
    assert done.returncode in (0, 1, 5), done.stderr
    report = report_of(done)
    assert report["fidelity"]["kl_mean"]["high"] < 0.03
    assert report["task_metrics"]["exact_match"]["candidate"] > 0.95
    assert report["size"]["graph_bytes"] < 2_400_000
    lock = json.loads((out / "demo" / "edgetune.lock").read_text(encoding="utf-8"))
    assert lock["data"]["calibrated_on"] == "calibration data"
