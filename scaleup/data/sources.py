"""Reads sources of data as one list of files and classes. Each kind of source has a small function."""

from __future__ import annotations

import csv
import json
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from scaleup.common.errors import UserError, nearest
from scaleup.common.files import read_json
from scaleup.data.decode import EXTENSIONS
from scaleup.data.items import Items, merge_doubles, refuse_doubles
from scaleup.data.labels import Labelling, explain_value
from scaleup.data.lists import ENDINGS, is_media, read_rows
from scaleup.data.members import is_tar, packed_as
from scaleup.data.published import below, charades, hmdb51, kinetics, published_classes, ssv2, ucf101
from scaleup.data.storage import NO_FILE, Item, count_by_reason, failure, hidden, printable, walk


def read_file(path: Path) -> tuple[str, bytes]:
    """The extension and the bytes of a file; OSError or ValueError if it cannot be read."""
    if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
        raise ValueError(NO_FILE)  # opening a pipe may block for ever
    return extension_of(path), path.read_bytes()


@dataclass(frozen=True)
class Listing:
    """The files of a source in its order, how its labels are read, and image or video."""

    items: Sequence[Item]
    labelling: Labelling
    modality: str
    read: Callable[[Path], tuple[str, bytes]] = read_file  # of the path of an item; it is sent to processes
    version: str = ""  # changes with what is read, if items are no files

    @property
    def classes(self) -> list[str]:
        return self.labelling.classes


def read_source(
    source: str | Path,
    kind: str | None = None,
    root: str | Path | None = None,
    split: str | None = None,
    classes: str | Path | None = None,
    labels: str | None = None,
) -> Listing:
    """List the files of ``source`` with their labels.

    Args:
        kind: one of ``KINDS``; by default it is recognised.
        root: the folder of the files; by default the folder of the list.
        split: which rows to use: the value of a column (kinetics), or train1 to test3 (hmdb51).
        classes: a file of class names (:func:`scaleup.data.lists.read_classes`); by default the sorted names in the
            source, or the numbers if all labels are numbers.
        labels: ``one`` class of each sample, ``several``, or a ``number``; by default one, and several for charades.

    Raises:
        UserError: the source does not have the form of its kind, or names no file.
    """
    source = Path(source)
    kind = kind or kind_of(source)
    if kind not in KINDS:
        raise UserError(f"kind '{kind}' is not one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    labels = labels or ("several" if kind == "charades" else "one")
    reader = partial(path_list, several=labels == "several") if kind == "list" else KINDS[kind]
    try:
        items: Sequence[Item] = Items(reader(source, Path(root) if root else source.parent, split))
        items = merge_doubles(items) if labels == "several" else refuse_doubles(items)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{source}' cannot be read as a source of kind '{kind}': {error}") from error
    if not items:
        chosen = f" in split '{split}'" if split else ""
        raise UserError(f"'{source}' lists no files{chosen}")
    modality = modality_of(items, source)
    fitting = partial(_refuse_others, modality)
    usable = (item.label for item in map(fitting, items) if not item.reason)
    labelling = Labelling(labels, usable, classes or published_classes(source, kind))
    return Listing(Items(refuse_label(item, labelling) for item in map(fitting, items)), labelling, modality)


def kind_of(source: Path) -> str:
    """The kind of a source, recognised by its form."""
    if str(source).startswith("hf:"):
        return "hf"
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
        return "ssv2" if isinstance(read_json(source), list) else "json"
    if re.fullmatch(r"(train|test)list\d+\.txt", source.name):
        return "ucf101"
    with source.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline(4096)
    if header.startswith("id,subject,scene"):
        return "charades"
    return "kinetics" if "youtube_id" in header else "list"


def _kind_of_folder(source: Path) -> str:
    try:
        entries = [entry for entry in source.iterdir() if not hidden(entry.name)]
    except OSError as error:
        raise UserError(f"source '{source}' cannot be read: {error.strerror}") from error
    if any(map(is_tar, entries)):
        return "tars"
    if any(fnmatch(entry.name, "*_test_split?.txt") for entry in entries):
        return "hmdb51"
    if any(entry.suffix == ".parquet" for entry in [*entries, *source.glob("data/*")]):
        return "hf"
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
        yield Item(item.file, name, item.reason or _explain_misplaced(name, folders))
    for name in sorted(folders.keys() - {name for name, _ in inside}):
        yield Item(str(folders[name]), reason="is a class folder without files")


def _explain_misplaced(name: str, folders: Collection[str]) -> str:
    if name not in folders:
        return "is not in a class folder, so it has no class"
    return "" if printable(name) == name else "the name of its class is not text in UTF-8"


def path_list(source: Path, root: Path, _: str | None, several: bool = False) -> Iterator[Item]:
    """Lines of a path and a label, or ``several`` (:mod:`scaleup.data.lists`). The path may be second, and may lack its
    extension."""
    for row in read_rows(source, several):
        path = _find_path(row.path, root)
        base = Path("/") if path.startswith("/") else root  # an absolute path is used as it is
        absent = "" if row.label or several else "has no label"
        reason = row.reason or _explain_address(path) or absent or _explain_absent(root / path)
        yield below(base, path.lstrip("/"), row.label, reason)


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


def json_labels(source: Path, root: Path, _: str | None) -> Iterator[Item]:
    """A JSON object: path -> label, or a list of labels."""
    rows = read_json(source)
    if not isinstance(rows, dict):
        raise UserError(f'\'{source}\' is not a JSON object of paths and labels, such as {{"clips/a.mp4": ["run"]}}')
    for path, label in rows.items():
        text = "" if label is None else label if isinstance(label, str) else json.dumps(label, ensure_ascii=False)
        yield below(root, path, text, explain_value(label))


KINDS: dict[str, Callable[[Path, Path, str | None], Iterator[Item]]] = {
    "folder": folder,
    "list": path_list,
    "kinetics": kinetics,
    "ssv2": ssv2,
    "charades": charades,
    "json": json_labels,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
}


def modality_of(items: Sequence[Item], source: str | Path = "source") -> str:
    """Image or video: the kind of most files, by their extensions.

    Raises:
        UserError: no file is an image or a video, or there are too many files of the other kind.
    """
    endings = Counter(extension_of(item.path) for item in items if not item.reason)
    files = {kind: sum(endings[ending] for ending in known) for kind, known in EXTENSIONS.items()}
    few, most = sorted(files, key=lambda kind: files[kind])
    if files[most] >= max(1, 2 * files[few]):
        return most
    kinds = [kind for kind in files if files[kind]]
    counts = " and ".join(f"{files[kind]}, such as '{_first(items, kind).file}'" for kind in kinds)
    held = f"{' and '.join(kinds)} files ({counts})" if kinds else "no files"
    reasons = count_by_reason(failure(item.path, item.reason) for item in items if item.reason)
    raise UserError(
        "; ".join([f"'{source}' has {held}; it must have one of these kinds: {', '.join(ENDINGS)}", *reasons])
    )


def _first(items: Iterable[Item], modality: str) -> Item:
    return next(item for item in items if not item.reason and extension_of(item.path) in EXTENSIONS[modality])


def extension_of(path: Path) -> str:
    return {"jpeg": "jpg"}.get(extension := path.suffix.lower().lstrip("."), extension)


def _refuse_others(modality: str, item: Item) -> Item:
    """Mark an item of another kind (image, video) as left out."""
    fits = extension_of(item.path) in EXTENSIONS[modality]
    return item if fits or item.reason else replace(item, reason=f"is not a file of {modality}s by its extension")


def refuse_label(item: Item, labelling: Labelling) -> Item:
    """The item; without its label and marked as left out if that cannot be read."""
    if item.reason:
        return replace(item, label="")
    try:
        labelling.value(item.label)
        return item if labelling.kind != "one" else replace(item, label=labelling.name(item.label))
    except ValueError as error:
        return replace(item, label="", reason=str(error))
