"""The line as steps: golden plans (a review of a diff here is a review of the line), and what
holds for all of them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetune.device import find_device
from edgetune.environments.emulator import Emulation
from edgetune.errors import PlanError, UsageError
from edgetune.files import shipped_folder
from edgetune.host import Host
from edgetune.line import (
    STEPS,
    merge_step,
    merge_steps,
    optimize_step,
    package_step,
    reference_step,
    settled,
    validate_step,
)
from edgetune.plan import Plan
from edgetune.planning import describe_steps, emulation_of, plan_builds
from edgetune.recipe import Recipe, find_recipe, load_recipe
from edgetune.step import Step

pytestmark = pytest.mark.line

GOLDENS = Path(__file__).parent / "goldens" / "plans"
HOST = Host("x86_64", "linux", "a processor", 4, 16 << 30, ("avx2", "fma"))
OUT = Path("/out")
PAIRS = [
    ("demo", "generic-x86-64"),
    ("demo", "raspberry-pi-5"),
    ("demo", "intel-n100"),
    ("demo-dora", "generic-x86-64"),
    ("demo-qlora", "raspberry-pi-5"),
    ("demo-two", "generic-x86-64"),
    ("demo-full", "generic-x86-64"),
    ("demo-fails", "intel-n100"),
    ("demo-erased", "generic-x86-64"),
]


@pytest.fixture(autouse=True)
def _a_host_that_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.planning.probe_host", lambda: HOST)
    for step in ("reference", "optimize"):
        monkeypatch.setattr(f"edgetune.line.{step}.usable_cores", lambda: 4)


def recipe(name: str) -> Recipe:
    return load_recipe(find_recipe(name))


def plan(name: str, device: str, out: Path, **changes: Any) -> Plan:
    return plan_builds(recipe(name).model_copy(update=changes), [device], out)[0]


def picture(plan: Plan) -> dict[str, Any]:
    """A plan and its steps without what differs between machines, versions and data."""
    store = OUT / "steps"
    package = package_step([plan], OUT)
    steps = [
        merge_step(plan),
        reference_step(plan, store),
        optimize_step(plan, store),
        package,
        validate_step(plan, package, OUT, HOST, {}),
    ]
    value = {
        "identifier": plan.identifier,
        "variant": plan.variant,
        "on_device": plan.here,
        "threads": plan.threads,
        "steps": [
            {
                "name": s.name,
                "function": s.function,
                "arguments": {k: v for k, v in s.arguments.items() if k != "lock"},
                "inputs": {k: v for k, v in s.inputs.items() if k != "code" and not is_version(v)},
            }
            for s in steps
        ],
    }
    text = json.dumps(value, indent=1, default=list) + "\n"
    text = text.replace(str(shipped_folder("recipes").resolve()), "<recipes>")
    text = re.sub(r'"[0-9a-f]{64}"', '"<digest>"', text)
    text = re.sub(r'(-|")[0-9a-f]{16}(/|")', r"\1<key>\2", text)
    return json.loads(text)  # type: ignore[no-any-return]


def is_version(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(re.fullmatch(r"\d+\.\d+.*", value)))


@pytest.mark.parametrize(("name", "device"), PAIRS, ids=lambda v: str(v))
def test_golden_plan(name: str, device: str, tmp_path: Path) -> None:
    golden = GOLDENS / f"{name}@{device}.json"
    found = picture(plan(name, device, tmp_path / "out"))
    if os.environ.get("EDGETUNE_WRITE_GOLDENS"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == json.loads(golden.read_text(encoding="utf-8"))


def keys(plan: Plan, out: Path = OUT) -> dict[str, str]:
    store = out / "steps"
    package = package_step([plan], out)
    validate = validate_step(plan, package, out, HOST, {})
    steps = (merge_step(plan), reference_step(plan, store), optimize_step(plan, store), package)
    return {s.name: s.key for s in (*steps, validate)}


def test_calibration_data_is_a_part_of_the_key_where_it_is_used(tmp_path: Path) -> None:
    """And the lock says which text it was."""
    for scheme, used in (("w4a16-gptq", True), ("w4a16-rtn", False)):
        given = plan("demo", "generic-x86-64", tmp_path / "out", scheme=scheme)
        without = replace(given, inputs=replace(given.inputs, calibration=None))
        assert (keys(given)["optimize"] != keys(without)["optimize"]) is used
        for one, words in (
            (given, "calibration data"),
            (without, "text sampled from the trained model"),
        ):
            lock = package_step([one], OUT).arguments["lock"]
            assert lock["data"]["calibrated_on"] == (words if used else None)
            arguments = optimize_step(one, OUT / "steps").arguments
            assert ("calibration" in arguments) is used
        assert keys(given)["reference"] == keys(without)["reference"]


def test_no_key_knows_a_path_and_no_probe_enters_the_package(tmp_path: Path) -> None:
    here = plan("demo", "this-machine", tmp_path / "a")
    assert keys(here, Path("/somewhere/else")) == keys(here)
    more = replace(
        here, threads=64, device=here.device.model_copy(update={"description": "another machine"})
    )
    for name in ("merge", "reference", "optimize", "package"):
        assert keys(more)[name] == keys(here)[name]


@pytest.mark.parametrize(
    ("changes", "redone"),
    [
        ({"scheme": "w4a16-rtn"}, {"optimize", "package", "validate"}),
        ({"group_size": 128}, {"optimize", "package", "validate"}),
        ({"merge_dtype": "base"}, {"merge", "reference", "optimize", "package", "validate"}),
        ({"description": "other words"}, {"package", "validate"}),
    ],
)
def test_a_change_redoes_what_depends_on_it(
    tmp_path: Path, changes: dict[str, Any], redone: set[str]
) -> None:
    before = keys(plan("demo", "generic-x86-64", tmp_path / "a"))
    after = keys(plan("demo", "generic-x86-64", tmp_path / "a", **changes))
    assert {name for name in before if before[name] != after[name]} == redone


def test_auto_shares_its_merges_with_the_builds_that_name_one(tmp_path: Path) -> None:
    auto = plan("demo-qlora", "generic-x86-64", tmp_path / "a", onto="auto")
    named = {
        onto: plan("demo-qlora", "generic-x86-64", tmp_path / "a", onto=onto)
        for onto in ("dequantized", "original")
    }
    assert [s.key for s in merge_steps(auto)] == [merge_step(p).key for p in named.values()]
    keys_of_reference = {reference_step(p, OUT / "steps").key for p in (auto, *named.values())}
    assert len(keys_of_reference) == 3
    with pytest.raises(ValueError, match="has not chosen"):
        merge_step(auto)
    taken = settled(auto, {"chosen": "original"})
    assert merge_step(taken).key == merge_step(named["original"]).key
    # what was compared stays what it was
    store = OUT / "steps"
    assert reference_step(taken, store).key == reference_step(auto, store).key


def test_auto_needs_disk_for_both_merges(tmp_path: Path) -> None:
    one = plan("demo-qlora", "generic-x86-64", tmp_path / "a").estimates
    two = plan("demo-qlora", "generic-x86-64", tmp_path / "a", onto="auto").estimates
    assert two.disk_bytes - one.disk_bytes == one.merged_bytes


def test_a_plan_with_an_open_choice_says_so(tmp_path: Path) -> None:
    auto = plan("demo-qlora", "generic-x86-64", tmp_path / "a", onto="auto")
    rows = describe_steps([auto], tmp_path / "a")
    assert [row[1] for row in rows] == ["merge", "merge", *STEPS[1:]]
    assert {row[3] for row in rows[3:]} == {"the reference chooses the merge that it is made of"}


def test_a_thorough_validation_is_another_one(tmp_path: Path) -> None:
    here = plan("demo", "generic-x86-64", tmp_path / "a")
    package = package_step([here], OUT)
    quick = validate_step(here, package, OUT, HOST, {})
    thorough = validate_step(here, package, OUT, HOST, {}, thorough=True)
    assert quick.key != thorough.key
    assert (quick.arguments["thorough"], thorough.arguments["thorough"]) == (False, True)


def test_tighter_limits_keep_the_graph(tmp_path: Path) -> None:
    plain = recipe("demo")
    tight = plain.tolerances.model_copy(update={"kl_mean": 0.001})
    before = keys(plan("demo", "generic-x86-64", tmp_path / "a"))
    after = keys(plan("demo", "generic-x86-64", tmp_path / "a", tolerances=tight))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"package", "validate"}


def test_devices_share_merge_reference_and_graph(tmp_path: Path) -> None:
    one = keys(plan("demo", "generic-x86-64", tmp_path / "a"))
    other = keys(plan("demo", "raspberry-pi-5", tmp_path / "a"))
    assert {name for name in one if one[name] == other[name]} == {"merge", "reference", "optimize"}


def test_the_lock_holds_no_path(tmp_path: Path) -> None:
    package = package_step([plan("demo-qlora", "generic-x86-64", tmp_path / "a")], OUT)
    text = json.dumps(package.arguments["lock"])
    assert "/" not in text.replace(" / ", "")
    assert '"nf4"' in text


def test_an_emulator_that_comes_or_changes_makes_another_validation(tmp_path: Path) -> None:
    here = plan("demo", "raspberry-pi-5", tmp_path / "a")
    package = package_step([here], OUT)

    def step(emulation: Emulation | str | None) -> Step:
        return validate_step(here, package, OUT, HOST, {}, emulation)

    missing = step("qemu-aarch64 is not installed here")
    assert missing.arguments["not_emulated"] == "qemu-aarch64 is not installed here"
    # A sentence with paths in it is no input; what was emulated is.
    assert missing.key == step(None).key
    seven = Emulation("aarch64", "cortex-a76", "", "/bin/q", "qemu-aarch64 7.2", None, ("asimd",))
    eight = replace(seven, emulator="qemu-aarch64 8.2")
    assert len({missing.key, step(seven).key, step(eight).key}) == 3
    assert step(seven).key == step(replace(seven, program="/elsewhere/q")).key
    assert step(seven).arguments["emulation"] == seven.as_json()


def test_a_device_elsewhere_is_emulated_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert emulation_of(find_device("generic-x86-64"), HOST) is None
    why = emulation_of(find_device("intel-n100"), HOST)
    assert isinstance(why, str)
    assert why.startswith("QEMU has no AVX-VNNI")
    monkeypatch.setenv("PATH", "/nowhere")
    why = emulation_of(find_device("raspberry-pi-5"), HOST)
    assert isinstance(why, str)
    assert why.startswith("qemu-aarch64 is not installed here; install QEMU")


def test_a_processor_that_no_emulator_knows_is_a_problem_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_device: object, _host: object) -> Emulation:
        msg = "my-box: qemu-aarch64 7.2 knows no processor 'cortex-a99'"
        raise UsageError(msg)

    monkeypatch.setattr("edgetune.planning.find_emulation", unknown)
    with pytest.raises(PlanError, match="knows no processor 'cortex-a99'"):
        plan("demo", "raspberry-pi-5", tmp_path / "a")
