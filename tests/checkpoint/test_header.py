"""A header is proved, whatever the bytes: an entry that can be trusted, or a refusal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.checkpoint.header import DTYPE_BYTES, MAX_HEADER_BYTES, read_header
from edgetune.errors import InputRefusedError


def entry(dtype: str, shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_entries(tmp_path: Path) -> None:
    header = {
        "b": entry("F32", [2, 2], 6, 22),
        "__metadata__": {"format": "pt"},
        "a": entry("BF16", [3], 0, 6),
        "empty": entry("F32", [0, 4], 6, 6),
        "scalar": entry("U8", [], 22, 23),
    }
    file = write(tmp_path / "x.safetensors", header, bytes(23))
    start = file.stat().st_size - 23
    found = read_header(file)
    assert list(found) == ["a", "empty", "b", "scalar"]
    assert found["b"].begin == start + 6
    assert found["b"].nbytes == 16
    assert found["b"].shape == (2, 2)
    assert found["b"].file == "x.safetensors"
    assert found["scalar"].shape == ()


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {"x": torch.arange(6).reshape(2, 3), "y": torch.ones(5, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"a": "b"})
    found = read_header(tmp_path / "x.safetensors")
    assert {n: (e.dtype, e.shape) for n, e in found.items()} == {
        "x": ("I64", (2, 3)),
        "y": ("BF16", (5,)),
    }


ONE = entry("F32", [2], 0, 8)
BROKEN: dict[str, tuple[Any, bytes, str]] = {
    "trailing bytes": ({"a": ONE}, bytes(9), "1 bytes follow its last tensor"),
    "truncated data": ({"a": ONE}, bytes(7), "truncated: its tensors need"),
    "overlap": (
        {"a": ONE, "b": entry("F32", [2], 4, 12)},
        bytes(12),
        "'b' overlaps the one before",
    ),
    "same bytes": ({"a": ONE, "b": ONE}, bytes(8), "'b' overlaps the one before"),
    "hole": ({"a": ONE, "b": entry("F32", [1], 12, 16)}, bytes(16), "'b' leaves a hole"),
    "late start": ({"a": entry("F32", [1], 4, 8)}, bytes(8), "'a' leaves a hole"),
    "size": ({"a": entry("F32", [3], 0, 8)}, bytes(8), "F32 of shape [3] is 12 bytes, not 8"),
    "reversed": ({"a": entry("F32", [2], 8, 0)}, bytes(8), "is 8 bytes, not -8"),
    "negative": ({"a": entry("F32", [-2], 0, 8)}, bytes(8), "not whole numbers from 0"),
    "true": ({"a": entry("F32", [True, 2], 0, 8)}, bytes(8), "not whole numbers from 0"),
    "fraction": ({"a": entry("F32", [2.0], 0, 8)}, bytes(8), "not whole numbers from 0"),
    "huge": ({"a": entry("F32", [1 << 70], 0, 8)}, bytes(8), "not whole numbers from 0"),
    "dtype": ({"a": entry("F4", [2], 0, 8)}, bytes(8), "dtype 'F4' is not supported"),
    "dtype list": ({"a": entry([], [2], 0, 8)}, bytes(8), "dtype [] is not supported"),  # type: ignore[arg-type]
    "extra key": ({"a": {**ONE, "x": 1}}, bytes(8), "not {dtype, shape, data_offsets}"),
    "no mapping": ({"a": [1]}, bytes(8), "not {dtype, shape, data_offsets}"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "__metadata__ is not a mapping of strings"),
    "a list": ([1], b"", "its header is not a JSON object"),
    "no json": (b"{nope", b"", "its header is not valid JSON"),
    "not utf-8": (b'{"\xff": 1}', b"", "its header is not valid JSON"),
    "nan": (b'{"a": NaN}', b"", "holds NaN, which is not JSON"),
    "doubled": (b'{"a": 1, "a": 2}', b"", "the name 'a' occurs twice"),
    "doubled inside": (b'{"a": {"dtype": 1, "dtype": 2}}', b"", "the name 'dtype' occurs twice"),
    "deep": (b'{"a":' + b"[" * 100_000, b"", "nested too deep"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken(case: str, tmp_path: Path) -> None:
    header, data, words = BROKEN[case]
    file = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(InputRefusedError) as caught:
        read_header(file)
    assert caught.value.message.startswith(f"{file}: ")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated: 0 bytes"),
        (b"\x01\x00", "truncated: 2 bytes"),
        ((9).to_bytes(8, "little") + b"{}", "truncated: its header needs 17 bytes"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "its header claims 100000001"),
        (b"\xff" * 64, "its header claims 18446744073709551615"),
    ],
)
def test_broken_before_the_header(data: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    with pytest.raises(InputRefusedError, match=r"truncated|claims") as caught:
        read_header(file)
    assert words in caught.value.message


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for name, words in (("pipe", "not a regular file"), ("absent", "No such file")):
        with pytest.raises(InputRefusedError, match=words):
            read_header(tmp_path / name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
numbers = st.integers(-2, 24)
near_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BYTES, "F4", ""]),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3),
    }
)
headers = st.dictionaries(
    st.text(max_size=3) | st.just("__metadata__"), near_entries | json_values, max_size=4
)


@given(header=headers, data=st.binary(max_size=32))
def test_any_header_is_read_or_refused(
    header: Any, data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = write(tmp_path_factory.getbasetemp() / "fuzz.safetensors", header, data)
    with contextlib.suppress(InputRefusedError):
        place = file.stat().st_size - len(data)
        for found in read_header(file).values():
            assert found.begin == place
            place += found.nbytes
        assert place == file.stat().st_size


@given(data=st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    file.write_bytes(data)
    with contextlib.suppress(InputRefusedError):
        read_header(file)


@given(text=st.text(max_size=48))
def test_any_text_is_read_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = ("{" + text).encode("utf-8", "surrogatepass")
    with contextlib.suppress(InputRefusedError):
        read_header(write(tmp_path_factory.getbasetemp() / "fuzz.safetensors", data))


def test_reading_headers_loads_no_heavy_library() -> None:
    import subprocess

    code = (
        "import sys, edgetune.checkpoint.combination\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'peft'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout == "[]\n"
