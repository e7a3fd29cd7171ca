"""Writes an index for existing tars, such as those of video2dataset and img2dataset, so that they are used in place."""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from scaleup.common.errors import UserError, nearest
from scaleup.common.files import refuse_existing
from scaleup.common.processes import parallel
from scaleup.data.decode import EXTENSIONS, BadSample, check
from scaleup.data.index import Index, Note, SampleEntry, TarEntry, file_sha256, write_index
from scaleup.data.labels import ONE, Labelling
from scaleup.data.playback import Noted
from scaleup.data.shards import Shards
from scaleup.data.storage import NO_FILE, Failure, count_by_reason, explain_unreadable, failure, hidden, printable

COMMANDS = {"gz": "gunzip", "bz2": "bunzip2", "xz": "unxz", "zst": "unzstd", "lz4": "unlz4"}
SHORT = {"tgz": "gz", "taz": "gz", "tbz": "bz2", "tbz2": "bz2", "txz": "xz", "tzst": "zst"}
MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zst", b"\x04\x22\x4d\x18": "lz4"}
PICKLES = {"pyd", "pickle", "pkl", "pt", "pth"}  # never read
MAX_TEXT = 2**24  # bytes of a member with a label

Headers = dict[str, tarfile.TarInfo]  # of the members of one sample, by ending


def is_tar(path: Path) -> bool:
    return path.suffix.lower() == ".tar" and not path.is_dir()


def packed_as(path: Path) -> str:
    """A sentence on an archive that cannot be used in place, by its name; empty for other files and plain tars."""
    stem, _, ending = path.name.lower().rpartition(".")
    if ending in SHORT or ending in COMMANDS and stem.endswith(".tar"):
        command = COMMANDS[SHORT.get(ending, ending)]
        return f"a compressed tar, which cannot be read in place; decompress it first: {command} '{path.name}'"
    return "an archive that is not a tar; unpack it first" if ending in ("zip", "rar", "7z") else ""


def group_members(path: Path) -> tuple[dict[str, Headers], list[Failure]]:
    """Members of a tar by key and extension (as WebDataset splits names), and failures of names or of the tar."""
    samples: dict[str, Headers] = {}
    wrong: list[tuple[str, str]] = []  # (key, reason); the key is empty for the tar itself
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.size < 0 or member.offset < end:  # else this could loop for ever
                    raise ValueError("a header that points backwards")
                end = member.offset_data + (-(-member.size // 512) * 512 if member.isreg() else 0)
                end = tar.offset if member.issparse() else end  # a sparse member has its unpacked size
                if not member.isdir():
                    _place(member, samples, wrong)
        if not end:
            wrong.append(("", "has no files"))
        elif not _ends(path, end):
            wrong.append(("", f"cut off or damaged at byte {end}; nothing after it is used"))
    except (tarfile.TarError, OSError, ValueError, EOFError, RecursionError) as error:
        wrong.append(("", _explain_compressed(path) or f"not a readable tar after byte {end}: {error}"))
    for key, _ in wrong:
        samples.pop(key, None)
    return samples, [_failure(path, key, reason) for key, reason in wrong]


def _place(member: tarfile.TarInfo, samples: dict[str, Headers], wrong: list[tuple[str, str]]) -> None:
    match = re.fullmatch(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", member.name, re.DOTALL)
    if ".." in PurePosixPath(member.name).parts or member.name.startswith("/"):
        wrong.append((member.name, "its name is outside the tar"))
    elif not member.isreg():
        wrong.append((member.name, "is not a file but a link or a device"))
    elif printable(member.name) != member.name:
        wrong.append((member.name, "its name is not text in UTF-8"))
    elif not match:
        wrong.append((member.name, "its name is not KEY.ENDING"))
    elif member.issparse():
        wrong.append((match[1], f".{match[2]} is sparse, stored without its zeros; make the tar without --sparse"))
    elif match[2].lower() in (headers := samples.setdefault(match[1], {})):
        wrong.append((match[1], f"has two members .{match[2]}"))
    else:
        headers[match[2].lower()] = member


def _ends(path: Path, end: int) -> bool:
    """Whether a tar whose last member ends at byte ``end`` has the zeros that mark its end, and nothing else."""
    with path.open("rb") as file:
        file.seek(end)
        rest = 0
        while piece := file.read(2**20):
            if piece.strip(b"\0"):
                return False
            rest += len(piece)
    return rest >= 1024


def _explain_compressed(path: Path) -> str:
    """A sentence on a compressed file that is called .tar; empty if it is not compressed."""
    with path.open("rb") as file:
        begin = file.read(8)
    for magic, ending in MAGIC.items():
        if begin.startswith(magic):
            new = f"{path.name}.{ending}"
            how = f"mv '{path.name}' '{new}'; {COMMANDS[ending]} '{new}'"
            return f"is compressed, although its name ends in .tar; decompress it first: {how}"
    return ""


def _failure(tar: Path, key: str, reason: str) -> Failure:
    """A sample that cannot be used, or the tar itself (no key)."""
    return failure(f"{tar.name}: {key}" if key else tar.name, reason)


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
        UserError: an index exists and ``overwrite`` is not set, or no sample can be used.
    """
    source = Path(source)
    refuse_existing(source / "index.json", overwrite)
    unread = [failure(path.name, f"is {how}") for path in sorted(source.iterdir()) if (how := packed_as(path))]
    unread += [failure(path.name, reason) for path in tars_of(source) if (reason := _try_open(path))]
    tars = [path for path in tars_of(source) if not _try_open(path)]
    if unread and not tars:
        raise UserError(f"'{source / unread[0].source}' {unread[0].reason}")
    modality = _modality(tars)
    scans: list[Scan] = []
    for scan in parallel(partial(_scan, modality=modality, label=label), tars, processes):
        scans.append(scan)
        advance(1)
    labelling = Labelling(labels, (label for scan in scans for label in scan.labels), classes)
    failures = [failure for scan in scans for failure in scan.failures] + _number(scans, labelling) + unread
    count = sum(len(scan.tar.samples) for scan in scans)
    if not count:
        raise UserError(f"no sample in '{source}' can be used; the first: {failures[0].reason}{_hint_folders(source)}")
    notes = [note for scan in scans for note in scan.notes]
    entries, names = [scan.tar for scan in scans], {"label": labelling.classes}
    write_index(source, Index(modality, names, count, failures, entries, labelling.kinds, notes, in_place=True))
    return Shards.open(source)


def tars_of(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if is_tar(path) and not hidden(path.name))


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


def _number(scans: list[Scan], labelling: Labelling) -> list[Failure]:
    """Replace labels that are text. Samples without a label, and samples whose key occurred before, become failures."""
    failures = []
    first: dict[str, str] = {}  # tar by key
    for scan in scans:
        usable = []
        for sample, text in zip(scan.tar.samples, scan.labels, strict=True):
            tar = first.setdefault(sample.key, scan.tar.file)
            try:
                sample.labels["label"] = labelling.value(text)
                if tar != scan.tar.file:
                    raise ValueError(f"its key occurs in {tar} already")
                usable.append(sample)
            except ValueError as error:
                failures.append(_failure(Path(scan.tar.file), sample.key, str(error)))
        scan.tar.samples = usable
    return failures


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
            scan.failures.append(_failure(path, key, str(error)))
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
        content = json.loads(data[:MAX_TEXT])
    except (ValueError, RecursionError):
        raise BadSample("its .json is not JSON") from None
    fields = content if isinstance(content, dict) else {}
    if type(value := fields.get(name)) in (str, int, float, list):
        return json.dumps(value) if isinstance(value, list) else str(value).strip()
    instead = f" but {json.dumps(value)[:80]}" if name in fields else nearest(name, list(map(str, fields)))
    raise BadSample(f"has no label: no text or number '{name}' in its .json{instead}")
