"""The plot of a search: well-formed, self-contained, and where the figures say."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_the_float_model_is_named_and_not_drawn() -> None:
    rows = [row("w4", 1e6, 0.1), row("w8", 2e6, 0.001), row("fp32", 9e6, 1e-10)]
    picture = ET.fromstring(frontier_svg("demo", rows))
    assert len(picture.findall(f"{SVG}circle")) == 2
    texts = ["".join(text.itertext()) for text in picture.findall(f"{SVG}text")]
    assert "not drawn, nearer than 1e-06 nats: fp32 (9.0 MB)" in texts
    assert "fp32: 9.0 MB" in str(picture.findtext(f"{SVG}desc"))
    alone = ET.fromstring(frontier_svg("demo", rows[2:]))
    assert len(alone.findall(f"{SVG}circle")) == 1


@given(
    st.lists(
        st.tuples(st.floats(4e6, 6e6), st.floats(1e-4, 0.5)), min_size=1, max_size=6, unique=True
    )
)
def test_labels_do_not_hide_each_other(figures: list[tuple[float, float]]) -> None:
    rows = [row(f"w4a16-{n}", size, kl) for n, (size, kl) in enumerate(figures)]
    picture = ET.fromstring(frontier_svg("demo", rows))
    labels = [t for t in picture.findall(f"{SVG}text") if (t.text or "").startswith("w4a16-")]
    assert sorted(t.text or "" for t in labels) == sorted(r["scheme"] for r in rows)
    places = [(float(t.attrib["x"]), float(t.attrib["y"]), 7 * len(t.text or "")) for t in labels]
    for (left, y, width), (other, its_y, its_width) in itertools.combinations(places, 2):
        beside = left + width <= other + 0.2 or other + its_width <= left + 0.2
        assert beside or abs(y - its_y) >= 14.8
