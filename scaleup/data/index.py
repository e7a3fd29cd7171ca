"""The index of a shard directory: ``index.json``, and ``index.columns`` with a row for every sample.

``index.json`` holds the format version, the modality, the class names of every label, which labels are lists or numbers
(``kinds``), and for every tar its size, its sha256, the number of its samples and the crc32 of their rows. The columns
have the key, the labels and the members of each sample. They are mapped, not parsed, so an index of any
size opens at once.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from scaleup.common.errors import UserError
from scaleup.common.files import move, write_text
from scaleup.data.columns import ENDS, Columns, Ragged, open_columns, rows_crc32, text, write_columns
from scaleup.data.decode import EXTENSIONS
from scaleup.data.labels import KINDS, NUMBER, ONE, SEVERAL, Label, explain_label
from scaleup.data.storage import Directory, Failure, storage

FORMAT, OLDER = "scaleup-shards-2", "scaleup-shards-1"  # the older one has all samples in index.json
COLUMNS = "index.columns"
OPTIONAL = {"kinds", "notes", "in_place", "made", "converted"}  # keys that stand in index.json if they say something
NOT_OF_IT = {"format", "crc32", "endings", "columns", "list_sha256"}  # keys of index.json
SORTED = 2**18  # keys that are sorted together
LABEL = "label "  # begins the name of a column
CHANGED = "it has changed since it was written"
DAMAGE = (LookupError, TypeError, ValueError, AttributeError, StopIteration, OverflowError)  # of an invalid index
# Content of shards: files, or the output of a trunk (scaleup.data.token_records).
MEDIA = {**EXTENSIONS, "taps": ("safetensors",)}


@dataclass(frozen=True)
class Note:
    """A remark about a sample that is unusual but used."""

    source: str
    note: str


@dataclass
class SampleEntry:
    """A sample's entry in the index."""

    key: str
    labels: dict[str, Label]
    members: dict[str, list[int]]  # extension -> [offset in the tar, size, crc32]


@dataclass
class TarEntry:
    """A tar's entry in the index."""

    file: str
    bytes: int
    sha256: str
    samples: list[SampleEntry]


@dataclass
class Index:
    """What an index holds. After reading, values may have any type until they are checked (``scaleup.data.table``)."""

    modality: str
    classes: dict[str, list[str]]  # label -> class names in the order of their numbers
    count: int  # number of samples
    failures: list[Failure]  # files that were left out
    shards: list[TarEntry]
    kinds: dict[str, str] = field(default_factory=dict)  # label -> several | number; the others are one class
    notes: list[Note] = field(default_factory=list)
    in_place: bool = False  # the tars existed before, and only the index was written
    made: dict[str, Any] = field(default_factory=dict)  # of a token cache: how it was made
    converted: str = ""  # sha256 of the older index that this one was made from; runs and caches know it by this one

    @classmethod
    def of(cls, content: dict[str, Any]) -> Index:
        """The content of an older index, or that of a newer one without its samples."""
        values = {name: value for name, value in content.items() if name not in NOT_OF_IT}
        values["failures"] = [Failure(**failure) for failure in values["failures"]]
        values["notes"] = [Note(**note) for note in values.get("notes", [])]
        newer, tars = content["format"] == FORMAT, list[TarEntry]()
        for tar in values["shards"]:
            samples = [] if newer else [SampleEntry(**sample) for sample in tar["samples"]]
            tars.append(TarEntry(tar["file"], tar["bytes"], tar["sha256"], samples))
        return cls(**values | {"shards": tars})


def write_index(path: Path, index: Index, tars: Iterable[TarEntry] | None = None) -> None:
    """Write ``path/index.columns``, then ``path/index.json``, whose first entry is the crc32 of the rest of the file.

    Args:
        tars: in place of the index's own; they may be made one after the other, so that few are in memory.
    """
    endings = dict[str, int]()

    def parts() -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        for tar in index.shards if tars is None else tars:
            yield vars(tar) | {"samples": len(tar.samples)}, columns_of(tar.samples, index, endings)

    write_rows(path, index, columns_of([], index, endings), parts(), endings)


def write_rows(
    path: Path,
    index: Index,
    empty: dict[str, np.ndarray],
    parts: Iterable[tuple[dict[str, Any], dict[str, np.ndarray]]],
    endings: Iterable[str],
    list_hash: str | None = None,
) -> None:
    """:func:`write_index` for rows that are columns already.

    Args:
        empty: the columns without a row.
        parts: for every tar its entry, with the number of its samples, and its rows.
        endings: of all members, by number.
        list_hash: in place of that of the keys, which takes minutes for a hundred million.
    """
    shards = list[dict[str, Any]]()

    def columns() -> Iterator[dict[str, np.ndarray]]:
        yield empty
        for tar, rows in parts:
            shards.append(tar)
            yield rows

    halves = {name: path / f".{name}.new" for name in (COLUMNS, "index.json")}  # until both are whole
    try:
        layout = write_columns(halves[COLUMNS], columns())
        written = open_columns(Directory(path), halves[COLUMNS].name, layout)
        _add_crc32(shards, written)
        hashed = list_sha256(Ragged(written, "keys", text)) if list_hash is None else list_hash
        newer = {"shards": shards, "endings": list(endings), "columns": layout, "list_sha256": hashed}
        _write(halves["index.json"], FORMAT, vars(index) | newer)
        for name, half in halves.items():
            move(half, path / name)
    finally:
        for half in halves.values():
            half.unlink(missing_ok=True)


def _add_crc32(tars: Iterable[dict[str, Any]], written: Columns) -> None:
    """Add the crc32 of their rows to the entries of tars."""
    end = 0
    for tar in tars:
        begin, end = end, end + tar["samples"]
        tar["crc32"] = rows_crc32(written, begin, end)


def write_part(path: Path, index: Index) -> None:
    """Write an index, with its samples, to one file of JSON."""
    _write(path, OLDER, vars(index))


def _write(path: Path, form: str, values: dict[str, Any]) -> None:
    values = {"format": form} | {name: value for name, value in values.items() if value or name not in OPTIONAL}
    content = json.dumps(values, separators=(",", ":"), default=vars)[1:]
    write_text(path, f'{{"crc32":{zlib.crc32(content.encode())},{content}')


def columns_of(samples: Sequence[SampleEntry], index: Index, endings: dict[str, int]) -> dict[str, np.ndarray]:
    """The columns of samples: texts as UTF-8; members in fours (ending, offset, size, crc32), the medium first; labels,
    several as a list. ``endings`` gets the number of every ending.

    Raises:
        ValueError: a label is none of its kind, or a sample has no medium.
    """
    medium = {id(entry): _medium(entry, index.modality) for entry in samples}
    members = [sorted(entry.members.items(), key=lambda member: member[0] != medium[id(entry)]) for entry in samples]
    places = [[(endings.setdefault(name, len(endings)), *place) for name, place in each] for each in members]
    columns = _ragged("keys", [list(str(entry.key).encode()) for entry in samples], "u1")
    columns |= _ragged("members", [[number for place in each for number in place] for each in places])
    for name in index.classes:
        kind, labels = index.kinds.get(name, ONE), [entry.labels[name] for entry in samples]
        if kind not in KINDS:
            raise ValueError(f"label '{name}' is of kind {kind!r}; known: {', '.join(KINDS)}")
        for entry in samples if kind != ONE else ():  # the others are checked all at once, where they are used
            if fault := explain_label(entry.labels[name], kind, len(index.classes[name])):
                raise ValueError(f"label '{name}' of sample '{entry.key}' {fault}")
        if kind == SEVERAL:
            columns |= _ragged(LABEL + name, labels)
        else:
            columns[LABEL + name] = np.array(labels, "<f8" if kind == NUMBER else "<i8")
    return columns


def _medium(entry: SampleEntry, modality: str) -> str:
    """The extension of a sample's image, video or record."""
    if (medium := next((name for name in entry.members if name in MEDIA[modality]), None)) is None:
        raise ValueError(f"sample '{entry.key}' has no {modality}: {', '.join(entry.members)}")
    return medium


def _ragged(name: str, lists: list[Any], dtype: str = "<i8") -> dict[str, np.ndarray]:
    ends = np.cumsum([len(each) for each in lists], dtype="<i8")
    return {name + ENDS: ends, name: np.array([value for each in lists for value in each], dtype)}


def index_bytes(path: str | Path) -> bytes:
    """The bytes of ``path/index.json``; UserError if it cannot be read."""
    try:
        return storage(path).whole("index.json")
    except OSError as error:
        raise UserError(f"'{path}' is not a shard directory: it has no readable index.json ({error})") from None


def read_index(path: str | Path) -> tuple[dict[str, Any], bool]:
    """``path/index.json``, and whether it has changed since it was written.

    Raises:
        UserError: there is none, or it has another format.
    """
    data = index_bytes(path)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise UserError(f"'{path}/index.json' is damaged: it is not JSON") from None
    version = content.get("format") if isinstance(content, dict) else None
    if version not in (FORMAT, OLDER):
        raise UserError(f"'{path}/index.json' has format {version!r}; this version reads {FORMAT!r} and {OLDER!r}")
    return content, content.get("crc32") != zlib.crc32(data.partition(b",")[2])


def index_sha256(path: str | Path) -> str:
    """What runs and caches know shards by: the sha256 of ``path/index.json``, or that of the older index that it was
    converted from."""
    return read_index(path)[0].get("converted") or hashlib.sha256(index_bytes(path)).hexdigest()


def explain_damage(error: Exception) -> str:
    """An error of ``DAMAGE`` in words."""
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return str(error) if isinstance(error, ValueError) else f"a value in it has another form ({error})"


def convert(path: Path) -> bool:
    """Give a directory with an older index a newer one; False if it has one. Its tars are not changed.

    Raises:
        UserError: there is no readable index, or it is damaged.
    """
    content, changed = read_index(path)
    if content["format"] == FORMAT:
        return False
    try:
        index = Index.of(content)
        index.converted = hashlib.sha256(index_bytes(path)).hexdigest()
        if changed:
            raise ValueError(CHANGED)
        write_index(path, index)
    except DAMAGE as error:
        raise UserError(f"'{path}/index.json' is damaged: {explain_damage(error)}") from None
    return True


def list_sha256(keys: Iterable[str]) -> str:
    """Hash of the sorted keys, of which ``SORTED`` are in memory. Accuracies can only be compared if it is the same."""
    keys, runs, digest, between = iter(keys), list[Iterable[str]](), hashlib.sha256(), b""
    with ExitStack() as files:
        while run := sorted(islice(keys, SORTED)):
            runs.append(run if len(run) < SORTED else _spooled(run, files.enter_context(tempfile.TemporaryFile("w+"))))
        merged = heapq.merge(*runs)
        while part := list(islice(merged, SORTED)):
            digest.update(between + "\n".join(part).encode())
            between = b"\n"
    return digest.hexdigest()


def _spooled(keys: Sequence[str], file: IO[str]) -> Iterator[str]:
    """The keys, read from ``file``, to which they are written."""
    file.writelines(f"{json.dumps(key)}\n" for key in keys)
    file.seek(0)
    return map(json.loads, file)


def file_sha256(path: Path) -> str:
    """The file's sha256, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
