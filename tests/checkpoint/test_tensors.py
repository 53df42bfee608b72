"""Tensors in and out of safetensors files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edgetune.checkpoint import tensors as module
from edgetune.checkpoint.folder import INDEX_FILE
from edgetune.checkpoint.header import read_header
from edgetune.checkpoint.tensors import (
    TORCH_DTYPES,
    Output,
    dtype_name,
    is_finite,
    load_blocks,
    load_rows,
    load_tensor,
    write_checkpoint_weights,
    write_safetensors,
)
from edgetune.errors import InputRefusedError, StepFailedError


def output(name: str, *blocks: torch.Tensor, shape: tuple[int, ...] | None = None) -> Output:
    whole = tuple(blocks[0].shape) if shape is None else shape

    def made() -> Iterable[torch.Tensor]:
        return blocks

    return Output(name, dtype_name(blocks[0].dtype), whole, made)


@given(
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from(["F32", "BF16", "F16", "I64", "U8", "BOOL", "F64"]),
    seed=st.integers(0, 99),
)
def test_written_tensors_are_read_back(
    shape: list[int], dtype: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.rand(shape, generator=generator) * 9).to(TORCH_DTYPES[dtype])
    file = tmp_path_factory.getbasetemp() / "x.safetensors"
    write_safetensors(file, [output("x", tensor), output("y", torch.ones(3))])
    theirs = load_file(file)
    ours = load_tensor(file.parent, read_header(file)["x"])
    for found in (theirs["x"], ours):
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert found.equal(tensor)


def test_same_file_as_the_library_s(tmp_path: Path) -> None:
    values = {
        "b": torch.arange(3, dtype=torch.bfloat16),
        "a": torch.arange(5, dtype=torch.bfloat16),
        "c": torch.arange(4, dtype=torch.float32),
    }
    save_file(values, tmp_path / "theirs", metadata={"format": "pt"})
    write_safetensors(tmp_path / "ours", [output(n, t) for n, t in values.items()])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_rows_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(60, dtype=torch.float32).reshape(12, 5)
    write_safetensors(tmp_path / "x", [output("x", tensor[:7], tensor[7:], shape=(12, 5))])
    entry = read_header(tmp_path / "x")["x"]
    assert load_tensor(tmp_path, entry, torch.float64).equal(tensor.double())
    assert load_rows(tmp_path, entry, 3, 8).equal(tensor[3:8])
    monkeypatch.setattr(module, "CHUNK_BYTES", 64)
    blocks = list(load_blocks(tmp_path, entry))
    assert len(blocks) == 4
    assert torch.cat(blocks).equal(tensor.reshape(-1))


def test_shards(tmp_path: Path) -> None:
    outputs = [output(f"t{n}", torch.full((10,), float(n))) for n in range(5)]
    told: list[str] = []
    files = write_checkpoint_weights(tmp_path, outputs, told.append, shard_bytes=90)
    assert files == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)] + [INDEX_FILE]
    assert told == ["t0", "t1", "t2", "t3", "t4"]
    assert write_checkpoint_weights(tmp_path, outputs[:1]) == ["model.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.ones(4, 4, dtype=dtype)
    tensor[2, 1] = value
    write_safetensors(tmp_path / "x", [output("weight", tensor)])
    entry = read_header(tmp_path / "x")["weight"]
    words = r"x: tensor 'weight' holds NaN or infinity \(1 of \d+ values\)"
    with pytest.raises(InputRefusedError, match=words):
        load_tensor(tmp_path, entry)
    with pytest.raises(InputRefusedError, match=words):
        load_rows(tmp_path, entry, 2, 3)
    with pytest.raises(InputRefusedError, match=words):
        list(load_blocks(tmp_path, entry))
    assert load_rows(tmp_path, entry, 0, 2).shape == (2, 4)
    assert load_tensor(tmp_path, entry, packed=True).shape == (4, 4)


def test_file_that_shrank(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", [output("weight", torch.ones(64))])
    entry = read_header(tmp_path / "x")["weight"]
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-4])
    with pytest.raises(InputRefusedError, match="truncated while it was read"):
        load_tensor(tmp_path, entry)


def test_no_mapping_stays_behind(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", [output("weight", torch.ones(4096))])
    tensor = load_tensor(tmp_path, read_header(tmp_path / "x.safetensors")["weight"])
    assert "x.safetensors" not in Path("/proc/self/maps").read_text()
    assert tensor.sum() == 4096


def test_an_output_that_breaks_its_word_is_an_error(tmp_path: Path) -> None:
    short = output("x", torch.ones(3), shape=(4,))
    with pytest.raises(StepFailedError, match="x got 12 bytes instead of 16"):
        write_safetensors(tmp_path / "x", [short])
    other = Output("x", "F32", (3,), lambda: [torch.ones(3, dtype=torch.bfloat16)])
    with pytest.raises(StepFailedError, match=r"made as torch\.bfloat16"):
        write_safetensors(tmp_path / "x", [other])
    meta = Output("x", "F32", (3,), lambda: [torch.ones(3, device="meta")])
    with pytest.raises(StepFailedError, match="on meta"):
        write_safetensors(tmp_path / "x", [meta])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found(dtype: torch.dtype, bad: float) -> None:
    largest = torch.full((3, 40_000), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(largest)
    assert is_finite(torch.zeros(0, dtype=dtype))
    for place in (0, 77_777, 119_999):
        tensor = largest.clone()
        tensor.view(-1)[place] = bad
        assert not is_finite(tensor)
