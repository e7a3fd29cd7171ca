"""Writes an index for existing tars, such as those of video2dataset and img2dataset, so that they are used in place."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

from scaleup.common.errors import UserError, nearest
from scaleup.common.files import refuse_existing
from scaleup.common.processes import parallel
from scaleup.data.decode import EXTENSIONS, BadSample, check
from scaleup.data.doubles import Doubles
from scaleup.data.index import Index, Note, SampleEntry, TarEntry, file_sha256, write_index
from scaleup.data.labels import NUMBER, ONE, Labelling, explain_value
from scaleup.data.members import Headers, group_members, is_tar, member_failure, packed_as
from scaleup.data.playback import Noted
from scaleup.data.shards import Shards
from scaleup.data.storage import NO_FILE, Failure, count_by_reason, explain_unreadable, failure, hidden

PICKLES = {"pyd", "pickle", "pkl", "pt", "pth"}  # never read
MAX_TEXT = 2**24  # bytes of a member with a label
SHOWN = 8  # fields of a .json that are named where none is like the label's


@dataclass
class Scan:
    """The entry of one tar for the index, with labels as text; later they get numbers."""

    tar: TarEntry
    labels: list[str]  # the label of each sample as text
    failures: list[Failure]
    notes: list[Note]


def index_tars(
    source: str | Path,
    label: str | None = None,
    classes: str | Path | None = None,
    overwrite: bool = False,
    processes: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
    labels: str = ONE,
) -> Shards:
    """Write ``source/index.json`` for the tars in ``source``, which are not changed.

    Every sample is decoded completely. Samples that are damaged, ambiguous or without a label are left out, and listed
    in the index's failures. ``advance`` is called with 1 after every tar.

    Args:
        label: where labels are: the extension of a member (cls, txt), or a field of the .json member; by default .cls
            if there is one, else the field ``label``.
        classes: a file of class names, as in :func:`scaleup.data.sources.read_source`.
        labels: ``one`` class of each sample, ``several``, or a ``number``.

    Raises:
        UserError: ``source`` is no folder, has an index and ``overwrite`` is not set, or no sample can be used.
    """
    source = Path(source)
    refuse_existing(source / "index.json", overwrite)
    found = {path: _try_open(path) for path in tars_of(source)}
    unread = [failure(path.name, f"is {how}") for path in sorted(source.iterdir()) if (how := packed_as(path))]
    unread += [failure(path.name, reason) for path, reason in found.items() if reason]
    tars = [path for path, reason in found.items() if not reason]
    if unread and not tars:
        raise UserError(f"'{source / unread[0].source}' {unread[0].reason}")
    modality = _modality(tars)
    index, texts, keys = Index(modality, {}, 0, [], [], in_place=True), set[str](), Doubles()
    with tempfile.TemporaryFile("w+") as file:  # of what was scanned; it may be more than memory holds
        for scan in parallel(partial(_scan, modality=modality, label=label), tars, processes):
            print(json.dumps([scan.tar, scan.labels], default=vars), file=file)
            index.failures += scan.failures
            index.notes += scan.notes
            texts.update(scan.labels if labels != NUMBER else ())
            keys.add(sample.key for sample in scan.tar.samples)
            advance(1)
        labelling = Labelling(labels, texts, classes)
        index.classes, index.kinds = {"label": labelling.classes}, labelling.kinds
        file.seek(0)
        place = f"'{source}'", _hint_folders(source)
        refuse_existing(source / "index.json", overwrite)  # another may have written it
        write_index(source, index, _numbered(file, index, labelling, keys.suspects(), unread, place))
    return Shards.open(source)


def tars_of(source: Path) -> list[Path]:
    """The tars of a folder; UserError if it is none."""
    try:
        return sorted(path for path in source.iterdir() if is_tar(path) and not hidden(path.name))
    except OSError as error:
        raise UserError(f"'{source}' is not a readable folder of tars: {error.strerror}") from error


def _try_open(path: Path) -> str:
    """Why a file cannot be read; empty if it can."""
    if path.exists() and not path.is_file():
        return NO_FILE
    try:
        path.open("rb").close()
    except OSError as error:
        return explain_unreadable(path, error)
    return ""


def _hint_folders(source: Path) -> str:
    folders = [path.name for path in source.iterdir() if path.is_dir() and not hidden(path.name)]
    return f"; it also has folders, such as '{folders[0]}'; to pack these use --kind folder" if folders else ""


def _numbered(
    file: IO[str], index: Index, labelling: Labelling, suspects: set[int], unread: list[Failure], place: tuple[str, str]
) -> Iterator[TarEntry]:
    """The tars that were written to ``file``, with labels that are numbers. Samples without a label, and samples whose
    key occurred before, become failures of ``index``, which gets the number of the others too.

    Args:
        suspects: hashes of the keys that may occur more than once.
        place: the folder, and a hint, for the error if there is no sample.
    """
    first: dict[str, str] = {}  # tar by key
    for line in file:
        content, texts = json.loads(line)
        tar = TarEntry(**content | {"samples": []})
        for sample, text in zip((SampleEntry(**sample) for sample in content["samples"]), texts, strict=True):
            before = first.setdefault(sample.key, tar.file) if hash(sample.key) in suspects else tar.file
            try:
                sample.labels["label"] = labelling.value(text)
                if before != tar.file:
                    raise ValueError(f"its key occurs in {before} already")
                tar.samples.append(sample)
            except ValueError as error:
                index.failures.append(member_failure(Path(tar.file), sample.key, str(error)))
        index.count += len(tar.samples)
        yield tar
    index.failures += unread
    if not index.count:
        raise UserError(f"no sample in {place[0]} can be used; the first: {index.failures[0].reason}{place[1]}")


def _modality(tars: list[Path]) -> str:
    """Image or video: the kind that is more frequent in the first tar that has either."""
    failures: list[Failure] = []
    for path in tars:
        samples, wrong = group_members(path)
        endings = Counter(ending.rsplit(".", 1)[-1] for headers in samples.values() for ending in headers)
        counts = {modality: sum(endings[ending] for ending in known) for modality, known in EXTENSIONS.items()}
        if any(counts.values()):
            return max(counts, key=lambda modality: counts[modality])
        failures += wrong
    reasons = count_by_reason(failures)
    raise UserError("; ".join([f"{len(tars)} tars, and no images or videos in any of them", *reasons]))


def _scan(path: Path, modality: str, label: str | None) -> Scan:
    samples, failures = group_members(path)
    scan = Scan(TarEntry(path.name, path.stat().st_size, file_sha256(path), []), [], [], [])
    for key, headers in samples.items():
        odd: list[str] = []
        try:
            with path.open("rb") as file:
                text, places = _sample(file, headers, modality, label, odd.append)
        except BadSample as error:
            scan.failures.append(member_failure(path, key, str(error)))
            continue
        scan.tar.samples.append(SampleEntry(key, {}, places))
        scan.labels.append(text)
        scan.notes += [Note(f"{path.name}: {key}", note) for note in odd]
    scan.failures += failures
    return scan


def _sample(
    file: BinaryIO, headers: Headers, modality: str, label: str | None, noted: Noted
) -> tuple[str, dict[str, list[int]]]:
    """The label of a sample as text, and its members for the index; BadSample if it cannot be used."""
    if pickles := PICKLES & headers.keys():
        raise BadSample(f"has a pickle (.{min(pickles)}), which could run code")
    dotted = [ending for ending in headers if "." in ending and ending.rsplit(".", 1)[1] in EXTENSIONS[modality]]
    if dotted:
        raise BadSample(f"has a dot in its name, so WebDataset would read the extension .{dotted[0]}")
    usable = [ending for ending in headers if ending in EXTENSIONS[modality]]
    if len(usable) != 1:
        raise BadSample(f"has {len(usable)} {modality}s; it must have one")
    contents: dict[str, bytes] = {}
    for ending, header in headers.items():
        file.seek(header.offset_data)
        contents[ending] = file.read(header.size)
        if len(contents[ending]) < header.size:
            raise BadSample("is cut off")
    text = label_text(contents, label)
    check(contents[usable[0]], modality, noted)
    places = {end: [header.offset_data, header.size, zlib.crc32(contents[end])] for end, header in headers.items()}
    return text, {usable[0]: places.pop(usable[0])} | places


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
        content = json.loads(data[:MAX_TEXT], object_pairs_hook=partial(_once, name))
    except (ValueError, RecursionError):
        raise BadSample("its .json is not JSON") from None
    fields = content if isinstance(content, dict) else {}
    if type(value := fields.get(name)) in (str, int, float, list):
        if wrong := explain_value(value):
            raise BadSample(wrong)
        return json.dumps(value) if isinstance(value, list) else str(value).strip()
    there = f"; it has {', '.join(map(repr, list(fields)[:SHOWN]))}" if fields else ""
    instead = f" but {json.dumps(value)[:80]}" if name in fields else nearest(name, fields) or there
    raise BadSample(f"has no label: no text or number '{name}' in its .json{instead}")


def _once(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object; BadSample if ``name`` is there twice."""
    if sum(field == name for field, _ in pairs) > 1:
        raise BadSample(f"has two labels: '{name}' is twice in its .json")
    return dict(pairs)
