"""Every family merged: all its linears adapted, equal to the unmerged model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.files import read_json
from tests.families import FAMILIES, build_family
from tests.merge.merged import NF4_DOUBLE, merge, parity
from tests.tiny import make_adapter

pytestmark = pytest.mark.line


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_of_every_family(name: str, tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", name)
    targets = list(FAMILIES[name].targets)
    adapter = make_adapter(base, folder=tmp_path / "adapter", target_modules=targets)
    facts = merge(tmp_path / "out", base, [adapter])
    layers = read_json(base / "config.json")["num_hidden_layers"]
    assert facts["touched"] == layers * len(targets)
    difference, largest, change = parity(tmp_path / "out", base, [adapter])
    assert difference <= 1e-4 * max(1.0, largest)
    assert change > 0.3


@pytest.mark.parametrize("name", FAMILIES)
def test_qlora_on_every_family(name: str, tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", name)
    targets = list(FAMILIES[name].targets)
    adapter = make_adapter(base, folder=tmp_path / "adapter", target_modules=targets)
    merge(tmp_path / "out", base, [adapter], trained_as=NF4_DOUBLE)
    difference, largest, _ = parity(tmp_path / "out", base, [adapter], trained_as=NF4_DOUBLE)
    assert difference <= 1e-4 * max(1.0, largest)


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_an_embedding_that_is_scaled(name: str, tmp_path: Path) -> None:
    """The delta of an embedding that is tied to the head, and scaled where it is looked up."""
    base = build_family(tmp_path / "base", name)
    adapter = make_adapter(
        base, folder=tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"], strength=0.03
    )
    facts = merge(tmp_path / "out", base, [adapter])
    assert facts["untied"]
    difference, largest, change = parity(tmp_path / "out", base, [adapter])
    assert difference <= 1e-4 * max(1.0, largest)
    assert change > 0.1


def test_code_beside_a_known_family_is_left_behind(tmp_path: Path) -> None:
    base = build_family(tmp_path / "base", "phi3-mini-4k")
    (base / "modeling_phi3.py").write_text("raise SystemExit\n")
    config = base / "config.json"
    text = config.read_text().replace("{", '{"auto_map": {"AutoConfig": "modeling_phi3.C"},', 1)
    config.write_text(text)
    merge(tmp_path / "out", base)
    assert "auto_map" not in read_json(tmp_path / "out" / "config.json")
    assert not list((tmp_path / "out").glob("*.py"))
