"""Shards: a directory of tar files in WebDataset's layout, with an index of their members (:mod:`scaleup.data.index`).

With the index, one read fetches any sample, and a truncated tar is noticed.
"""

from __future__ import annotations

import os
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleup.common.errors import UserError
from scaleup.data.decode import BadSample
from scaleup.data.index import COLUMNS, DAMAGE, TarEntry, explain_damage
from scaleup.data.labels import ONE, Label, as_label
from scaleup.data.storage import Directory, Storage, storage
from scaleup.data.table import Table

ASKED, PART = 16, 64  # tars whose sizes are asked for at a time, each time for so many in turn


@dataclass(frozen=True)
class Sample:
    """One image or video as a file, or its record in a token cache, and its labels."""

    key: str  # unique in its shards, without a dot
    extension: str
    media: bytes
    labels: Mapping[str, Label]


class Shards:
    """Random access to the samples of a shard directory, here or at an address such as https://host/train.

    It can be forked and pickled: each process opens its own files.
    """

    def __init__(self, place: Storage, table: Table) -> None:
        self.path, self._storage, self._table, index = place.path, place, table, table.index
        self.modality, self.classes, self.kinds = index.modality, index.classes, index.kinds
        self.failures, self.notes, self.made = index.failures, index.notes, index.made
        self.files = [tar.file for tar in index.shards]
        self.sizes, self.labels = table.sizes, table.labels
        self.keys = table.keys
        self.list_sha256 = table.list_sha256  # accuracies can only be compared if it is the same

    def __reduce__(self) -> Any:
        return Shards.open, (self.path,)

    @classmethod
    def open(cls, path: str | Path) -> Shards:
        """Open a shard directory. Time and memory depend on the number of shards, not of samples.

        Raises:
            UserError: no such directory, its index is damaged or of another format, or a tar is missing or has
                another size than in the index (at an address this is only noticed when the tar is read).
        """
        table, place = Table.open(path), storage(path)
        for tar in table.index.shards:
            if os.path.basename(tar.file) != tar.file:  # noqa: PTH119
                raise UserError(f"'{path}/index.json' is damaged: '{tar.file}' is not the name of a file in it")
        if isinstance(place, Directory):
            _refuse_other_sizes(str(place.path), table.index.shards)
        return cls(place, table)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def name(self) -> str:
        """The last part of the path or address."""
        return str(self.path).rstrip("/").rsplit("/", 1)[-1]

    def read(self, i: int) -> Sample:
        """Sample ``i``, with one read at its offset; BadSample if its bytes have changed.

        Raises:
            UserError: the index is damaged.
        """
        tar = bisect_right(self._table.begins, i) - 1
        try:
            self._table.check(tar)
            ending, offset, size, crc = self._table.members[i][0]
        except UserError:  # an address that does not answer
            raise
        except DAMAGE as error:
            raise UserError(f"'{self.path}/{COLUMNS}' is damaged: {explain_damage(error)}") from None
        try:
            data = self._storage.part(self.files[tar], offset, size)
        except OSError as error:
            raise BadSample(f"{self.files[tar]} cannot be read: {error.strerror or error}") from None
        if zlib.crc32(data) != crc:
            raise BadSample(f"its bytes in {self.files[tar]} have changed since it was written")
        return Sample(self.keys[i], self._table.endings[ending], data, self.labels_of(i))

    def kind(self, label: str) -> str:
        """Of a label: one, several or number."""
        return self.kinds.get(label, ONE)

    def labels_of(self, i: int) -> dict[str, Label]:
        """The labels of sample ``i``."""
        return {name: as_label(labels[i]) for name, labels in self.labels.items()}


def _refuse_other_sizes(folder: str, tars: Sequence[TarEntry]) -> None:
    """UserError for the first tar that is missing or has another size. Several are asked for at a time, since disks and
    networks may take long to answer."""

    def refuse(part: Sequence[TarEntry]) -> None:
        for tar in part:
            file = f"{folder}/{tar.file}"
            try:
                actual = os.stat(file).st_size  # noqa: PTH116
            except OSError:
                raise UserError(f"shard '{file}' is missing") from None
            if actual != tar.bytes:
                raise UserError(f"shard '{file}' has {actual} bytes; its index says {tar.bytes}")

    with ThreadPoolExecutor(ASKED) as pool:
        list(pool.map(refuse, (tars[begin : begin + PART] for begin in range(0, len(tars), PART))))
