"""A .npy file of float32 rows, written and read a few rows at a time.

Plain reads and writes, no memory map: positions × vocabulary can be gigabytes, and pages that a
process has mapped count as its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_MOST_BYTES_AT_ONCE = 64 << 20


class RowFile:
    """float32 [rows, width] on disk, little endian, C order."""

    def __init__(self, path: Path, rows: int, width: int) -> None:
        self.rows, self.width = rows, width
        self._file = path.open("w+b", buffering=0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()
        # A hole until it is written: rows may be written in any order.
        self._file.truncate(self._start + rows * width * 4)

    def write(self, row: int, values: NDArray[np.float32]) -> None:
        """Put values [n, width] at rows row..row+n."""
        data = memoryview(np.ascontiguousarray(values, dtype="<f4").tobytes())
        self._file.seek(self._start + row * self.width * 4)
        while data:
            data = data[self._file.write(data) :]

    def read(self, row: int, count: int) -> NDArray[np.float32]:
        """Rows row..row+count as an array of its own, [count, width]."""
        values = np.empty((count, self.width), dtype="<f4")
        self._file.seek(self._start + row * self.width * 4)
        view = values.data.cast("B")
        while view:
            got = self._file.readinto(view)
            if not got:
                msg = f"{self._file.name}: ends before row {row + count}"
                raise EOFError(msg)
            view = view[got:]
        return values

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(first row, count) of blocks that fit in memory, covering all rows."""
        size = max(1, _MOST_BYTES_AT_ONCE // (self.width * 4))
        for row in range(0, self.rows, size):
            yield row, min(size, self.rows - row)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
