"""What lm-evaluation-harness' viewers read: its own schema, its own hashes, its own file names.

`tests/goldens/lm_eval.schema.json` is what pydantic makes of `lm_eval/result_schema.py`; where the
harness is installed, it is made again and its own functions read the files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgetune.errors import UsageError
from edgetune.report.lm_eval import check_folder, make_results, write_lm_eval
from tests.report.sample import make

GOLDEN = Path(__file__).resolve().parent.parent / "goldens" / "lm_eval.schema.json"
WHEN = datetime(2026, 7, 26, 12, 30, 5, 123456)
harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm_eval is not installed (python -m pip install --no-deps lm_eval==0.4.13)",
)


def _row(number: int, expected: str | None, package: str | None = None) -> dict[str, Any]:
    exact = None if expected is None else package == expected
    return {
        "id": str(number),
        "prompt": f"<|user|>question {number} ü",
        "expected": expected,
        "target": f"{expected}<|end|>" if expected else "text of the item",
        "target_tokens": 4,
        "reference": {
            "answer": expected,
            "exact_match": None if expected is None else True,
            "answer_logprob": -0.25,
        },
        "package": {"answer": package, "exact_match": exact, "answer_logprob": -0.5},
    }


def _answers(*items: dict[str, Any], **changes: Any) -> dict[str, Any]:
    roles = {"eos_token": {"text": "<|end|>", "id": 4}, "bos_token": None, "pad_token": None}
    return {
        "task": "text-generation",
        "source": "evaluation data",
        "items_left_out": 0,
        "seed": 0,
        "max_new_tokens": 12,
        "context_length": 256,
        "chat_template": "{{ messages }}",
        "special_tokens": roles,
        "items": list(items) or [_row(1, "yes", "yes"), _row(2, "no", "yes"), _row(3, "a", "a")],
        **changes,
    }


def _written(folder: Path, **changes: Any) -> dict[str, tuple[dict[str, Any], list[Any]]]:
    """{model: (results, samples)} as read back from the files."""
    write_lm_eval(folder, make(), _answers(**changes), WHEN)
    found = {}
    for place in sorted(folder.iterdir()):
        (results,) = place.glob("results_*.json")
        (samples,) = place.glob("samples_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        found[place.name] = (json.loads(results.read_text(encoding="utf-8")), rows)
    return found


def _conforms(results: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    schema = json.loads(GOLDEN.read_text())
    # The harness' own files do not keep to its schema in one place: a task's config has lists and
    # numbers too, and its viewers read them.
    jsonschema.validate({**results, "configs": {}}, {**schema["results"],
                                                     "additionalProperties": False})  # fmt: skip
    for row in samples:
        jsonschema.validate(row, schema["sample"])


def test_files_lie_where_the_harness_puts_them(tmp_path: Path) -> None:
    write_lm_eval(tmp_path, make(), _answers(), WHEN)
    date = "2026-07-26T12-30-05.123456"
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json*")) == [
        f"demo__cpu-w8a16-rtn@this-machine/results_{date}.json",
        f"demo__cpu-w8a16-rtn@this-machine/samples_demo_{date}.jsonl",
        f"demo__trained/results_{date}.json",
        f"demo__trained/samples_demo_{date}.jsonl",
    ]


def test_both_models_keep_to_the_schema_and_pair(tmp_path: Path) -> None:
    found = _written(tmp_path)
    for results, samples in found.values():
        _conforms(results, samples)
    (package, package_rows), (trained, trained_rows) = found.values()
    assert trained["results"]["demo"]["exact_match,none"] == 1.0
    assert package["results"]["demo"]["exact_match,none"] == pytest.approx(2 / 3)
    assert package["results"]["demo"]["answer_logprob,none"] == -0.5
    assert package["results"]["demo"]["exact_match_stderr,none"] == pytest.approx(1 / 3)
    assert package["higher_is_better"] == {"demo": {"exact_match": True, "answer_logprob": True}}
    assert package["n-samples"] == {"demo": {"original": 3, "effective": 3}}
    assert trained["task_hashes"] == package["task_hashes"]
    assert (trained["model_name"], package["model_name"]) == (
        "demo/trained", "demo/cpu-w8a16-rtn@this-machine",
    )  # fmt: skip
    assert package["tokenizer_eos_token"] == ["<|end|>", "4"]
    for one, other in zip(trained_rows, package_rows, strict=True):
        for key in ("doc_id", "doc", "doc_hash", "prompt_hash", "target_hash", "arguments"):
            assert one[key] == other[key]
    assert [row["exact_match"] for row in package_rows] == [1.0, 0.0, 1.0]
    assert package_rows[1]["resps"] == [["yes"]]
    text = json.dumps(package_rows[0]["doc"], indent=2, ensure_ascii=False)
    assert package_rows[0]["doc_hash"] == hashlib.sha256(text.encode()).hexdigest()


def test_items_without_an_answer_are_a_task_of_their_own() -> None:
    answers = _answers(_row(1, "yes", "no"), _row(2, None), items_left_out=3)
    results, samples = make_results(make(), answers, "package", WHEN)
    assert list(samples) == ["demo", "demo_scored"]
    (row,) = samples["demo_scored"]
    assert row["metrics"] == ["answer_logprob"]
    # A sum in nats, as the harness' rolling log-likelihood is.
    assert row["filtered_resps"] == ["-2.0"]
    assert row["arguments"] == {"gen_args_0": {"arg_0": "<|user|>question 2 ütext of the item"}}
    assert results["results"]["demo"]["exact_match_stderr,none"] == "N/A"
    assert results["n-samples"]["demo"] == {"original": 4, "effective": 1}


@pytest.mark.parametrize("change", [{"doc_id": "1"}, {"target": 3}, {"resps": ["x"]}])
def test_the_schema_finds_what_is_wrong(tmp_path: Path, change: dict[str, Any]) -> None:
    results, samples = next(iter(_written(tmp_path).values()))
    with pytest.raises(jsonschema.ValidationError):
        _conforms(results, [{**samples[0], **change}])
    with pytest.raises(jsonschema.ValidationError):
        _conforms({**results, "of_our_own": 1}, samples)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file", "file is a file"),
        ("file/below", "file is a file"),
        ("package/results", "inside the package"),
        ("package", "inside the package"),
    ],
)
def test_a_folder_that_cannot_be(tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "package").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=words):
        check_folder(tmp_path / place, tmp_path / "package")
    check_folder(tmp_path / "new" / "deep", tmp_path / "package")
    assert sorted(tmp_path.rglob("*")) == before


@harness
def test_the_golden_is_the_installed_harness_schema() -> None:
    from importlib import metadata

    import pydantic
    from lm_eval.result_schema import EvalResults, SampleResult

    golden = json.loads(GOLDEN.read_text())
    if metadata.version("lm_eval") != golden["lm_eval"]:
        pytest.skip(f"lm_eval {metadata.version('lm_eval')}, the golden is {golden['lm_eval']}'s")
    for name, kind in (("results", EvalResults), ("sample", SampleResult)):
        assert golden[name] == _bare(pydantic.TypeAdapter(kind).json_schema())


@harness
def test_the_harness_own_functions_find_and_read_the_files(tmp_path: Path) -> None:
    from lm_eval import utils

    found = _written(tmp_path)
    for model, (results, samples) in found.items():
        names = [path.as_posix() for path in (tmp_path / model).iterdir()]
        (file,) = utils.get_results_filenames(names)
        assert json.loads(Path(file).read_text()) == results
        (file,) = utils.get_sample_results_filenames(names)
        assert utils.get_file_task_name(Path(file).name) == "demo"
        assert datetime.fromisoformat(utils.get_file_datetime(Path(file).name)[:10])
        assert utils.sanitize_model_name(results["model_name"]) == model
        assert samples[0]["prompt_hash"] == utils.hash_string(samples[0]["doc"]["prompt"])
        assert results["chat_template_sha"] == utils.hash_string("{{ messages }}")
        if importlib.util.find_spec("pytablewriter") is not None:
            assert "exact_match" in utils.make_table(results)


def _bare(value: Any) -> Any:
    """Without descriptions."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != "description" or isinstance(v, dict)}
        return {key: _bare(inner) for key, inner in kept.items()}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value
