"""Rows of all samples, kept to be read column by column."""

from __future__ import annotations

import tempfile

import numpy as np

IN_MEMORY = 2**26  # bytes of a spool, from which on it is a temporary file
ROWS = 2**14  # that are written together, one column after the other


class Spool:
    """Rows (C,) of one type, in the order in which they were added."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  closed when nobody has it any more
        self._blocks: list[tuple[int, int]] = []  # byte at which it begins, rows
        self._last: list[np.ndarray] = []  # not written yet
        self._rows = 0  # of these

    def add(self, rows: np.ndarray) -> None:
        """Keep rows (n, C)."""
        self._last.append(rows)
        self._rows += len(rows)
        if self._rows >= ROWS:
            self._write()

    def columns(self, begin: int, end: int) -> np.ndarray:
        """Of all rows the columns from ``begin`` to ``end``: (N, end - begin). There must be a row."""
        if self._last:
            self._write()
        parts = []
        for place, rows in self._blocks:
            self._file.seek(place + begin * rows * self.dtype.itemsize)
            data = self._file.read((end - begin) * rows * self.dtype.itemsize)
            parts.append(np.frombuffer(data, self.dtype).reshape(end - begin, rows).T)
        return np.concatenate(parts)

    def _write(self) -> None:
        rows = np.concatenate(self._last)
        self.dtype = rows.dtype
        self._blocks.append((self._file.seek(0, 2), len(rows)))
        self._file.write(np.ascontiguousarray(rows.T).data)
        self._last, self._rows = [], 0
