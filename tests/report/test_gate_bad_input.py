"""What can be wrong with what a gate is given, one row each: how it came to be, the command, the
exit code, the words. Nothing is written then, and no verdict is shown.

To add a row: a function that spoils the `World`, and a line in `ROWS`.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgetune.__main__ import run
from edgetune.checksums import write_checksums
from edgetune.files import digest_of_json, digests_of_folder
from tests.report.compared import put, whole

RECIPE = {"name": "demo", "scheme": "w8a16-rtn"}
ONE = "gate {new} --junit {junit} --summary {summary}"
TWO = "gate {new} --baseline {old} --junit {junit} --summary {summary}"
PACKAGE = "gate {package} --junit {junit}"


@dataclass(frozen=True)
class World:
    """Two sound reports and a sound package, in a folder of the row's own."""

    tmp: Path

    def path(self, name: str) -> Path:
        return self.tmp / name

    @property
    def names(self) -> dict[str, str]:
        files = {"new": "new.json", "old": "old.json", "junit": "o/g.xml", "summary": "o/g.md"}
        folders = {"package": "demo", "folder": "folder"}
        return {name: str(self.tmp / file) for name, file in {**files, **folders}.items()} | {
            "tmp": str(self.tmp)
        }


def make_package(folder: Path, source: str | None = None) -> Path:
    """A package in all that the gate looks at, with its report."""
    if source is not None:
        put(folder / "self_test" / "self_test.json", json.dumps({"source": source}))
    put(folder / "manifest.json", "{}")
    put(folder / "edgetune.lock", json.dumps({"recipe": RECIPE}))
    put(folder / "self_test" / "items.jsonl", "{}\n")
    digest = write_checksums(folder)
    inputs = {
        "recipe": digest_of_json(RECIPE),
        "self_test": digest_of_json(digests_of_folder(folder / "self_test")),
    }
    put(folder / "reports" / "r.json", whole(package_digest=digest, inputs=inputs))
    return folder


Spoil = Callable[[World], Any]


def change(file: str, **changes: Any) -> Spoil:
    """Set values of a report as an editor would; `checks__0__limit` names a list's entry."""

    def spoil(world: World) -> None:
        path = world.path(file)
        value = json.loads(path.read_text())
        for key, new in changes.items():
            *parents, last = key.split("__")
            place = value
            for parent in parents:
                place = place[int(parent) if isinstance(place, list) else parent]
            place[int(last) if isinstance(place, list) else last] = copy.deepcopy(new)
        put(path, value)

    return spoil


def text(file: str, content: str | bytes) -> Spoil:
    def spoil(world: World) -> None:
        world.path(file).parent.mkdir(parents=True, exist_ok=True)
        world.path(file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def replace(file: str, old: str, new: str) -> Spoil:
    def spoil(world: World) -> None:
        before = world.path(file).read_text()
        assert old in before
        put(world.path(file), before.replace(old, new, 1))

    return spoil


def truncate(world: World) -> None:
    whole_text = world.path("new.json").read_text()
    put(world.path("new.json"), whole_text[: len(whole_text) // 2])


def copied(world: World) -> None:
    put(world.path("copy.json"), world.path("new.json").read_text())


def empty_folder(world: World) -> None:
    world.path("folder").mkdir()


def loop(world: World) -> None:
    world.path("loop.json").symlink_to(world.path("loop.json"))


def fifo(world: World) -> None:
    os.mkfifo(world.path("pipe.json"))


def huge(world: World) -> None:
    with world.path("huge.json").open("wb") as file:
        file.truncate(65 << 20)


def removed(file: str) -> Spoil:
    return lambda world: world.path(file).unlink()


def nothing(world: World) -> None:
    """The command alone is wrong."""


def better_ratio(world: World) -> None:
    put(world.path("new.json"), whole(latency__candidate__rounds_ms=[]))
    change("new.json", latency__ratio={"value": 0.1, "low": 0.1, "high": 0.1})(world)


def two_baselines(world: World) -> None:
    for name in ("a", "b"):
        put(world.path(f"folder/{name}.json"), whole(examples=[{"id": name}]))


def is_a_folder(name: str) -> Spoil:
    return lambda world: world.path(name).mkdir(parents=True)


NESTED = '{"a":' * 20_000 + "1" + "}" * 20_000

ROWS: list[tuple[str, Spoil, str, int, str]] = [
    # what cannot be compared
    ("another recipe", change("old.json", inputs={"recipe": "q", "self_test": "s"}), TWO, 2,
     "cannot be compared: their recipes differ (r, q)"),
    ("another reference", change("old.json", inputs={"recipe": "r", "self_test": "t"}), TWO, 2,
     "cannot be compared: their references differ (s, t)"),
    ("both differ", change("old.json", inputs={"recipe": "q", "self_test": "t"}), TWO, 2,
     "their recipes differ (r, q)\n"),
    ("no digests", change("new.json", inputs={}), TWO, 2, "recipes differ (none given, r)"),
    ("another device", change("old.json", identifier="demo@board", device="board"), TWO, 2,
     "no baseline for demo@this-machine (there are: demo@board)"),
    ("several baselines", two_baselines, "gate {new} --baseline {folder}", 2,
     "several baselines fit"),
    ("a newer form", change("old.json", schema_version=2), TWO, 4,
     "old.json: schema_version is 2, this edgetune reads 1"),
    ("an older form", change("new.json", schema_version=0), ONE, 4, "schema_version is 0"),
    ("the same report twice", nothing, "gate {new} {new}", 2, "the same report twice"),
    ("a copy of a report", copied, "gate {new} {tmp}/copy.json", 2, "the same report twice"),
    # what is no report
    ("missing", removed("new.json"), ONE, 4, "new.json: no such file"),
    ("baseline missing", removed("old.json"), TWO, 4, "old.json: no such file"),
    ("empty file", text("new.json", ""), ONE, 4, "not a JSON document"),
    ("truncated", truncate, ONE, 4, "not a JSON document"),
    ("baseline truncated", text("old.json", '{"schema_version": 1,'), TWO, 4, "not a JSON doc"),
    ("not text", text("new.json", b"\xff\xfe\x00"), ONE, 4, "not a JSON document"),
    ("a list", text("new.json", "[]"), ONE, 4, "the document is no object"),
    ("no keys", text("new.json", "{}"), ONE, 4, "schema_version: field required"),
    ("a key twice", replace("new.json", '"verdict"', '"verdict": "pass", "verdict"'), ONE, 4,
     "a key is listed twice"),
    ("nested", replace("new.json", '"examples": []', f'"examples": [{NESTED}]'), ONE, 4,
     "not a JSON document"),
    ("half a surrogate", change("new.json", identifier="\ud800"), ONE, 4, "not a JSON document"),
    ("empty folder", empty_folder, "gate {folder}", 4, "no report in this folder"),
    ("one of a folder broken", text("folder/a.json", "{"), "gate {folder}", 4, "folder/a.json"),
    ("folder as a report's name", is_a_folder("folder/a.json"), "gate {folder}", 4,
     "a folder, not a report"),
    ("a link to itself", loop, "gate {tmp}/loop.json", 4, "loop.json: no such file"),
    ("a pipe", fifo, "gate {tmp}/pipe.json", 4, "pipe.json: no such file"),
    ("huge", huge, "gate {tmp}/huge.json", 4, "more than 64 MiB"),
    # figures and limits that are none
    ("a limit that is not a number", replace("new.json", '"limit": 0.05', '"limit": NaN'), ONE, 4,
     "checks.0.limit is not a finite number"),
    ("an infinite limit", replace("new.json", '"limit": 0.05', '"limit": 1e999'), ONE, 4,
     "checks.0.limit is not a finite number"),
    ("a negative limit", change("new.json", checks__0__limit=-0.1), ONE, 4,
     "checks.0.limit: input should be greater than or equal to 0"),
    ("a limit that is text", change("new.json", checks__0__limit="0.05"), ONE, 4,
     "checks.0.limit: input should be a valid number"),
    ("a figure that is not a number", replace("new.json", '"kl_mean": {"value": 0.004',
     '"kl_mean": {"value": NaN'), ONE, 4, "fidelity.kl_mean.value is not a finite number"),
    ("a number no float holds", change("new.json", size__package_bytes=10**400), ONE, 4,
     "size.package_bytes is not a finite number"),
    ("a check of our own invention", change("new.json", checks__0__name="vibes"), ONE, 4,
     "a check 'vibes' that this version of edgetune does not know"),
    ("a check's name with a line break", change("new.json", checks__0__name="a\n_drop"), ONE, 4,
     "checks.0.name"),
    ("a check twice", change("new.json", checks__0__name="exact_match_drop"), ONE, 4,
     "a check is listed twice"),
    ("rounds that are none", change("new.json", latency__candidate__rounds_ms=[1.0, -1.0]), TWO, 4,
     "a time to answer that is not above 0"),
    # edited by hand: what contradicts itself never passes
    ("a better figure", change("new.json", fidelity__kl_mean__value=0.001), ONE, 4,
     "it contradicts itself: kl_mean: value 0.004 in its check, 0.001 measured"),
    ("a better metric", change("new.json", task_metrics__exact_match__candidate=1.0), ONE, 4,
     "exact_match: 1 and 0.95 differ by 0.05, not by 0"),
    ("a worse item", change("new.json", per_item__exact__20=0), ONE, 4,
     "exact_match: 0.95 of 240 in all, 0.945833 of 240 over the items"),
    ("a better ratio", change("new.json", latency__ratio={"value": 0.1, "low": 0.1, "high": 0.1}),
     ONE, 4, "latency.ratio: 0.1 lies outside its own rounds"),
    ("a better ratio without rounds", better_ratio, ONE, 4, "its two times to answer give 0.25"),
    ("a better time", change("new.json", latency__candidate__answer_ms=150.0), ONE, 4,
     "latency.candidate: answer_ms 150 lies outside its own rounds"),
    ("items left out", change("new.json", fidelity__items=239), ONE, 4, "239 with 3600"),
    ("a worse baseline", change("old.json", per_item__kl_mean=[0.05] * 240), TWO, 4,
     "old.json: it contradicts itself"),
    # packages
    ("self-test tampered", text("demo/self_test/items.jsonl", "{ }\n"), PACKAGE, 4,
     "not the package that was built: self_test/items.jsonl (changed)"),
    ("a file added", text("demo/more.bin", "x"), PACKAGE, 4, "more.bin (not in its list)"),
    ("a file removed", removed("demo/self_test/items.jsonl"), PACKAGE, 4, "(missing)"),
    ("checksums removed", removed("demo/SHA256SUMS"), PACKAGE, 4, "no readable SHA256SUMS"),
    ("no report in it", removed("demo/reports/r.json"), PACKAGE, 4, "this package has no report"),
    ("another package's report", change("demo/reports/r.json", package_digest="0" * 64), PACKAGE,
     4, "a report of another package (000000000000"),
    ("another recipe's report", change("demo/reports/r.json", inputs__recipe="r"), PACKAGE, 4,
     "inputs.recipe is not the digest of this package's recipe"),
    ("another self-test's report", change("demo/reports/r.json", inputs__self_test="s"), PACKAGE,
     4, "inputs.self_test is not the digest"),
    ("a tampered baseline", text("demo/self_test/items.jsonl", "{ }\n"),
     "gate {new} --baseline {package}", 4, "not the package that was built"),
    # the command
    ("no report", nothing, "gate", 2, "nothing to judge: name a report"),
    ("a baseline alone", nothing, "gate --baseline {old}", 2, "nothing to judge"),
    ("a margin that is not a number", nothing, TWO + " --max-slowdown nan", 2,
     "--max-slowdown nan: a margin is a finite number, at least 0 and at most 1"),
    ("an infinite margin", nothing, TWO + " --max-kl-rise inf", 2, "--max-kl-rise inf: a margin"),
    ("a negative margin", nothing, TWO + " --max-drop -0.01", 2, "--max-drop -0.01: a margin"),
    ("a margin in percent", nothing, TWO + " --max-growth 5", 2, "at most 1"),
    ("a margin that is a word", nothing, TWO + " --max-drop little", 2, "'little' is not a valid"),
    ("a margin without a baseline", nothing, ONE + " --max-drop 0.1", 2,
     "--max-drop: a margin against which baseline?"),
    ("latency of no baseline", nothing, ONE + " --require-latency", 2, "--require-latency: a mar"),
    ("a self-test of a report", nothing, "gate --self-test {new}", 2, "judges the gate and no"),
    ("a self-test with files", nothing, "gate --self-test --junit {junit}", 2, "--junit"),
    ("an unknown option", nothing, "gate {new} --junitxml {junit}", 2, "No such option"),
    # the files
    ("junit is a folder", is_a_folder("folder"), "gate {new} --junit {folder}", 2, ": a folder"),
    ("junit below a file", nothing, "gate {new} --junit {old}/g.xml", 3,
     "cannot be written"),
    ("junit over a report", nothing, "gate {new} --junit {new}", 2, "would overwrite or add"),
    ("summary over the baseline", nothing, "gate {new} --baseline {old} --summary {old}", 2,
     "would overwrite or add to what is judged"),
    ("junit into the package", nothing, "gate {package} --junit {package}/g.xml", 2,
     "would overwrite or add"),
    ("one file for both", nothing, "gate {new} --junit {junit} --summary {junit}", 2,
     "--junit and --summary name one file"),
]  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    put(tmp_path / "new.json", whole())
    put(tmp_path / "old.json", whole(environment__memory=1))
    make_package(tmp_path / "demo")
    return World(tmp_path)


def test_the_world_is_sound(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (ONE, TWO, PACKAGE, "gate {new} --baseline {old} --max-drop 0.1"):
        assert run(command.format(**world.names).split()) == 0, capsys.readouterr().err
    assert world.path("o/g.xml").is_file()
    assert world.path("o/g.md").is_file()


@pytest.mark.parametrize(
    ("spoil", "command", "code", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_bad_input_has_its_sentence_and_its_code(
    world: World,
    capsys: pytest.CaptureFixture[str],
    spoil: Spoil,
    command: str,
    code: int,
    words: str,
) -> None:
    spoil(world)
    before = {path: path.lstat().st_mtime_ns for path in world.tmp.rglob("*")}
    assert run(command.format(**world.names).split()) == code
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""
    assert "Traceback" not in told.err
    assert told.err.lower().lstrip().startswith(("error: ", "usage: "))
    # Nothing is written, nothing is changed.
    assert before == {path: path.lstat().st_mtime_ns for path in world.tmp.rglob("*")}


def test_rows_are_many_and_apart() -> None:
    names = [row[0] for row in ROWS]
    assert len(set(names)) == len(names) >= 30
