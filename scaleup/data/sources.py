"""Reads sources of data as one list of files and classes. Each kind of source has a small function."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from scaleup.common.errors import UserError, nearest
from scaleup.common.files import read_json
from scaleup.data.decode import EXTENSIONS
from scaleup.data.lists import (
    ENDINGS,
    class_name,
    class_names,
    is_media,
    read_classes,
    read_lines,
    read_rows,
    unknown,
)
from scaleup.data.storage import Item, count_by_reason, failure, hidden, printable, walk
from scaleup.data.tars import is_tar, packed_as

COLUMNS = ("label", "youtube_id", "time_start", "time_end")


@dataclass(frozen=True)
class Listing:
    """The files of a source in its order, the class names in the order of their numbers, and image or video."""

    items: list[Item]
    classes: list[str]
    modality: str


def read_source(
    source: str | Path,
    kind: str | None = None,
    root: str | Path | None = None,
    split: str | None = None,
    classes: str | Path | None = None,
) -> Listing:
    """List the files of ``source`` with their classes.

    Args:
        kind: one of ``KINDS``; by default it is recognised.
        root: the folder of the files; by default the folder of the list.
        split: which rows to use: the value of a column (kinetics), or train1 to test3 (hmdb51).
        classes: a file of class names (:func:`read_classes`); by default the sorted names in the source, or the numbers
            if all labels are numbers.

    Raises:
        UserError: the source does not have the form of its kind, or names no file.
    """
    source = Path(source)
    kind = kind or kind_of(source)
    if kind not in KINDS:
        raise UserError(f"kind '{kind}' is not one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    try:
        items = _refuse_doubles(KINDS[kind](source, Path(root) if root else source.parent, split))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{source}' cannot be read as a source of kind '{kind}': {error}") from error
    if not items:
        chosen = f" in split '{split}'" if split else ""
        raise UserError(f"'{source}' lists no files{chosen}")
    modality = modality_of(items, source)
    items = [_refuse_others(item, modality) for item in items]
    usable = (item.label for item in items if not item.reason)
    names = read_classes(classes) if classes else _published_classes(source, kind) or class_names(usable)
    known = set(names)
    return Listing([_name_class(item, names, known) for item in items], names, modality)


def kind_of(source: Path) -> str:
    """The kind of a source, recognised by its form."""
    if not source.exists():
        near = nearest(source.name, [other.name for other in source.parent.glob("*")])
        raise UserError(f"source '{source}' is neither a folder, nor a file, nor the word 'shapes'{near}")
    if source.is_dir():
        return _kind_of_folder(source)
    if not source.is_file():
        raise UserError(f"source '{source}' is a pipe or a device; write its content to a file")
    if is_media(source.name) or is_tar(source):
        raise UserError(f"source '{source}' is one file; give a folder of such files, or a list of them")
    if how := packed_as(source):
        raise UserError(f"source '{source}' is {how}")
    if source.suffix == ".json":
        return "ssv2"
    if re.fullmatch(r"(train|test)list\d+\.txt", source.name):
        return "ucf101"
    with source.open(encoding="utf-8-sig", errors="replace") as file:
        return "kinetics" if "youtube_id" in file.readline(4096) else "list"


def _kind_of_folder(source: Path) -> str:
    try:
        entries = [entry for entry in source.iterdir() if not hidden(entry.name)]
    except OSError as error:
        raise UserError(f"source '{source}' cannot be read: {error.strerror}") from error
    if any(map(is_tar, entries)):
        return "tars"
    if any(fnmatch(entry.name, "*_test_split?.txt") for entry in entries):
        return "hmdb51"
    compressed = any(map(packed_as, entries)) and not any(entry.is_dir() for entry in entries)
    return "tars" if compressed else "folder"


def folder(source: Path, _: Path, __: str | None) -> Iterator[Item]:
    """``source``/CLASS/FILE at any depth, as ImageNet has it."""
    folders = {path.name: path for path in sorted(source.iterdir()) if path.is_dir() and not hidden(path.name)}
    items = sorted(walk(source), key=lambda item: item.path)
    inside = [(item.path.relative_to(source).parts[0], item) for item in items]
    if not any(name in folders and not item.reason for name, item in inside):
        reasons = count_by_reason(failure(item.path, item.reason) for item in items if item.reason)
        hint = f"'{source}' has no class folders with files; it needs {source}/CLASS/FILE"
        raise UserError("; ".join([hint, *reasons]))
    for name, item in inside:
        yield Item(item.path, name, item.reason or _explain_misplaced(name, folders))
    for name in sorted(folders.keys() - {name for name, _ in inside}):
        yield Item(folders[name], reason="is a class folder without files")


def _explain_misplaced(name: str, folders: Collection[str]) -> str:
    if name not in folders:
        return "is not in a class folder, so it has no class"
    return "" if printable(name) == name else "the name of its class is not text in UTF-8"


def path_list(source: Path, root: Path, _: str | None) -> Iterator[Item]:
    """Lines of a path and a label (:mod:`scaleup.data.lists`). The path may be second, and may lack its extension."""
    for row in read_rows(source):
        path = _find_path(row.path, root)
        base = Path("/") if path.startswith("/") else root  # an absolute path is used as it is
        reason = (
            row.reason
            or _explain_address(path)
            or ("" if row.label else "has no label")
            or _explain_absent(root / path)
        )
        yield _item(base, path.lstrip("/"), row.label, reason)


def _find_path(path: str, root: Path) -> str:
    """The path with this system's slashes, and with the extension of the only file of this name."""
    if path.startswith("file:///"):
        path = unquote(path.removeprefix("file://"))
    if "\\" in path and "/" not in path and not (root / path).exists():
        path = path.replace("\\", "/")
    names = [] if is_media(path) else [name for ending in ENDINGS if (root / (name := path + ending)).is_file()]
    return names[0] if len(names) == 1 else path


def _explain_absent(path: Path) -> str:
    """Why a path without an extension is not a file; empty if it has an extension."""
    if is_media(path.name) or path.suffix or path.is_file():
        return ""
    return "is a folder; a list names files" if path.is_dir() else "does not exist, with or without an extension"


def _explain_address(path: str) -> str:
    if re.match(r"[A-Za-z]:/|//", path):
        return "its path is a Windows path; write it relative to the folder of the files (--root)"
    return "is an address; a list must name files of this machine" if "://" in path else ""


def kinetics(source: Path, root: Path, split: str | None) -> Iterator[Item]:
    """The CSV of Kinetics; files ID_SSSSSS_EEEEEE.mp4 in ``root`` or in ``root``/LABEL."""
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)  # else an extra quote would hide rows
        have = rows.fieldnames or []
        for column in (*COLUMNS, *(["split"] if split else [])):
            if column not in have:
                raise UserError(f"'{source}' has no column '{column}': {', '.join(have)}{nearest(column, have)}")
        yield from (_clip(row, root) for row in rows if split in (None, row["split"]))


def _clip(row: dict[str, str], root: Path) -> Item:
    try:
        name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
    except (TypeError, ValueError):
        reason = f"times {row['time_start']!r} and {row['time_end']!r} are not whole seconds"
        return Item(root / f"{row['youtube_id']}.mp4", reason=reason)
    beside = _item(root, name, row["label"], "" if row["label"] else "has no label")
    below = _item(root, f"{row['label']}/{name}", row["label"])
    return below if not beside.path.exists() and not below.reason and below.path.exists() else beside


def ssv2(source: Path, root: Path, _: str | None) -> Iterator[Item]:
    """The JSON of a split of Something-Something v2; the class is the template without its brackets."""
    rows = read_json(source)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
        raise UserError(f"'{source}' is not a list of entries with an id, as a split of SSv2 is")
    for row in rows:
        label = re.sub(r"[\[\]]", "", str(row.get("template", "")))
        yield _item(root, f"{row['id']}.webm", label, "" if label else "has no label")


def ucf101(source: Path, root: Path, _: str | None) -> Iterator[Item]:
    """trainlist01.txt or testlist01.txt: lines ``CLASS/FILE.avi [NUMBER]``; the class is the folder."""
    for line in read_lines(source):
        path = re.sub(r"\s+\d+$", "", line)
        yield _item(root, path, PurePosixPath(path).parent.name)


def hmdb51(source: Path, root: Path, split: str | None) -> Iterator[Item]:
    """A folder of CLASS_test_splitN.txt: lines ``FILE.avi 1`` (train), 2 (test) or 0; files in ``root``/CLASS."""
    chosen = re.fullmatch(r"(train|test)([123])", split or "")
    if not chosen:
        raise UserError(f"split '{split or ''}' is not one of HMDB51's: train1 to train3, test1 to test3")
    ending, mark = f"_test_split{chosen[2]}.txt", "1" if chosen[1] == "train" else "2"
    for file in sorted(source.glob(f"*{ending}")):
        name = file.name.removesuffix(ending)
        pairs = [line.rsplit(None, 1) for line in read_lines(file)]
        yield from (_item(root, f"{name}/{pair[0]}", name) for pair in pairs if pair[-1] == mark)


KINDS: dict[str, Callable[[Path, Path, str | None], Iterator[Item]]] = {
    "folder": folder,
    "list": path_list,
    "kinetics": kinetics,
    "ssv2": ssv2,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
}


def modality_of(items: Iterable[Item], source: str | Path = "source") -> str:
    """Image or video: the kind of most files, by their extensions.

    Raises:
        UserError: no file is an image or a video, or there are too many files of the other kind.
    """
    items = list(items)
    usable = [item.path for item in items if not item.reason]
    files = {kind: [path for path in usable if extension_of(path) in endings] for kind, endings in EXTENSIONS.items()}
    few, most = sorted(files, key=lambda kind: len(files[kind]))
    if len(files[most]) >= max(1, 2 * len(files[few])):
        return most
    kinds = [kind for kind in files if files[kind]]
    counts = " and ".join(f"{len(files[kind])}, such as '{files[kind][0]}'" for kind in kinds)
    held = f"{' and '.join(kinds)} files ({counts})" if kinds else "no files"
    reasons = count_by_reason(failure(item.path, item.reason) for item in items if item.reason)
    raise UserError(
        "; ".join([f"'{source}' has {held}; it must have one of these kinds: {', '.join(ENDINGS)}", *reasons])
    )


def extension_of(path: Path) -> str:
    return {"jpeg": "jpg"}.get(extension := path.suffix.lower().lstrip("."), extension)


def _published_classes(source: Path, kind: str) -> list[str] | None:
    """The class names in a file that the publishers of a dataset supply with its lists."""
    pattern = {"ucf101": "classInd.txt", "ssv2": "*labels.json"}.get(kind)
    files = sorted(source.parent.glob(pattern)) if pattern else []
    return read_classes(files[0]) if len(files) == 1 else None


def _refuse_others(item: Item, modality: str) -> Item:
    """Mark an item of another kind (image, video) as left out."""
    fits = extension_of(item.path) in EXTENSIONS[modality]
    return item if fits or item.reason else replace(item, reason=f"is not a file of {modality}s by its extension")


def _name_class(item: Item, names: list[str], known: set[str]) -> Item:
    label = None if item.reason else class_name(item.label, names, known)
    return Item(item.path, label or "", item.reason or ("" if label else unknown(item.label, names)))


def _refuse_doubles(items: Iterable[Item]) -> list[Item]:
    """The items; a file that occurs again is marked as left out."""
    paths: set[Path] = set()
    results = []
    for item in items:
        twice = item.path in paths and not item.reason
        results.append(replace(item, reason="is listed twice") if twice else item)
        paths.add(item.path)
    return results


def _item(root: Path, path: str, label: str, reason: str = "") -> Item:
    """A file below ``root``."""
    outside = path.startswith("/") or ".." in PurePosixPath(path).parts
    return Item(root / path, label, reason or ("its path is outside the folder of the files" if outside else ""))
