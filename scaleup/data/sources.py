"""What people have, read as one list: which file shows which class. One small function for each kind of source."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scaleup.data.classes import class_name, class_names, read_classes, unknown
from scaleup.data.decode import EXTENSIONS
from scaleup.data.texts import read_json, read_lines
from scaleup.errors import UserError, nearest

COLUMNS = ("label", "youtube_id", "time_start", "time_end")


@dataclass(frozen=True)
class Item:
    """A file and its class, or why it cannot be a sample."""

    path: Path
    label: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Listing:
    """The files of a source in the source's order, and the class names in the order of their numbers."""

    items: list[Item]
    classes: list[str]


def read_source(
    source: str | Path,
    kind: str | None = None,
    root: str | Path | None = None,
    split: str | None = None,
    classes: str | Path | None = None,
) -> Listing:
    """List the files of ``source`` with their classes.

    Args:
        kind: one of ``KINDS``; by default told from the source itself.
        root: where the files are, if not beside the list.
        split: which rows: the value of a column (kinetics), or train1 to test3 (hmdb51).
        classes: a file of class names (:func:`read_classes`); by default the names that occur, sorted, or where all
            labels are numbers, the numbers.

    Raises:
        UserError: the source does not have the form of its kind, or names no file.
    """
    source = Path(source)
    kind = kind or kind_of(source)
    if kind not in KINDS:
        raise UserError(f"kind '{kind}' is not one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    try:
        items = _once(KINDS[kind](source, Path(root) if root else source.parent, split))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{source}' cannot be read as a source of kind '{kind}': {error}") from error
    if not items:
        chosen = f" in split '{split}'" if split else ""
        raise UserError(f"'{source}' lists no files{chosen}")
    names = read_classes(classes) if classes else _own_classes(source, kind) or class_names(i.label for i in items)
    known = set(names)
    return Listing([_classed(item, names, known) for item in items], names)


def kind_of(source: Path) -> str:
    """The kind of a source, by its form."""
    if not source.exists():
        near = nearest(source.name, [other.name for other in source.parent.glob("*")])
        raise UserError(f"source '{source}' is neither a folder, nor a file, nor the word 'shapes'{near}")
    if source.is_dir():
        kinds = {"*.tar": "tars", "*_test_split?.txt": "hmdb51"}
        return next((kind for pattern, kind in kinds.items() if any(source.glob(pattern))), "folder")
    if source.suffix == ".json":
        return "ssv2"
    if re.fullmatch(r"(train|test)list\d+\.txt", source.name):
        return "ucf101"
    with source.open(encoding="utf-8-sig", errors="replace") as file:
        return "kinetics" if "youtube_id" in file.readline(4096) else "list"


def folder(source: Path, _: Path, __: str | None) -> Iterator[Item]:
    """``source``/CLASS/FILE at any depth, as ImageNet has it; hidden files do not count."""
    folders = sorted(each for each in source.iterdir() if each.is_dir() and not each.name.startswith("."))
    found = [Item(path, each.name) for each in folders for path in sorted(each.rglob("[!.]*")) if path.is_file()]
    if not found:
        raise UserError(f"'{source}' has no class folders with files in them; it needs {source}/CLASS/FILE")
    yield from found


def path_list(source: Path, root: Path, _: str | None) -> Iterator[Item]:
    """Lines ``path label`` (the path may have spaces), ``path::label`` or ``path,label``."""
    for number, line in enumerate(read_lines(source), 1):
        separator = "::" if "::" in line else None if len(line.split()) > 1 else ","
        path, *label = line.rsplit(separator, 1)
        reason = "" if label else f"line {number} has no label after the path"
        base = Path("/") if path.startswith("/") else root  # an absolute path is meant as it stands
        yield _item(base, path.strip().lstrip("/"), "".join(label).strip(), reason)


def kinetics(source: Path, root: Path, split: str | None) -> Iterator[Item]:
    """The CSV of Kinetics; files ID_SSSSSS_EEEEEE.mp4 in ``root`` or in ``root``/LABEL."""
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        have = rows.fieldnames or []
        for column in (*COLUMNS, *(["split"] if split else [])):
            if column not in have:
                raise UserError(f"'{source}' has no column '{column}': {', '.join(have)}{nearest(column, have)}")
        yield from (_clip(row, root) for row in rows if split in (None, row["split"]))


def _clip(row: dict[str, Any], root: Path) -> Item:
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
    ending, wanted = f"_test_split{chosen[2]}.txt", "1" if chosen[1] == "train" else "2"
    for file in sorted(source.glob(f"*{ending}")):
        name = file.name.removesuffix(ending)
        pairs = [line.rsplit(None, 1) for line in read_lines(file)]
        yield from (_item(root, f"{name}/{pair[0]}", name) for pair in pairs if pair[-1] == wanted)


KINDS: dict[str, Callable[[Path, Path, str | None], Iterator[Item]]] = {
    "folder": folder,
    "list": path_list,
    "kinetics": kinetics,
    "ssv2": ssv2,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
}


def modality_of(items: Iterable[Item]) -> str:
    """Image or video, by the endings of the files; UserError where there are both or neither."""
    endings = {extension_of(item.path) for item in items}
    found = [modality for modality, known in EXTENSIONS.items() if endings & set(known)]
    if len(found) != 1:
        known = ", ".join(f".{extension}" for extensions in EXTENSIONS.values() for extension in extensions)
        raise UserError(f"source holds {' and '.join(found) or 'no'} files; one kind of these is needed: {known}")
    return found[0]


def extension_of(path: Path) -> str:
    return {"jpeg": "jpg"}.get(extension := path.suffix.lower().lstrip("."), extension)


def _own_classes(source: Path, kind: str) -> list[str] | None:
    """Names that the publishers of a set put beside its lists."""
    beside = {"ucf101": "classInd.txt", "ssv2": "*labels.json"}.get(kind)
    found = sorted(source.parent.glob(beside)) if beside else []
    return read_classes(found[0]) if len(found) == 1 else None


def _classed(item: Item, names: list[str], known: set[str]) -> Item:
    label = None if item.reason else class_name(item.label, names, known)
    return Item(item.path, label or "", item.reason or ("" if label else unknown(item.label, names)))


def _once(items: Iterable[Item]) -> list[Item]:
    """The items; a file that was listed before is a failure."""
    seen: set[Path] = set()
    found = []
    for item in items:
        twice = item.path in seen and not item.reason
        found.append(Item(item.path, item.label, "is listed before") if twice else item)
        seen.add(item.path)
    return found


def _item(root: Path, path: str, label: str, reason: str = "") -> Item:
    """A file below ``root``."""
    outside = path.startswith("/") or ".." in PurePosixPath(path).parts
    return Item(root / path, label, reason or ("its path leaves the folder of the files" if outside else ""))
