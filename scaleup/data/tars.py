"""Tars that exist, such as those of video2dataset and img2dataset, used in place: all they lack is an index."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from scaleup.common.files import refuse_existing
from scaleup.common.processes import parallel
from scaleup.data.classes import class_name, class_names, read_classes, unknown
from scaleup.data.decode import EXTENSIONS, BadSample, check
from scaleup.data.folders import NO_FILE, Failure, count_by_reason, hidden, is_broken_link
from scaleup.data.playback import Noted
from scaleup.data.shards import Shards, file_sha256, index_of, write_index
from scaleup.data.tar_members import Members, failed_as, group_members, is_tar, packed_as
from scaleup.errors import UserError, nearest

PICKLES = {"pyd", "pickle", "pkl", "pt", "pth"}  # never read
MAX_TEXT = 2**24  # bytes of a member with a label


def index_tars(
    source: str | Path,
    label: str | None = None,
    classes: str | Path | None = None,
    overwrite: bool = False,
    processes: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Shards:
    """Write ``source/index.json`` for the tars in ``source``, which stay as they are.

    Every sample is decoded in full; what is damaged, has no label, or could be taken for something else is left out
    and named in the index's failures. ``advance`` is called with 1 after every tar.

    Args:
        label: where labels are: a member's ending (cls, txt), or a field of the .json member; by default .cls where
            there is one, else the field ``label``.
        classes: a file of class names, as in :func:`scaleup.data.sources.read_source`.

    Raises:
        UserError: there is an index already and ``overwrite`` is not set, or no sample can be used.
    """
    source = Path(source)
    refuse_existing(source / "index.json", overwrite)
    unread = {path.name: f"is {how}" for path in sorted(source.iterdir()) if (how := packed_as(path))}
    unread |= {path.name: reason for path in tars_of(source) if (reason := _unreadable(path))}
    tars = [path for path in tars_of(source) if path.name not in unread]
    if unread and not tars:
        name, reason = next(iter(unread.items()))
        raise UserError(f"'{source / name}' {reason}")
    modality = _modality(tars)
    scanned = []
    for found in parallel(partial(_scan, modality=modality, label=label), tars, processes):
        scanned.append(found)
        advance(1)
    entries = [entry for found in scanned for entry in found["samples"]]
    names = read_classes(classes) if classes else class_names(entry["label"] for entry in entries)
    failures = [each for found in scanned for each in found.pop("failures")]
    notes = [note for found in scanned for note in found.pop("notes")]
    failures += _numbered(scanned, names)
    failures += [failed_as(name, "", reason) for name, reason in unread.items()]
    if not any(found["samples"] for found in scanned):
        raise UserError(f"no sample in '{source}' can be used; the first: {failures[0]['reason']}{_beside(source)}")
    index = index_of(modality, {"label": names}, scanned, failures, notes)
    write_index(source, index | {"in_place": True})
    return Shards.open(source)


def tars_of(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if is_tar(path) and not hidden(path.name))


def _unreadable(path: Path) -> str:
    """Why a file cannot be read; empty where it can."""
    if path.exists() and not path.is_file():
        return NO_FILE
    try:
        path.open("rb").close()
    except OSError as error:
        return is_broken_link(path, error)
    return ""


def _beside(source: Path) -> str:
    folders = [path.name for path in source.iterdir() if path.is_dir() and not hidden(path.name)]
    return f"; it has folders too, such as '{folders[0]}': --kind folder packs those" if folders else ""


def _numbered(scanned: list[dict[str, Any]], names: list[str]) -> list[Failure]:
    """Labels to numbers; samples without a class, and all but the first of a key, become failures."""
    numbers, known, failures = {name: number for number, name in enumerate(names)}, set(names), []
    first: dict[str, str] = {}
    for found in scanned:
        kept = []
        for entry in found["samples"]:
            text, tar = entry.pop("label"), first.setdefault(entry["key"], found["file"])
            name = class_name(text, names, known)
            if name is None or tar != found["file"]:
                reason = unknown(text, names) if name is None else f"its key occurs in {tar} already"
                failures.append(failed_as(found["file"], entry["key"], reason))
            else:
                kept.append(entry | {"labels": {"label": numbers[name]}})
        found["samples"] = kept
    return failures


def _modality(tars: list[Path]) -> str:
    """Image or video, by what the first tar with either holds more of."""
    for path in tars:
        endings = Counter(name.rsplit(".", 1)[-1].lower() for name in _names(path))
        counts = {modality: sum(endings[ending] for ending in known) for modality, known in EXTENSIONS.items()}
        if any(counts.values()):
            return max(counts, key=lambda modality: counts[modality])
    said = count_by_reason(failed_as(path.name, *wrong) for path in tars for wrong in group_members(path)[1])
    raise UserError("; ".join([f"{len(tars)} tars, and no images or videos in any of them", *said]))


def _names(path: Path) -> list[str]:
    try:
        with tarfile.open(path, "r:") as tar:
            return tar.getnames()
    except (tarfile.TarError, OSError):
        return []


def _scan(path: Path, modality: str, label: str | None) -> dict[str, Any]:
    """The entry of one tar, its samples with the text of their label instead of its number, and its failures."""
    entry: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    samples, failures, notes = [], [], list[dict[str, str]]()
    groups, wrong = group_members(path)
    for key, members in groups.items():
        try:
            with path.open("rb") as file:
                odd: list[str] = []
                samples.append({"key": key, **_sample(file, key, members, modality, label, odd.append)})
                notes += [{"source": f"{path.name}: {key}", "note": note} for note in odd]
        except BadSample as error:
            failures.append(failed_as(path.name, key, str(error)))
    failures += [failed_as(path.name, *each) for each in wrong]
    return entry | {"samples": samples, "failures": failures, "notes": notes}


def _sample(
    file: BinaryIO, key: str, members: Members, modality: str, label: str | None, noted: Noted
) -> dict[str, Any]:
    """Label text and members of one sample; BadSample if it is not whole."""
    pickles = PICKLES & members.keys()
    if pickles:
        raise BadSample(f"has a pickle, .{min(pickles)}, which is never read")
    dotted = [ending for ending in members if "." in ending and ending.rsplit(".", 1)[1] in EXTENSIONS[modality]]
    if dotted:
        raise BadSample(f"has a dot in its name, after which WebDataset would read the ending .{dotted[0]}")
    media = [ending for ending in members if ending in EXTENSIONS[modality]]
    if len(media) != 1:
        raise BadSample(f"has {len(media)} {modality}s, one is needed")
    contents = {ending: _content(file, member) for ending, member in members.items()}
    text = label_text(contents, label)
    check(contents[media[0]], modality, noted)
    places = {
        ending: [member.offset_data, member.size, zlib.crc32(contents[ending])] for ending, member in members.items()
    }
    return {"label": text, "members": {media[0]: places.pop(media[0])} | places}


def _content(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) < member.size:
        raise BadSample("is cut off")
    return data


def label_text(contents: dict[str, bytes], label: str | None) -> str:
    """The label of a sample, as text; BadSample if it has none."""
    ending = label.removeprefix(".") if label else ("cls" if "cls" in contents else "label")
    if ending in contents:
        text = contents[ending][:MAX_TEXT].decode("utf-8-sig", "replace").strip()
    elif "json" in contents:
        text = _field(contents["json"], ending)
    else:
        raise BadSample("has no label: neither a .cls nor a .json")
    if not text:
        raise BadSample("its label is empty")
    return text


def _field(data: bytes, name: str) -> str:
    try:
        fields = json.loads(data[:MAX_TEXT])
    except (ValueError, RecursionError):
        raise BadSample("its .json is not JSON") from None
    found = fields.get(name) if isinstance(fields, dict) else None
    if type(found) not in (str, int, float):
        have = [str(key) for key in fields] if isinstance(fields, dict) else []
        there = f" but {json.dumps(found)[:80]}" if isinstance(fields, dict) and name in fields else nearest(name, have)
        raise BadSample(f"has no label: no text or number '{name}' in its .json{there}")
    return str(found).strip()
