"""Adapters together: what can be told from configs and headers before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.checkpoint.adapter import Adapter, read_adapter
from edgetune.checkpoint.combination import merge_problems, merge_warnings, raise_problems
from edgetune.checkpoint.folder import CheckpointFolder, read_checkpoint
from edgetune.errors import INPUT_REFUSED, USAGE, InputRefusedError, Problem, UsageError
from tests.tiny import make_adapter

NF4 = {"type": "nf4", "double_quant": False, "compute_dtype": "bfloat16"}


def changed(folder: Path, **fields: Any) -> Adapter:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return read_adapter(folder)


@pytest.fixture
def base(tiny_llama: Path) -> CheckpointFolder:
    return read_checkpoint(tiny_llama)


@pytest.fixture
def lora(tiny_llama: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny_llama, folder=tmp_path / "lora")


def test_no_problem(base: CheckpointFolder, lora: Path) -> None:
    adapter = read_adapter(lora)
    assert merge_problems(base, [], None, "dequantized") == []
    assert merge_problems(base, [(adapter, 0.3), (adapter, 0.7)], NF4, "original") == []
    assert merge_warnings(base, [adapter]) == []


def test_every_problem_at_once(base: CheckpointFolder, tiny_llama: Path, tmp_path: Path) -> None:
    dora = make_adapter(tiny_llama, "dora", folder=tmp_path / "dora")
    loha = changed(make_adapter(tiny_llama, folder=tmp_path / "loha"), peft_type="LOHA")
    other = changed(make_adapter(tiny_llama, folder=tmp_path / "o"), base_model_name_or_path="x/y")
    found = merge_problems(
        base, [(read_adapter(dora), 1), (loha, 1), (other, float("nan"))], None, "dequantized"
    )
    for words in (
        "only plain LoRA adapters add up; LoHa",
        "weight is nan",
        "magnitude of DoRA",
        "over different bases",
    ):
        assert sum(words in problem.message for problem in found) == 1
    assert {p.exit_code for p in found} == {USAGE, INPUT_REFUSED}


def test_one_base_by_two_names(base: CheckpointFolder, tiny_llama: Path, tmp_path: Path) -> None:
    one = read_adapter(make_adapter(tiny_llama, folder=tmp_path / "one"))
    two = make_adapter(tiny_llama, folder=tmp_path / "two")
    (tmp_path / "link").symlink_to(tiny_llama)
    relative = changed(two, base_model_name_or_path="../link/")
    assert merge_problems(base, [(one, 1), (relative, 1)], None, "dequantized") == []
    unknown = changed(two, base_model_name_or_path=None)
    assert merge_problems(base, [(one, 1), (unknown, 1)], None, "dequantized") == []


def test_warnings(base: CheckpointFolder, lora: Path) -> None:
    adapter = changed(lora, base_model_name_or_path="org/other", brand_new=1, another=None)
    (lora / "chat_template.jinja").write_text("another")
    name, fields, template = merge_warnings(base, [adapter])
    assert name.startswith("lora: trained over 'org/other', merged onto 'tiny-llama'")
    assert fields.endswith("ignored: another, brand_new")
    assert "chat_template.jinja that differs from the base's" in template


@pytest.mark.parametrize("name", ["org/tiny-llama", "tiny-llama", "/other/place/tiny-llama/"])
def test_names_that_are_the_base_s(name: str, base: CheckpointFolder, lora: Path) -> None:
    assert merge_warnings(base, [changed(lora, base_model_name_or_path=name)]) == []


def test_raise_problems() -> None:
    raise_problems([])
    with pytest.raises(InputRefusedError, match="first"):
        raise_problems([Problem("first", "", INPUT_REFUSED), Problem("second")])
    with pytest.raises(UsageError, match="second"):
        raise_problems([Problem("second")])
