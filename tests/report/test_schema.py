"""A report with a number that is not finite, a wrong type or a missing key is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import InputRefusedError
from edgetune.report.schema import load_report, parse_report
from tests.report.sample import make


def _write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    return tmp_path / "r.json"


def test_a_report_comes_back_as_it_was_written(tmp_path: Path) -> None:
    value = make()
    assert load_report(_write(tmp_path, json.dumps(value))).model_dump(mode="json") == value


def test_keys_that_are_not_known_are_kept() -> None:
    value = {**make(), "later": {"a": [1, 2.5]}}
    assert parse_report(value).model_dump(mode="json")["later"] == {"a": [1, 2.5]}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("place", ["0.004", "3600", '"fingerprint": "abc"'])
def test_a_number_that_is_not_finite_is_refused_anywhere(
    tmp_path: Path, number: str, place: str
) -> None:
    new = f'"fingerprint": "abc", "more": [{{"x": {number}}}]' if "finger" in place else number
    text = json.dumps(make()).replace(place, new, 1)
    assert number in text
    with pytest.raises(InputRefusedError, match="is not a finite number") as caught:
        load_report(_write(tmp_path, text))
    assert "NaN or infinite" in caught.value.hint


def test_a_huge_integer_is_no_number_of_ours(tmp_path: Path) -> None:
    text = json.dumps(make()).replace("3600", "9" * 5000, 1)
    with pytest.raises(InputRefusedError):
        load_report(_write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON document"),
        ("[]", "not a report"),
        ("{}", "schema_version: field required"),
        ('{"a": 1, "a": 2}', "a key is listed twice"),
        ("{" * 3000, "not a JSON document"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputRefusedError, match=message):
        load_report(_write(tmp_path, text))


def test_a_truncated_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="not a JSON document"):
        load_report(_write(tmp_path, json.dumps(make())[:-40]))
    with pytest.raises(InputRefusedError, match="no such file"):
        load_report(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        (("schema_version",), 2, "schema_version"),
        (("identifier",), 3, "identifier: input should be a valid string"),
        (("verdict",), "passed", "verdict"),
        (("fidelity", "kl_mean"), 0.1, "fidelity.kl_mean"),
        (("fidelity", "kl_mean", "low"), "0.1", "fidelity.kl_mean.low: input should be a valid"),
        (("fidelity", "kl_kind"), "guessed", "fidelity.kl_kind"),
        (("fidelity", "positions"), -1, "fidelity.positions"),
        (("size", "package_bytes"), True, "size.package_bytes"),
        (("size", "package_bytes"), None, "size.package_bytes"),
        (("evidence", "executed"), "yes", "evidence.executed"),
        (("providers", "coverage"), 1.5, "providers.coverage"),
        (("checks", 0, "limit"), -0.5, r"checks\.0\.limit"),
        (("checks", 0, "limit"), None, r"checks\.0\.limit"),
        (("checks", 0, "verdict"), "ok", r"checks\.0\.verdict"),
    ],
)
def test_a_wrong_type_is_refused_by_its_place(
    path: tuple[Any, ...], new: Any, message: str
) -> None:
    value = place = make()
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    with pytest.raises(InputRefusedError, match=message):
        parse_report(value)


OPTIONAL = {
    *("inputs", "examples", "emulated", "per_item", "self_test", "sampling", "cost", "survival"),
    *("allocation", "long_context", "weights", "provenance"),
}


@pytest.mark.parametrize("key", sorted(set(make()) - OPTIONAL))
def test_a_missing_key_is_refused(key: str) -> None:
    value = make()
    del value[key]
    with pytest.raises(InputRefusedError, match=f"{key}: field required"):
        parse_report(value)


def test_a_check_that_is_listed_twice_is_refused() -> None:
    value = make()
    value["checks"].append(value["checks"][0])
    with pytest.raises(InputRefusedError, match="a check is listed twice"):
        parse_report(value)
