"""``index.json``: what lies where in the tars of a shard directory, written whole and read with suspicion."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaleup.common.files import write_text
from scaleup.data.storage import storage
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
