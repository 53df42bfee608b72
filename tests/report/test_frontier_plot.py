"""The plot of a search: well-formed, self-contained, and where the figures say."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from edgetune.report.frontier_plot import frontier_svg

SVG = "{http://www.w3.org/2000/svg}"


def row(scheme: str, size: float, kl: float, **changes: Any) -> dict[str, Any]:
    figures = {"bytes": size, "kl_mean": {"value": kl}, "frontier": True}
    return {"scheme": scheme, "label": "measured", "verdict": "pass", **figures, **changes}


def test_smaller_is_left_and_nearer_is_low() -> None:
    rows = [row("w4 <a>", 10e6, 0.1), row("w8", 20e6, 0.001, verdict="fail", frontier=False)]
    picture = ET.fromstring(frontier_svg("demo & co", rows))
    assert picture.findtext(f"{SVG}title") == "demo & co"
    small, large = picture.findall(f"{SVG}circle")
    assert float(small.attrib["cx"]) < float(large.attrib["cx"])
    assert float(small.attrib["cy"]) < float(large.attrib["cy"])  # y grows downwards
    assert small.findtext(f"{SVG}title") == "w4 <a>: 10.0 MB, KL 0.1 nats, measured, pass"
    assert small.attrib["fill"] != "none"
    assert large.attrib["fill"] == "none"
    assert len(picture.find(f"{SVG}polyline").attrib["points"].split()) == 1  # type: ignore[union-attr]


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = frontier_svg("demo", [row("w4", 1e6, 0.1), row("fp32", 4e6, 1e-9)])
    assert text.count("http") == 1  # the namespace
    for word in ("<script", "href", "@import", "url("):
        assert word not in text


def test_predictions_are_labelled() -> None:
    text = frontier_svg("demo", [row("w4", 1e6, 0.1, label="predicted", verdict=None)])
    assert "w4 (predicted)" in text
    assert "nats, predicted<" in text


def test_rows_without_figures_are_left_out_and_none_is_an_error() -> None:
    empty = {**row("x", 0, 1.0), "bytes": None, "kl_mean": None}
    assert "x:" not in frontier_svg("demo", [empty, row("w4", 1e6, 0.1)])
    with pytest.raises(ValueError, match="no row"):
        frontier_svg("demo", [empty])
