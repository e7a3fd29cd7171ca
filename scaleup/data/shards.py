"""Shards: a directory of tar files in WebDataset's layout, with an index of their members.

``index.json`` holds the format version, the modality, the class names of every label, which labels are lists or numbers
(``kinds``), and for every tar its size, its sha256 and its samples: key, labels, and for each member [offset, size,
crc32]. With the index, one read fetches any sample, and a truncated tar is noticed.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scaleup.common.errors import UserError
from scaleup.common.files import write_text
from scaleup.data.decode import EXTENSIONS, BadSample
from scaleup.data.labels import KINDS, ONE, Label, as_array, as_label, explain_label
from scaleup.data.storage import Directory, Failure, Storage, storage

FORMAT = "scaleup-shards-1"
OPTIONAL = {"kinds", "notes", "in_place", "made"}  # keys of an index that stand in it where they say something
CHANGED = "it has changed since it was written"
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, StopIteration, OverflowError)  # raised for an invalid index
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

    @classmethod
    def of(cls, content: dict[str, Any]) -> TarEntry:
        return cls(**content | {"samples": [SampleEntry(**sample) for sample in content["samples"]]})


@dataclass
class Index:
    """The content of ``index.json``. After reading, values may have any type until :class:`Shards` has checked them."""

    modality: str
    classes: dict[str, list[str]]  # label -> class names in the order of their numbers
    count: int  # number of samples
    failures: list[Failure]  # files that were left out
    shards: list[TarEntry]
    kinds: dict[str, str] = field(default_factory=dict)  # label -> several | number; the others are one class
    notes: list[Note] = field(default_factory=list)
    in_place: bool = False  # the tars existed before, and only the index was written
    made: dict[str, Any] = field(default_factory=dict)  # of a token cache: how it was made

    @classmethod
    def of(cls, content: dict[str, Any]) -> Index:
        values = {name: value for name, value in content.items() if name not in ("format", "crc32")}
        values["failures"] = [Failure(**failure) for failure in values["failures"]]
        values["notes"] = [Note(**note) for note in values.get("notes", [])]
        return cls(**values | {"shards": [TarEntry.of(entry) for entry in values["shards"]]})


def write_index(path: Path, index: Index, name: str = "index.json") -> None:
    """Write ``path/index.json``; its first entry is the crc32 of the rest of the file."""
    values = {name: value for name, value in vars(index).items() if value or name not in OPTIONAL}
    content = {"format": FORMAT, **values}
    text = json.dumps(content, separators=(",", ":"), default=vars)[1:]
    write_text(path / name, f'{{"crc32":{zlib.crc32(text.encode())},{text}')


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
    if version != FORMAT:
        raise UserError(f"'{path}/index.json' has format {version!r}; this version reads {FORMAT!r}")
    return content, content.get("crc32") != zlib.crc32(data.partition(b",")[2])


def file_sha256(path: Path) -> str:
    """The file's sha256, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class Sample:
    """One image or video as a file, or its record in a token cache, and its labels."""

    key: str  # unique in its shards, without a dot
    extension: str
    media: bytes
    labels: Mapping[str, Label]


class Shards:
    """Random access to the samples of a shard directory, here or at an address such as https://host/train.

    It can be forked and pickled: each process opens its own files. An index that contradicts itself raises an error of
    ``DAMAGE``.
    """

    def __init__(self, storage: Storage, index: Index) -> None:
        self.path, self._storage = storage.path, storage
        self.modality, self.classes = index.modality, index.classes
        self.failures, self.notes, self.made = index.failures, index.notes, index.made
        self.files = [tar.file for tar in index.shards]
        self.sizes = [len(tar.samples) for tar in index.shards]  # samples of each
        entries = [(number, entry) for number, tar in enumerate(index.shards) for entry in tar.samples]
        self.keys = [str(entry.key) for _, entry in entries]
        endings = MEDIA[self.modality]
        media = [next(ending for ending in entry.members if ending in endings) for _, entry in entries]
        self._extensions = np.array([endings.index(ending) for ending in media], dtype=np.uint8)
        places = [(tar, *entry.members[ending]) for (tar, entry), ending in zip(entries, media, strict=True)]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 4)  # shard, offset, size, crc32
        self.kinds = index.kinds
        self._refuse_labels([entry for _, entry in entries])
        self.labels: dict[str, np.ndarray] = {
            name: as_array([entry.labels[name] for _, entry in entries], self.kinds.get(name, ONE))
            for name in self.classes
        }
        self._refuse_nonsense(np.array([tar.bytes for tar in index.shards], dtype=np.int64))

    def _refuse_labels(self, entries: list[SampleEntry]) -> None:
        """ValueError with the first label that is a list or a number and is none of its kind."""
        for name, kind in self.kinds.items():  # the others are checked all at once
            if kind not in KINDS:
                raise ValueError(f"label '{name}' is of kind {kind!r}; known: {', '.join(KINDS)}")
            for entry in entries:
                if fault := explain_label(entry.labels[name], kind, len(self.classes[name])):
                    raise ValueError(f"label '{name}' of sample '{entry.key}' {fault}")

    def _refuse_nonsense(self, sizes: np.ndarray) -> None:
        """ValueError with the first wrong sample if the index contradicts itself."""
        for file in self.files:
            if Path(file).name != file:
                raise ValueError(f"'{file}' is not the name of a file in it")
        if len(set(self.keys)) < len(self.keys):
            raise ValueError(f"key '{next(key for key, n in Counter(self.keys).items() if n > 1)}' occurs twice")
        shard, offset, size, _ = self._places.T
        for wrong in np.flatnonzero((offset < 0) | (size < 0) | (offset + size > sizes[shard])):
            raise ValueError(f"sample '{self.keys[wrong]}' is not inside {self.files[shard[wrong]]}")
        for name in self.labels.keys() - self.kinds.keys():
            labels, count = self.labels[name], len(self.classes[name])
            for wrong in np.flatnonzero((labels < 0) | (labels >= count)):
                raise ValueError(f"sample '{self.keys[wrong]}' has {name} {labels[wrong]} of {count} classes")

    @classmethod
    def open(cls, path: str | Path) -> Shards:
        """Open a shard directory.

        Raises:
            UserError: no such directory, its index is damaged or of another format, or a tar is missing or has
                another size than in the index (at an address this is only noticed when the tar is read).
        """
        (content, changed), place = read_index(path), storage(path)
        if changed:
            raise UserError(f"'{path}/index.json' is damaged: {CHANGED}")
        try:
            index = Index.of(content)
            shards = cls(place, index)
        except DAMAGE as error:
            raise UserError(f"'{path}/index.json' is damaged: {type(error).__name__} {error}") from None
        if isinstance(place, Directory):
            for tar in index.shards:
                file = place.path / tar.file
                if not file.is_file():
                    raise UserError(f"shard '{file}' is missing")
                if (size := file.stat().st_size) != tar.bytes:
                    raise UserError(f"shard '{file}' has {size} bytes; its index says {tar.bytes}")
        return shards

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def name(self) -> str:
        """The last part of the path or address."""
        return str(self.path).rstrip("/").rsplit("/", 1)[-1]

    def read(self, i: int) -> Sample:
        """Sample ``i``, with one read at its offset; BadSample if its bytes have changed."""
        shard, offset, size, crc = self._places[i].tolist()
        try:
            data = self._storage.part(self.files[shard], offset, size)
        except OSError as error:
            raise BadSample(f"{self.files[shard]} cannot be read: {error.strerror or error}") from None
        if zlib.crc32(data) != crc:
            raise BadSample(f"its bytes in {self.files[shard]} have changed since it was written")
        extension = MEDIA[self.modality][self._extensions[i]]
        return Sample(self.keys[i], extension, data, self.labels_of(i))

    def kind(self, label: str) -> str:
        """Of a label: one, several or number."""
        return self.kinds.get(label, ONE)

    def labels_of(self, i: int) -> dict[str, Label]:
        """The labels of sample ``i``."""
        return {name: as_label(labels[i]) for name, labels in self.labels.items()}

    @property
    def list_sha256(self) -> str:
        """Hash of the sorted keys. Accuracies can only be compared if it is the same."""
        return list_sha256(self.keys)


def list_sha256(keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
