"""The command line from outside: documents, exit codes, sentences. No step runs here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune.__main__ import run


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(list(arguments)) == 0
    return json.loads(capsys.readouterr().out)


def test_devices_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    rows = document(capsys, "devices", "list", "--json")["devices"]
    names = [row["name"] for row in rows]
    assert {"generic-x86-64", "raspberry-pi-5", "intel-n100", "this-machine"} <= set(names)
    assert document(capsys, "devices", "show", "raspberry-pi-5", "--json")["arch"] == "aarch64"
    assert run(["devices", "show", "raspberry-pi-5"]) == 0
    told = capsys.readouterr().out
    assert "[datasheet] Raspberry Pi 5 product brief" in told
    assert "emulated by: cortex-a76" in told
    assert run(["devices", "show", "intel-i5-12400"]) == 0
    told = capsys.readouterr().out
    assert "[unverified]" in told
    assert "emulated by: nothing: QEMU has no AVX-VNNI" in told


def test_devices_probe_writes_a_profile_that_builds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "my-box.yaml"
    assert run(["devices", "probe", "--quick", "-o", str(path)]) == 0
    assert document(capsys, "devices", "show", str(path), "--json")["name"] == "my-box"
    assert run(["devices", "probe", "--quick", "-o", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("build demo --self-test-data none", "'none' is not one of 'evaluation', 'builtin'"),
        ("build demo --self-test-data", "requires an argument"),
        ("build demo --lm-eval {tmp}/file -o {tmp}/out", "--lm-eval {tmp}/file: {tmp}/file is a"),
        ("build demo --lm-eval {tmp}/file/x -o {tmp}/out", "{tmp}/file is a file"),
        ("build demo --lm-eval {tmp}/out/demo/x -o {tmp}/out", "inside the package"),
        ("build demo --lm-eval {tmp}/x --until package -o {tmp}/out", "--until package ends befo"),
        ("validate {tmp} --lm-eval {tmp}/x", "inside the package"),
        ("validate {tmp}/none --lm-eval {tmp}/file", "{tmp}/file is a file"),
    ],
)
def test_flags_for_data_and_other_tools_are_checked_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: str, words: str
) -> None:
    (tmp_path / "file").write_text("x")
    assert run(arguments.format(tmp=tmp_path).split()) == 2
    assert words.format(tmp=tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_plan_tells_what_the_data_is_too_small_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = tmp_path / "few.jsonl"
    rows = [{"prompt": f"what is {n * n}?", "completion": f"a {n}"} for n in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ("build", "demo", "--data", str(data), "-o", str(tmp_path / "out"), "--plan")
    (warning,) = document(capsys, *flags, "--json")["warnings"]
    assert "30 items with an expected answer cannot exclude a loss of 2 points" in warning
    assert "that takes 133" in warning
    assert run(list(flags)) == 0
    assert f"warning: {warning}" in capsys.readouterr().err


def test_recipes_list_show_init(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = document(capsys, "recipes", "list", "--json")["recipes"]
    shipped = {
        "demo",
        "demo-dora",
        "demo-qlora",
        "demo-two",
        "demo-full",
        "demo-fails",
        "demo-erased",
    }
    # Their base is made, not shipped: they are listed with and without it.
    shipped |= {"smollm2-lora", "smollm2-dora", "smollm2-qlora"}
    assert shipped <= {row["name"] for row in rows}
    assert all(row["task"] == "text-generation" for row in rows)
    assert run(["recipes", "show", "demo"]) == 0
    assert "home-lora" in capsys.readouterr().out
    path = tmp_path / "mine.yaml"
    assert run(["recipes", "init", str(path)]) == 0
    assert run(["recipes", "init", str(path)]) == 2
    assert path.read_text().startswith("# A recipe")


def test_doctor_finds_this_environment_fit(capsys: pytest.CaptureFixture[str]) -> None:
    checks = document(capsys, "doctor", "--json")["checks"]
    assert {"python", "onnxruntime", "memory", "disk"} <= {c["name"] for c in checks}
    assert not [c for c in checks if c["state"] == "fault"]


def test_doctor_tells_what_emulation_lacks_and_is_fit_without_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("EDGETUNE_ENVIRONMENTS", str(tmp_path / "environments"))
    checks = {c["name"]: c for c in document(capsys, "doctor", "--json")["checks"]}
    assert checks["emulator aarch64"]["found"] == "qemu-aarch64 is not installed here"
    assert checks["emulator aarch64"]["remedy"].endswith("apt-get install qemu-user")
    assert checks["environment aarch64"]["remedy"].endswith("edgetune doctor --make aarch64")
    assert checks["environment aarch64"]["state"] == "note"
    assert run(["doctor", "--make", "aarch64"]) == 3
    assert "qemu-aarch64 is not installed here" in capsys.readouterr().err
    assert not (tmp_path / "environments").exists()


def test_doctor_sees_an_environment_of_other_versions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGETUNE_ENVIRONMENTS", str(tmp_path))
    record = tmp_path / "aarch64" / "environment.json"
    record.parent.mkdir()
    record.write_text('{"wheels": ["onnxruntime-1.0-cp311", "onnxruntime_genai-0.1-cp311"]}')
    checks = {c["name"]: c for c in document(capsys, "doctor", "--json")["checks"]}
    assert "has another onnxruntime than" in checks["environment aarch64"]["found"]
    assert checks["environment aarch64"]["remedy"].startswith("make it again")


def test_doctor_names_a_fault_with_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune import doctor

    versions = {"olive-ai": "0.13.0", "requests": None, "onnxruntime-genai": None}
    monkeypatch.setattr(
        doctor, "versions_of", lambda *names: {name: versions.get(name) for name in names}
    )
    assert run(["doctor", "--json"]) == 3
    checks = json.loads(capsys.readouterr().out)["checks"]
    fault = next(c for c in checks if c["name"] == "olive-ai without requests")
    assert fault["remedy"] == "python -m pip install requests"


CASES = [
    (["build"], 2, "nothing to build: name a recipe, or a base model with -m"),
    (["build", "demmo"], 2, "demmo: no such recipe file or shipped recipe"),
    (["build", "demo", "-d", "no-such-device"], 2, "no device is called 'no-such-device'"),
    (["build", "demo", "--scheme", "w3a5-magic"], 2, "no scheme is called 'w3a5-magic'"),
    (["build", "demo", "--scheme", "w8a16-rtn-g33"], 2, "takes no group size 33"),
    (["build", "demo", "--only", "*@mars"], 2, "--only *@mars: no build matches"),
    (["build", "demo", "--task", "text-generatoin"], 2, "text-generatoin"),
    (["build", "demo", "--trained-as", "nf5"], 2, "--trained-as nf5: not of the form"),
    (["build", "demo", "--data", "nowhere.jsonl"], 2, "nowhere.jsonl"),
    (["build", "demo", "--until", "mergee"], 2, "'mergee' is not one of"),
    (["build", "-m", "nowhere"], 4, "nowhere: no such model folder"),
    (["build", "demo", "-a", "nowhere"], 4, "nowhere: no such adapter folder"),
    (["validate", "nowhere"], 4, "nowhere: no such folder"),
    (["validate", "x", "-o", "x/report.json"], 2, "inside the package"),
    (["run", "nowhere", "hello"], 4, "nowhere: no such folder"),
    (["inspect", "nowhere"], 4, "nowhere: no such file or folder"),
    (["validate", "x", "--emulate", "a", "-d", "b"], 2, "--emulate a and -d b name two devices"),
    (["doctor", "--from", "."], 2, "--from .: of which environment?"),
    (["doctor", "--make", "riscv"], 2, "'riscv' is not 'aarch64'"),
    (["devices", "show", "rpi"], 2, "no device is called 'rpi'"),
    (["recipes", "show", "nothing"], 2, "nothing: no such recipe file"),
    (["bulid"], 2, "No such command 'bulid'"),
    (["build", "--shceme", "x"], 2, "No such option"),
]


@pytest.mark.parametrize(("arguments", "code", "sentence"), CASES, ids=lambda v: str(v)[:40])
def test_each_mistake_has_its_sentence_and_code(
    arguments: list[str],
    code: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    told = capsys.readouterr().err
    assert sentence in told
    assert "error" in told.lower()
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_a_foreign_output_folder_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run(["build", "demo", "-o", str(tmp_path)]) == 2
    assert "edgetune writes into its own only" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_every_problem_is_listed_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["build", "demo", "-d", "no-such", "-a", str(tmp_path / "a"), "--data", "no.jsonl"]
    assert run([*arguments, "-o", str(tmp_path / "out")]) == 4
    told = capsys.readouterr().err
    assert "3 problems, nothing was started" in told
    for part in ("no-such", "no such adapter folder", "no.jsonl"):
        assert part in told
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_made_and_absent_says_how_to_make_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "big.yaml"
    recipe.write_text("base: {path: ../big-base, made_by: python make_big.py}\n")
    assert run(["build", str(recipe), "-o", str(tmp_path / "out")]) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "big-base: the recipe's base is not here" in told
    assert "hint: make it: python make_big.py" in told
    assert run(["recipes", "show", "smollm2-qlora"]) == 0
    assert "make_smollm2.py" in capsys.readouterr().out


def test_too_little_disk_is_known_before_the_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("edgetune.planning.shutil.disk_usage", lambda _path: usage)
    assert run(["build", "demo", "-o", str(tmp_path / "out")]) == 3
    assert "GB of disk (predicted)" in capsys.readouterr().err


def test_a_model_too_large_for_the_device_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    profile = tmp_path / "tiny-box.yaml"
    assert run(["devices", "probe", "--quick", "-o", str(profile)]) == 0
    text = re.sub(r"memory_gb: {value: [\d.]+", "memory_gb: {value: 0.01", profile.read_text())
    profile.write_text(text)
    assert run(["build", "demo", "-d", str(profile), "-o", str(tmp_path / "out")]) == 2
    assert "(predicted), tiny-box has 0.0 GB" in capsys.readouterr().err


def test_inspect_says_what_a_path_is(capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(__file__).resolve().parent.parent / "recipes" / "data" / "demo"
    base = document(capsys, "inspect", str(data / "edgetune-demo-base"), "--json")
    assert (base["kind"], base["model_type"], base["problems"]) == ("model", "phi3", [])
    dora = document(capsys, "inspect", str(data / "booking-dora"), "--json")
    assert (dora["kind"], dora["type"]) == ("adapter", "DoRA")
    assert dora["rank_pattern"] == {"gate_up_proj": 6}


def test_inspect_shows_nested_facts_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    dora = Path(__file__).resolve().parent.parent / "recipes" / "data" / "demo" / "booking-dora"
    assert run(["inspect", str(dora)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["kind: adapter", "name: booking-dora"]
    at = lines.index("rank_pattern:")
    assert lines[at : at + 2] == ["rank_pattern:", "  gate_up_proj: 6"]
    assert "  - qkv_proj" in lines
    assert lines[-1] == "problems: none"
    assert not any("{" in line or "None" in line for line in lines)


def test_plan_shows_what_would_be_done_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    both = ["-d", "generic-x86-64", "-d", "raspberry-pi-5", "-o", str(out)]
    plans = document(capsys, "build", "demo", *both, "--plan", "--json")["plans"]
    assert [p["identifier"] for p in plans] == ["demo@generic-x86-64", "demo@raspberry-pi-5"]
    assert {p["variant"] for p in plans} == {"cpu-w8a16-rtn"}
    assert {s["why"] for p in plans for s in p["steps"]} == {"not built yet"}
    assert plans[1]["on_device"] is False
    assert not out.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_there(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgetune"],
        env={**os.environ, "_EDGETUNE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_EDGETUNE_COMPLETE" in done.stdout
