"""Long texts through real graphs: what is right passes, and a graph that lost its window or its
LongRoPE tables opens, answers short texts, and is caught.

The text is measured on the right model in torch; the graphs are built from the same weights, some
with another config.json, as a builder does that overlooks a part of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetune.child import run_child
from edgetune.files import dump_json, read_json, write_text
from edgetune.lengths import LONGROPE, SLIDING, WINDOW, choose_lengths
from edgetune.optimize.forms.decoder import export_problem
from edgetune.report.questions import LONG_CONTEXT
from tests.families import build_family
from tests.report.sample import SECTIONS, make
from tests.tiny import build_base

pytestmark = pytest.mark.slow


def _no_window(config: dict[str, Any]) -> None:
    config["sliding_window"] = None


def _short_tables(config: dict[str, Any]) -> None:
    rope = config["rope_parameters"]
    rope["long_factor"] = rope["short_factor"]


@dataclass(frozen=True)
class Broken:
    """A family, and what the builder overlooks in its config.json."""

    family: str
    change: Callable[[dict[str, Any]], None]


RIGHT = ("mistral", "gemma3", "phi3-medium-128k")
BROKEN = {
    "no window": Broken("mistral", _no_window),
    "no long tables": Broken("phi3-medium-128k", _short_tables),
}
# A LongRoPE model that changes where onnxruntime-genai does not.
ELSEWHERE = "switch at 64"


def _early_longrope(folder: Path) -> Path:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.05 * n for n in range(8)],
        "long_factor": [1.5 + 0.7 * n for n in range(8)],
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    return build_base(folder, "phi3", rope_parameters=rope, original_max_position_embeddings=64)


@dataclass(frozen=True)
class Graphs:
    """Graphs by name, and the base that each should equal."""

    folder: Path
    numbers: dict[str, int]
    bases: dict[str, Path]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    folder = tmp_path_factory.mktemp("long")
    bases = {name: build_family(folder / name, name) for name in RIGHT}
    bases[ELSEWHERE] = _early_longrope(folder / "early")
    built = dict(bases)
    for name, broken in BROKEN.items():
        bases[name] = bases[broken.family]
        built[name] = Path(shutil.copytree(bases[name], folder / name.replace(" ", "-")))
        config = read_json(built[name] / "config.json")
        broken.change(config)
        write_text(built[name] / "config.json", dump_json(config))
    out = folder / "built"
    out.mkdir()
    facts, _ = run_child(
        "tests.optimize.builds:build_all",
        {"jobs": [
            {"checkpoint": str(path), "scheme": "fp32", "unchecked": name == ELSEWHERE}
            for name, path in built.items()
        ]},
        out, log=folder / "log", progress=lambda _: None,
    )  # fmt: skip
    assert not [fact["error"] for fact in facts.values() if "error" in fact]
    return Graphs(out, {name: number for number, name in enumerate(built)}, bases)


def measured(graphs: Graphs, name: str, tmp_path: Path) -> dict[str, Any]:
    """The report of a graph whose long texts were measured on the base that it should equal."""
    from tests.optimize.builds import _opened
    from tests.reference.long_texts import write_long_texts

    base = graphs.bases[name]
    config = read_json(base / "config.json")
    lengths = choose_lengths(config, 100_000, 8 << 30)
    assert lengths is not None
    write_long_texts(base, tmp_path, lengths)
    found = _opened(graphs.folder / str(graphs.numbers[name]))
    vocabulary = found.config["model"]["vocab_size"]
    opened: Any = SimpleNamespace(**vars(found), vocabulary_size=vocabulary)
    from edgetune.validate.checks import make_checks
    from edgetune.validate.long_context import long_context

    section = long_context(opened, tmp_path, lambda _: None)
    limits = {"tolerances": {"kl_mean": 0.05}, "budgets": {}}
    checks = make_checks(limits, {**SECTIONS, "long_context": section})
    return make(long_context=section, checks=checks)


def verdict_of(report: dict[str, Any]) -> str:
    return next(str(c["verdict"]) for c in report["checks"] if c["name"] == LONG_CONTEXT)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_graph_passes(graphs: Graphs, name: str, tmp_path: Path) -> None:
    report = measured(graphs, name, tmp_path)
    long = name == "phi3-medium-128k"
    found = [(s["what"], s["first"], s["last"]) for s in report["long_context"]["stretches"]]
    assert found == [
        (LONGROPE, 4081, 4112) if long else (SLIDING, 9, 40),
        (WINDOW, 8161, 8192) if long else (WINDOW, 225, 256),
    ]
    for stretch in report["long_context"]["stretches"]:
        assert stretch["kl_mean"]["value"] < 1e-6
        assert stretch["top1_agreement"]["value"] == 1
    assert verdict_of(report) == report["verdict"] == "pass"


@pytest.mark.parametrize("name", BROKEN)
def test_a_graph_that_lost_a_part_is_caught(graphs: Graphs, name: str, tmp_path: Path) -> None:
    report = measured(graphs, name, tmp_path)
    assert verdict_of(report) == report["verdict"] == "fail"


def test_a_switch_that_the_runtime_does_not_know_is_refused_and_would_be_caught(
    graphs: Graphs, tmp_path: Path
) -> None:
    config = read_json(graphs.bases[ELSEWHERE] / "config.json")
    assert "its rotary embeddings change at 64 tokens" in str(export_problem(config))
    report = measured(graphs, ELSEWHERE, tmp_path)
    assert verdict_of(report) == report["verdict"] == "fail"
