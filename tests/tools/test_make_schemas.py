from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "devices").glob("*.yaml")]


def schema_of(path: Path) -> dict[str, object]:
    kind = {"recipes": "recipe", "devices": "device"}[path.parent.name]
    text = (ROOT / "docs" / "schemas" / f"{kind}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, object] = json.loads(text)
    return schema


def test_schemas_are_fresh() -> None:
    tool = ROOT / "tools" / "make_schemas.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_shipped_files_fit_their_schema(path: Path) -> None:
    jsonschema.validate(YAML(typ="safe").load(path), schema_of(path))


def test_a_schema_refuses_an_unknown_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="adaptors"):
        jsonschema.validate({"base": "x", "adaptors": []}, schema_of(ROOT / "recipes" / "x.yaml"))
