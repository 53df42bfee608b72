"""The page's colours can be told apart, light and dark: WCAG 2.2, 1.4.3 (text, 4.5 to 1) and 1.4.11
(marks, 3 to 1)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import edgetune.report.page as page

STYLE = (Path(page.__file__).parent / "page.css").read_text(encoding="utf-8")
ROOTS = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
SCHEMES = {"light": ROOTS[0], "dark": ROOTS[1]}
TEXT = [
    ("ink", "page"), ("ink", "card"), ("ink", "wash"), ("soft", "page"), ("soft", "card"),
    ("soft", "wash"), ("accent", "card"), ("pass", "pass-wash"), ("fail", "fail-wash"),
    ("unclear", "unclear-wash"), ("soft", "pass-wash"), ("soft", "fail-wash"),
    ("soft", "unclear-wash"), ("ink", "pass-wash"), ("ink", "fail-wash"), ("bad", "card"),
    ("mark-ink", "mark"),
]  # fmt: skip
MARKS = [("accent", "card"), ("other", "card"), ("bad", "card"), ("part-0", "card")]


def colours(scheme: str) -> dict[str, str]:
    light = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", SCHEMES["light"]))
    return light | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", SCHEMES[scheme]))


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    shares = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio (WCAG 2.2)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_itself() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_and_marks_can_be_told_from_their_ground(scheme: str) -> None:
    known = colours(scheme)
    dim = [p for p in TEXT if contrast(known[p[0]], known[p[1]]) < 4.5]
    dim += [p for p in MARKS if contrast(known[p[0]], known[p[1]]) < 3.0]
    assert not dim


def test_both_schemes_set_every_colour() -> None:
    names = [set(re.findall(r"--([\w-]+):", SCHEMES[scheme])) for scheme in SCHEMES]
    assert names[0] == names[1]
    assert set(re.findall(r"var\(--([\w-]+)\)", STYLE)) == names[0]
