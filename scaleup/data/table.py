"""An open index: columns of its samples, of which a row is read where it is used."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from scaleup.common.errors import UserError
from scaleup.data.columns import Columns, Ragged, open_columns, rows_crc32, text
from scaleup.data.index import (
    CHANGED,
    COLUMNS,
    DAMAGE,
    FORMAT,
    LABEL,
    Index,
    SampleEntry,
    TarEntry,
    columns_of,
    explain_damage,
    list_sha256,
    read_index,
)
from scaleup.data.labels import ONE, SEVERAL, as_label
from scaleup.data.storage import storage

LARGE = 100_000  # samples of an older index from which on a newer one is proposed


class Table:
    """The samples of an index, numbered tar by tar.

    Args:
        index: its tars need no samples.
        sizes: number of samples of each tar.
        crcs: crc32 of the rows of each tar; None: there are none to check.
        list_sha256: of the keys.
    """

    def __init__(
        self,
        index: Index,
        sizes: list[int],
        columns: Columns,
        endings: list[str],
        crcs: list[int] | None,
        list_sha256: str,
    ) -> None:
        self.index, self.sizes, self.columns, self.endings = index, sizes, columns, endings
        self.crcs, self.list_sha256 = crcs, list_sha256
        self.begins: list[int] = np.cumsum([0, *sizes], dtype=np.int64).tolist()
        self.keys = Ragged(columns, "keys", text)
        self.members = Ragged(columns, "members", lambda values: values.reshape(-1, 4).tolist())
        self.labels = {name: self._label(name) for name in index.classes}
        self._checked = bytearray(len(sizes))

    def _label(self, name: str) -> Any:
        if self.index.kinds.get(name, ONE) == SEVERAL:
            return Ragged(self.columns, LABEL + name, lambda values: tuple(values.tolist()))
        return self.columns[LABEL + name]

    @classmethod
    def of(cls, path: str | Path, content: dict[str, Any]) -> Table:
        """From the content of ``path/index.json``; an error of ``DAMAGE``; UserError if the columns cannot be read."""
        index = Index.of(content)
        if content["format"] == FORMAT:
            sizes, crcs = ([tar[key] for tar in content["shards"]] for key in ("samples", "crc32"))
            columns = open_columns(storage(path), COLUMNS, content["columns"])
            return cls(index, sizes, columns, content["endings"], crcs, content["list_sha256"])
        endings, entries = dict[str, int](), [entry for tar in index.shards for entry in tar.samples]
        columns, keys = columns_of(entries, index, endings), [str(entry.key) for entry in entries]
        table = cls(index, [len(tar.samples) for tar in index.shards], columns, list(endings), None, list_sha256(keys))
        if len(set(keys)) < len(keys):
            raise ValueError(f"key '{Counter(keys).most_common(1)[0][0]}' occurs twice")
        for number in range(len(index.shards)):
            table.check(number)
        return table

    @classmethod
    def open(cls, path: str | Path) -> Table:
        """The index of a shard directory or address. Rows of a newer one are checked where a tar is first used.

        Raises:
            UserError: there is none, it is damaged or of another format.
        """
        content, changed = read_index(path)
        if changed:
            raise UserError(f"'{path}/index.json' is damaged: {CHANGED}")
        if content["format"] != FORMAT and (count := content.get("count", 0)) > LARGE:
            how = f"tools/check_shards.py {path} --convert makes one that opens at once"
            print(f"'{path}' has an older index of {count} samples, which is read whole; {how}", file=sys.stderr)
        try:
            return cls.of(path, content)
        except UserError:  # of the columns
            raise
        except DAMAGE as error:
            raise UserError(f"'{path}/index.json' is damaged: {explain_damage(error)}") from None

    def check(self, tar: int) -> None:
        """Once for every tar: ValueError with the first thing that is wrong in its rows."""
        if self._checked[tar]:
            return
        entry, begin, end = self.index.shards[tar], *self.begins[tar : tar + 2]
        if self.crcs and rows_crc32(self.columns, begin, end) != self.crcs[tar]:
            raise ValueError(f"the rows of {entry.file} have changed since they were written")
        members, ends = self.members.span(begin, end)
        _, offset, size, _ = members.reshape(-1, 4).T
        for wrong in np.flatnonzero((offset < 0) | (size < 0) | (offset + size > entry.bytes)):
            row = begin + int(np.searchsorted(ends, 4 * wrong, side="right"))
            raise ValueError(f"sample '{self.keys[row]}' is not inside {entry.file}")
        for name in self.labels.keys() - self.index.kinds.keys():
            labels, count = np.asarray(self.labels[name][begin:end]), len(self.index.classes[name])
            for wrong in np.flatnonzero((labels < 0) | (labels >= count)):
                raise ValueError(f"sample '{self.keys[begin + wrong]}' has {name} {labels[wrong]} of {count} classes")
        self._checked[tar] = 1

    def entry(self, tar: int) -> TarEntry:
        """The entry of a tar with its samples."""
        entry, rows = self.index.shards[tar], slice(*self.begins[tar : tar + 2])
        labels = {name: [as_label(label) for label in column[rows]] for name, column in self.labels.items()}
        members = [{self.endings[ending]: place for ending, *place in each} for each in self.members[rows]]
        samples = [
            SampleEntry(key, {name: column[row] for name, column in labels.items()}, members[row])
            for row, key in enumerate(self.keys[rows])
        ]
        return TarEntry(entry.file, entry.bytes, entry.sha256, samples)
