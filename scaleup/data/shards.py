"""Shards: a directory of tar files in WebDataset's layout, and an index of what lies where in them.

``index.json`` holds the format version, the modality, the class names of every label, and for every tar its size,
its sha256 and its samples: key, labels, and per member [offset, size, crc32]. With it any sample is one read away,
and no truncated tar passes in silence.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from scaleup.common.files import new_directory, write_text
from scaleup.data.decode import EXTENSIONS, BadSample
from scaleup.data.storage import Directory, Storage, storage
from scaleup.errors import UserError

FORMAT = "scaleup-shards-1"


def index_of(
    modality: str,
    classes: Mapping[str, list[str]],
    shards: list[dict[str, Any]],
    failures: list[dict[str, str]],
    notes: Sequence[dict[str, str]] = (),
) -> dict[str, Any]:
    """The content of ``index.json``. ``notes`` ({"source", "note"}): what is odd about samples that are used."""
    count = sum(len(shard["samples"]) for shard in shards)
    index = {"format": FORMAT, "modality": modality, "classes": dict(classes), "count": count}
    return index | {"failures": failures} | ({"notes": list(notes)} if notes else {}) | {"shards": shards}


def write_index(path: Path, index: dict[str, Any]) -> None:
    """Write ``path/index.json``; its first entry is the crc32 of all that follows it."""
    text = json.dumps(index, separators=(",", ":"))[1:]
    write_text(path / "index.json", f'{{"crc32":{zlib.crc32(text.encode())},{text}')


def index_bytes(path: str | Path) -> bytes:
    """``path/index.json`` as it stands there; UserError if there is none."""
    try:
        return storage(path).whole("index.json")
    except OSError as error:
        raise UserError(f"'{path}' is no shard directory: it has no readable index.json ({error})") from None


def read_index(path: str | Path, changed: bool = False) -> dict[str, Any]:
    """The content of ``path/index.json``; UserError if there is none, it is not one of ours, or it was ``changed``."""
    data = index_bytes(path)
    try:
        index = json.loads(data)
    except (ValueError, RecursionError):
        raise UserError(f"'{path}/index.json' is damaged: it is not JSON") from None
    found = index.get("format") if isinstance(index, dict) else None
    if found != FORMAT:
        raise UserError(f"'{path}/index.json' has format {found!r}; this version reads {FORMAT!r}")
    if not changed and index.get("crc32") != zlib.crc32(data.partition(b",")[2]):
        raise UserError(f"'{path}/index.json' is damaged: it has changed since it was written")
    return index


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` under a temporary name beside ``path``, then rename."""
    write_text(path, json.dumps(content, separators=(",", ":")))


def file_sha256(path: Path) -> str:
    """The file's sha256, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


MEDIA = {
    **EXTENSIONS,
    "taps": ("safetensors",),
}  # what shards hold: files, or taps of a trunk (scaleup.data.token_records)


@dataclass(frozen=True)
class Sample:
    """One image or video as a file holds it, or the taps of one, and its label numbers."""

    key: str  # unique in its shards, without a dot
    extension: str
    media: bytes
    labels: dict[str, int]


def write_shards(
    samples: Iterable[Sample],
    out: str | Path,
    modality: str,
    classes: Mapping[str, list[str]],
    per_shard: int = 1000,
    overwrite: bool = False,
    failures: list[dict[str, str]] | None = None,
) -> Shards:
    """Write ``samples`` to the shard directory ``out``, which appears only when it is complete.

    The bytes depend on the samples alone. ``failures`` ({"source", "reason"}) may grow while ``samples`` runs.

    Raises:
        UserError: ``out`` exists and ``overwrite`` is not set, or it cannot be written.
    """
    seen: set[str] = set()
    with new_directory(out, overwrite) as temporary:
        shards: list[dict[str, Any]] = []
        for number, chunk in groupby(enumerate(samples), lambda numbered: numbered[0] // per_shard):
            checked = (_checked(sample, modality, classes, seen) for _, sample in chunk)
            shards.append(write_shard(temporary / f"{number:06d}.tar", checked))
        write_index(temporary, index_of(modality, classes, shards, failures or []))
    return Shards.open(out)


def _checked(sample: Sample, modality: str, classes: Mapping[str, list[str]], seen: set[str]) -> Sample:
    """``sample``, if it fits the shards; its key joins ``seen``."""
    if not sample.key or "." in sample.key or sample.key in seen:
        raise UserError(f"sample key {sample.key!r} is empty, has a dot or occurs twice")
    if sample.extension not in EXTENSIONS[modality]:
        raise UserError(
            f"sample '{sample.key}' is a .{sample.extension}; {modality}: {', '.join(EXTENSIONS[modality])}"
        )
    counts = {name: len(names) for name, names in classes.items()}
    if sample.labels.keys() != counts.keys() or any(not 0 <= sample.labels[name] < counts[name] for name in counts):
        raise UserError(f"sample '{sample.key}' has labels {sample.labels}; class counts are {counts}")
    seen.add(sample.key)
    return sample


def write_shard(path: Path, samples: Iterable[Sample]) -> dict[str, Any]:
    """Write one tar and return its entry of the index; where its members lie is read from what stands on the disk."""
    entries: dict[str, dict[str, Any]] = {}
    crcs: dict[str, int] = {}
    import webdataset  # takes seconds, which who reads does not wait for

    with path.open("wb") as file, webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
        for sample in samples:
            labels = json.dumps({"labels": sample.labels}).encode()
            writer.write({"__key__": sample.key, sample.extension: sample.media, "json": labels})
            entries[sample.key] = {"key": sample.key, "labels": sample.labels, "members": {}}
            crcs |= {
                f"{sample.key}.{sample.extension}": zlib.crc32(sample.media),
                f"{sample.key}.json": zlib.crc32(labels),
            }
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = member.name.split(".")
            entries[key]["members"][extension] = [member.offset_data, member.size, crcs[member.name]]
    entry = {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return entry | {"samples": list(entries.values())}


class Shards:
    """Random access to the samples of a shard directory, here or at an address such as https://host/train.

    Safe to fork and to pickle: files open where they are read.
    """

    def __init__(self, storage: Storage, index: dict[str, Any]) -> None:
        self.path, self._storage = storage.path, storage
        self.modality: str = index["modality"]
        self.classes: dict[str, list[str]] = index["classes"]
        self.failures: list[dict[str, str]] = index["failures"]
        self.notes: list[dict[str, str]] = index.get("notes", [])  # what is odd about samples that are used
        self.made: dict[str, Any] = index.get("made", {})  # of taps: how they came to be
        self.files: list[str] = [shard["file"] for shard in index["shards"]]
        self.sizes: list[int] = [len(shard["samples"]) for shard in index["shards"]]  # samples of each
        entries = [(number, entry) for number, shard in enumerate(index["shards"]) for entry in shard["samples"]]
        self.keys: list[str] = [str(entry["key"]) for _, entry in entries]
        known = MEDIA[self.modality]
        media = [next(ext for ext in entry["members"] if ext in known) for _, entry in entries]
        self._extensions = np.array([known.index(ext) for ext in media], dtype=np.uint8)
        places = [(n, *entry["members"][ext]) for (n, entry), ext in zip(entries, media, strict=True)]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 4)  # shard, offset, size, crc32
        self.labels: dict[str, np.ndarray] = {
            name: np.array([entry["labels"][name] for _, entry in entries], dtype=np.int64) for name in self.classes
        }
        self._refuse_nonsense(np.array([shard["bytes"] for shard in index["shards"]], dtype=np.int64))

    def _refuse_nonsense(self, sizes: np.ndarray) -> None:
        """ValueError, naming the first sample, where the index contradicts itself."""
        for file in self.files:
            if Path(file).name != file:
                raise ValueError(f"'{file}' is not the name of a file in it")
        if len(set(self.keys)) < len(self.keys):
            raise ValueError(f"key '{next(key for key, n in Counter(self.keys).items() if n > 1)}' occurs twice")
        shard, offset, size, _ = self._places.T
        for wrong in np.flatnonzero((offset < 0) | (size < 0) | (offset + size > sizes[shard])):
            raise ValueError(f"sample '{self.keys[wrong]}' does not lie in {self.files[shard[wrong]]}")
        for name, labels in self.labels.items():
            for wrong in np.flatnonzero((labels < 0) | (labels >= len(self.classes[name]))):
                count = len(self.classes[name])
                raise ValueError(f"sample '{self.keys[wrong]}' has {name} {labels[wrong]} of {count} classes")

    @classmethod
    def open(cls, path: str | Path) -> Shards:
        """Open a shard directory.

        Raises:
            UserError: no such directory, its index is damaged or of another format, or a tar is missing or has
                another size than the index says (at an address that is only found when it is read).
        """
        index, place = read_index(path), storage(path)
        try:
            shards = cls(place, index)
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration, OverflowError) as error:
            raise UserError(f"'{path}/index.json' is damaged: {type(error).__name__} {error}") from None
        if isinstance(place, Directory):
            for shard in index["shards"]:
                _check_file(place.path / shard["file"], shard["bytes"])
        return shards

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def name(self) -> str:
        """The last part of where they are."""
        return str(self.path).rstrip("/").rsplit("/", 1)[-1]

    def read(self, i: int) -> Sample:
        """Sample ``i``, by one read at its offset; BadSample if its bytes are not the ones that were written."""
        shard, offset, size, crc = self._places[i].tolist()
        try:
            media = self._storage.part(self.files[shard], offset, size)
        except OSError as error:
            raise BadSample(f"{self.files[shard]} cannot be read: {error.strerror or error}") from None
        if zlib.crc32(media) != crc:
            raise BadSample(f"its bytes in {self.files[shard]} have changed since it was written")
        extension = MEDIA[self.modality][self._extensions[i]]
        return Sample(self.keys[i], extension, media, {name: int(self.labels[name][i]) for name in self.labels})

    @property
    def list_sha256(self) -> str:
        """Hash of the sorted keys: two accuracies compare only where this is the same."""
        return list_sha256(self.keys)


def list_sha256(keys: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def _check_file(path: Path, size: int) -> None:
    if not path.is_file():
        raise UserError(f"shard '{path}' is missing")
    if path.stat().st_size != size:
        raise UserError(f"shard '{path}' has {path.stat().st_size} bytes; its index says {size}")
