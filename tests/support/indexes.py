"""Indexes with all their samples, to be changed and written back."""

from pathlib import Path

from scaleup.data.index import Index, read_index, write_part
from scaleup.data.table import Table


def whole_index(path: Path) -> Index:
    table = Table.of(path, read_index(path)[0])
    table.index.shards = [table.entry(number) for number in range(len(table.sizes))]
    return table.index


def make_older(path: Path) -> None:
    """The index as versions before ``index.columns`` wrote it."""
    write_part(path / "index.json", whole_index(path))
    (path / "index.columns").unlink()
