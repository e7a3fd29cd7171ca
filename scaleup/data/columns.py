"""Columns of samples: arrays one after the other in a file, of which only the rows that are used are read.

A column of texts or lists has a second one, ``NAME ends``: where each entry ends among the values.
"""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from scaleup.common.errors import UserError
from scaleup.data.storage import Directory, Remote, Storage

ENDS = " ends"
ALIGN = 64  # bytes; a column begins at a multiple
BLOCK = 2**15  # rows of a column at an address that are read together
BLOCKS = 16  # of each column that stay in memory
CHUNK = 2**16  # entries of a column of texts or lists that are read together where all are asked for

Layout = dict[str, list[Any]]  # name -> [dtype, rows, byte at which it begins]
Columns = Mapping[str, Any]  # name -> array, or a RemoteColumn


def write_columns(path: Path, parts: Iterable[Mapping[str, np.ndarray]]) -> Layout:
    """Write ``parts``, which have the same columns, one below the other. Memory does not grow with their number."""
    parts = iter(parts)
    first = next(parts)
    rows, layout = dict.fromkeys(first, 0), Layout()
    with ExitStack() as stack:
        files = {name: stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for name in first}  # without names
        for part in chain([first], parts):
            before = dict(rows)
            for name, array in part.items():
                files[name].write((array + before[name.removesuffix(ENDS)] if name.endswith(ENDS) else array).tobytes())
                rows[name] += len(array)
        with path.open("wb") as file:
            for name, spooled in files.items():
                file.write(bytes(-file.tell() % ALIGN))
                layout[name] = [first[name].dtype.str, rows[name], file.tell()]
                spooled.seek(0)
                shutil.copyfileobj(spooled, file)
    return layout


def byte_size(layout: Layout) -> int:
    """Bytes of the file."""
    return max((begin + np.dtype(dtype).itemsize * rows for dtype, rows, begin in layout.values()), default=0)


def open_columns(place: Storage, file: str, layout: Layout) -> Columns:
    """The columns of ``file``: mapped on this machine, where processes share the system's copy; read by ranges at an
    address.

    Raises:
        UserError: there is no such file, or it has another size.
    """
    if isinstance(place, Remote):
        return {name: RemoteColumn(place, file, *where) for name, where in layout.items()}
    wanted = byte_size(layout)
    try:
        if (size := (place.path / file).stat().st_size) != wanted:
            raise UserError(f"'{place.path}/{file}' has {size} bytes; its index says {wanted}")
        return {name: _mapped(place, file, *where) for name, where in layout.items()}
    except OSError as error:
        raise UserError(f"'{place.path}/{file}' cannot be read: {error.strerror or error}") from None


def _mapped(place: Directory, file: str, dtype: str, rows: int, begin: int) -> np.ndarray:
    if not rows:
        return np.empty(0, dtype)
    return np.memmap(place.path / file, dtype, "r", begin, (rows,)).view(np.ndarray)


class RemoteColumn:
    """A column at an address. Rows are read in blocks; as an array (``np.asarray``) all at once.

    Raises:
        UserError: the address does not answer.
    """

    def __init__(self, place: Remote, file: str, dtype: str, rows: int, begin: int) -> None:
        self.place, self.file, self.dtype, self.rows, self.begin = place, file, np.dtype(dtype), rows, begin
        self._blocks: dict[int, np.ndarray] = {}  # the last that were used

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            begin, end, _ = rows.indices(self.rows)
            blocks = range(begin // BLOCK, -(-max(begin, end) // BLOCK))
            parts = [self._block(number) for number in blocks] or [np.empty(0, self.dtype)]
            return np.concatenate(parts)[begin - blocks.start * BLOCK :][: max(0, end - begin)]
        if np.ndim(rows):
            return np.array([self[row] for row in rows], self.dtype)
        block, within = divmod(range(self.rows)[rows], BLOCK)
        return self._block(block)[within]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read(0, self.rows).astype(dtype or self.dtype)

    def _block(self, number: int) -> np.ndarray:
        if number not in self._blocks:
            self._blocks = dict(list(self._blocks.items())[1 - BLOCKS :])
            self._blocks[number] = self._read(number * BLOCK, min((number + 1) * BLOCK, self.rows))
        return self._blocks[number]

    def _read(self, begin: int, end: int) -> np.ndarray:
        size = self.dtype.itemsize
        try:
            data = self.place.part(self.file, self.begin + begin * size, (end - begin) * size) if end > begin else b""
        except OSError as error:
            raise UserError(f"'{self.place.path}/{self.file}' cannot be read: {error.strerror or error}") from None
        if len(data) != (end - begin) * size:
            raise UserError(f"'{self.place.path}/{self.file}' is cut off")
        return np.frombuffer(data, self.dtype)


class Ragged(Sequence[Any]):
    """A column of texts or lists. As of an array, several entries may be asked for at once; they come in a list, or for
    an array of rows in an array of objects.

    Args:
        make: an entry from its values.
    """

    dtype = np.dtype(object)

    def __init__(self, columns: Columns, name: str, make: Callable[[np.ndarray], Any]) -> None:
        self.ends, self.values, self.make = columns[name + ENDS], columns[name], make

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            begin, end, step = rows.indices(len(self))
            return list(self._entries(begin, end)) if step == 1 else [self[row] for row in range(begin, end, step)]
        if np.ndim(rows):
            entries = np.empty(len(rows), dtype=object)
            for number, row in enumerate(rows):
                entries[number] = self[row]
            return entries
        row = range(len(self))[rows]
        return next(self._entries(row, row + 1))

    def __iter__(self) -> Iterator[Any]:
        for begin in range(0, len(self), CHUNK):
            yield from self._entries(begin, min(begin + CHUNK, len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def span(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The values of the entries from ``begin`` to ``end``, and where each entry ends among them."""
        first = int(self.ends[begin - 1]) if begin else 0
        ends = np.asarray(self.ends[begin:end]) - first
        return np.asarray(self.values[first : first + (int(ends[-1]) if len(ends) else 0)]), ends

    def _entries(self, begin: int, end: int) -> Iterator[Any]:
        values, ends = self.span(begin, max(begin, end))
        last = 0
        for after in ends.tolist():
            yield self.make(values[last:after])
            last = after


def text(values: np.ndarray) -> str:
    return bytes(values).decode()


def rows_crc32(columns: Columns, begin: int, end: int) -> int:
    """Of the rows from ``begin`` to ``end`` of all columns."""
    crc = 0
    for name, column in columns.items():
        rows = Ragged(columns, name, text).span(begin, end)[0] if name + ENDS in columns else column[begin:end]
        crc = zlib.crc32(np.asarray(rows).tobytes(), crc)
    return crc
