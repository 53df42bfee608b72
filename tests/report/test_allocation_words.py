"""What `auto` chose, in words: in the terminal, in Markdown, and beside the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputRefusedError
from edgetune.files import dump_json, read_json
from edgetune.report.allocation_words import allocation_lines
from edgetune.report.markdown import to_markdown
from edgetune.report.publish import publish_report
from edgetune.report.terminal import summary_lines
from tests.report.sample import make, make_report

CHOSEN: dict[str, Any] = {
    "scheme": "auto",
    "modules": [
        {"name": "a", "width": "w4-g32", "bytes": 100, "kl_alone": 0.01},
        {"name": "b", "width": "w8-g32", "bytes": 220, "kl_alone": 0.0},
    ],
    "predicted": {"graph_bytes": 2_200_000, "bytes_per_token": 1_500_000, "kl_mean": 0.02},
    "plain": {
        "width": "w4-g32",
        "graph_bytes": 2_000_000,
        "bytes_per_token": 1_000_000,
        "kl_mean": 0.4,
    },
    "wanted_kl": 0.05,
    "graph_bytes_budget": None,
    "tries": [
        {
            "graph_bytes": 2_200_000,
            "kl_predicted": 0.02,
            "kl_verified_bound": 0.03,
            "met": True,
            "missed": [],
        }
    ],
    "would_take": None,
}


def test_what_protecting_costs_is_said() -> None:
    widths, tries = allocation_lines(make_report(allocation=CHOSEN))
    assert widths.startswith("auto: 1 × w4-g32, 1 × w8-g32; predicted against w4-g32 everywhere")
    assert "+10.0% of the graph, +50.0% read for a token" in widths
    assert tries == "auto: built and verified: 2.2 MB (met)"


def test_a_miss_says_what_it_would_take() -> None:
    missed = {**CHOSEN["tries"][0], "met": False, "missed": ["kl_mean"]}
    report = make_report(allocation={**CHOSEN, "tries": [missed], "would_take": "more bits"})
    assert list(allocation_lines(report))[1:] == [
        "auto: built and verified: 2.2 MB (missed)",
        "auto: more bits",
    ]


def test_it_stands_in_terminal_and_markdown_and_nowhere_without() -> None:
    chosen, plain = make_report(allocation=CHOSEN), make_report()
    assert sum(line.startswith("widths ") for line in summary_lines(chosen)) == 2
    assert "**Widths**" in to_markdown(chosen)
    assert not list(allocation_lines(plain))
    assert "**Widths**" not in to_markdown(plain)


def test_it_is_put_into_the_report_beside_the_package(tmp_path: Path) -> None:
    source = tmp_path / "report.json"
    source.write_text(dump_json(make()), encoding="utf-8")
    place, _ = publish_report(source, tmp_path, allocation=CHOSEN)
    assert read_json(place)["allocation"]["modules"] == CHOSEN["modules"]
    with pytest.raises(InputRefusedError, match="allocation"):
        publish_report(source, tmp_path, allocation={**CHOSEN, "modules": "all"})
