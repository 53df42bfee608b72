"""The page of models says what the code says."""

from __future__ import annotations

from typing import Any

import pytest

from edgetune.checkpoint.families import REFUSED, SUPPORTED
from tests.families import FAMILIES
from tools.show_families import BEGIN, END, PAGE, Row, page_part


def graph(**facts: Any) -> dict[str, Any]:
    exact = {"difference": 1e-5, "largest": 3.0, "kl_mean": 0.0, "answer": [1], "expected": [1]}
    return {**exact, **facts}


def row(merge: tuple[float, float] = (1e-5, 3.0), **graphs: Any) -> Row:
    names = ("fp32", "w8a16-rtn", "w4a16-rtn")
    return Row("llama", merge, {n: graphs.get(n.split("a16")[0], graph()) for n in names})


@pytest.mark.parametrize(
    ("measured", "misses"),
    [
        (row(), []),
        (row(merge=(4e-4, 3.0)), ["merge"]),
        (row(fp32=graph(difference=4e-4)), ["fp32: logits"]),
        (row(fp32=graph(answer=[2])), ["fp32: answer"]),
        (row(w8=graph(answer=[])), ["w8a16-rtn: no answer"]),
        (row(w4={"error": "no model"}), ["w4a16-rtn: no model"]),
    ],
)
def test_a_miss_is_told(measured: Row, misses: list[str]) -> None:
    assert measured.misses == misses


def test_a_row_shows_the_measure_beside_its_limit() -> None:
    text = page_part([row(w8=graph(kl_mean=0.002))])
    assert "| Llama 3.1, 3.2 | `llama` | llama | 1.0e-05 / 3.0e-04 | 1.0e-05 / 3.0e-04 |" in text
    assert "| 2.0e-03 | 0.0e+00 | yes |" in text


def test_the_page_has_every_family_and_every_refusal() -> None:
    part = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    for name, tiny in FAMILIES.items():
        assert f"| {tiny.stands_for} | `{tiny.model_type}` | {name} | " in part
    for model_type in SUPPORTED:
        assert f"| `{model_type}` |" in part
    for model_type, why in REFUSED.items():
        assert f"- `{model_type}`: {why}." in part
