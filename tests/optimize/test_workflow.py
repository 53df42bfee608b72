"""The goldens: a changed file there is a change of what Olive is told.

`python -m tests.optimize.test_workflow` writes them anew.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import UsageError
from edgetune.files import dump_json, read_json
from edgetune.optimize.schemes import SCHEMES, make_widths, variant_name
from edgetune.optimize.widths import FLOAT, Widths
from edgetune.optimize.workflow import CACHE, CHECKPOINT, OUT, fill_workflow, make_workflow
from edgetune.providers import PROVIDERS

GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "workflows"
CHANGED = ("model.layers.0.self_attn.q_proj",)
CASES = {
    variant_name(provider, scheme.name, group): (
        scheme,
        make_widths(scheme, group, layers=8, changed=CHANGED),
        provider,
    )
    for provider in PROVIDERS
    for scheme in SCHEMES.values()
    if provider in scheme.providers
    for group in {scheme.group_size, *({128} & set(scheme.group_sizes))}
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_golden(name: str) -> None:
    assert make_workflow(*CASES[name]) == read_json(GOLDENS / f"{name}.json")


def test_every_golden_has_a_case() -> None:
    assert {path.stem for path in GOLDENS.glob("*.json")} == set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_invariants(name: str) -> None:
    workflow = make_workflow(*CASES[name])
    assert workflow["engine"]["search_strategy"] is None
    options = workflow["passes"]["builder"]["config"]
    assert options["prune_lm_head"] is True
    # Silently ignored by the builder of onnxruntime-genai 0.18.
    assert not [key for key in options if key.startswith("int4_")]
    assert not [text for text in _texts(workflow) if text.startswith("/")]


def test_an_illegal_pair_is_refused() -> None:
    with pytest.raises(UsageError, match="no execution provider is called 'Nobody'"):
        make_workflow(SCHEMES["fp32"], Widths(FLOAT), "Nobody")


def test_a_scheme_without_kernels_is_refused() -> None:
    with pytest.raises(UsageError, match="has no kernels for the scheme fp16") as raised:
        make_workflow(SCHEMES["fp16"], make_widths(SCHEMES["fp16"]), "CPUExecutionProvider")
    assert raised.value.hint is not None
    assert "such as w8a16-rtn" in raised.value.hint


def test_placeholders_are_filled_and_the_workflow_is_kept() -> None:
    workflow = make_workflow(SCHEMES["fp32"], Widths(FLOAT), "CPUExecutionProvider")
    filled = fill_workflow(workflow, {CHECKPOINT: "/c", CACHE: "/k", OUT: "/o"})
    assert filled["input_model"]["config"]["model_path"] == "/c"
    assert (filled["engine"]["cache_dir"], filled["engine"]["output_dir"]) == ("/k", "/o")
    assert workflow["engine"]["output_dir"] == OUT


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, edgetune.optimize.workflow\n"
        "print(sorted({'torch', 'onnx', 'olive', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    return [text for inner in value for text in _texts(inner)] if isinstance(value, list) else []


if __name__ == "__main__":
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for case, arguments in CASES.items():
        (GOLDENS / f"{case}.json").write_text(dump_json(make_workflow(*arguments)))
