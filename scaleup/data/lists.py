"""Reads lists of paths and labels, and lists of class names; finds the class of a label."""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scaleup.common.errors import UserError, nearest
from scaleup.common.files import read_json
from scaleup.data.decode import EXTENSIONS

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # spreadsheets save "Unicode text" so


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark; UserError if it is neither."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not text in UTF-8 (byte {error.start} is wrong); save it as UTF-8") from None
    if text.count("\0") > len(text) / 4:
        raise UserError(f"'{path}' is not text in UTF-8 but looks like UTF-16; save it as UTF-8")
    return text


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers (from 1) and lines without surrounding space. Empty lines are left out."""
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, stripped) for number, line in enumerate(lines, 1) if (stripped := line.strip())]


def read_lines(path: Path) -> list[str]:
    """Lines without surrounding space. Empty lines are left out."""
    return [line for _, line in numbered_lines(path)]


# If a list has several of these separators equally often, the first one here is used.
SEPARATORS = {"\t": "tabs", "::": "'::'", ",": "commas", ";": "semicolons", "|": "bars", " ": "spaces"}
PATHS = (  # names of columns in headers
    *("path", "file", "filename", "file_name", "filepath", "file_path", "name", "id", "clip", "clip_path", "clip_name"),
    *("video", "video_path", "video_name", "video_id", "image", "image_path", "image_name", "img", "img_path"),
)
LABELS = (
    *("label", "labels", "class", "classes", "class_name", "category", "action", "target", "activity", "tag", "y"),
    *("label_name", "action_name", "label_id", "class_id", "class_index", "class_idx", "category_id"),
)
ENDINGS = tuple(f".{ending}" for endings in EXTENSIONS.values() for ending in endings)
ENDING = rf"(?:{'|'.join(map(re.escape, ENDINGS))})"
PATH_FIRST = re.compile(rf"(.+{ENDING}[\"']?)\s+(\S.*)", re.IGNORECASE | re.DOTALL)
LABEL_FIRST = re.compile(rf"(\S+)\s+(.+{ENDING}[\"']?)", re.IGNORECASE | re.DOTALL)

NUMBERS = re.compile(r"[-+.\d]+(\s+[-+.\d]+)+")
MAX_CLASSES = 100_000  # limit for labels that are numbers, if there is no list of class names
NO_LABEL = {"", "-1", "-1.0", "nan"}
NO_NUMBER = {"none", "null", "na", "n/a"}  # mean "no label" if labels are numbers; else they are names like any other
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
SEVERAL = re.compile(r"\d+(\s*[,;|]\s*\d+)+")  # numbers in one label, as sets with several labels a sample have them
NUMBER_FIRST = re.compile(r"\"?(?P<number>\d+)\"?(?:\s*[,;:\t]\s*|\s+)(?P<name>.+)")
NUMBER_LAST = re.compile(r"(?P<name>.+?)\s*[,;\t]\s*\"?(?P<number>\d+)\"?")
CLASS_COLUMNS = {  # names of columns of a list of classes
    *("", "id", "index", "idx", "number", "class", "label", "name", "names", "class_name", "label_name"),
    *("class_id", "class_idx", "class_index", "label_id", "label_idx", "label_index"),
}


@dataclass(frozen=True)
class Row:
    """One line of a list, or the reason why it cannot be used."""

    path: str
    label: str = ""
    reason: str = ""


class Columns(NamedTuple):
    """The numbers of the path and label columns, and of all columns."""

    path: int
    label: int
    total: int


def read_rows(source: Path) -> list[Row]:
    """The rows of a list, without its header and lines that begin with ``#``.

    Raises:
        UserError: there are more than two columns, and no header says which are path and label.
    """
    lines = numbered_lines(source)
    texts = [line for _, line in lines]
    if texts and texts[0].startswith("{"):
        raise UserError(f"'{source}' holds JSON; a list has a path and a label in each line, such as clips/a.mp4 run")
    separator = _separator(texts)
    header = _header(texts, separator)
    lines = [(number, line) for number, line in lines[1 if header else 0 :] if not _is_comment(line)]
    split = [_fields(line, separator) for _, line in lines]
    columns = _columns(source, header, split)
    rows = []
    for (number, line), fields in zip(lines, split, strict=True):
        path = fields[min(columns.path, len(fields) - 1)]
        if reason := _explain_line(line, fields, separator, columns):
            rows.append(Row(path, reason=f"line {number} {reason}"))
        else:
            rows.append(Row(path, fields[columns.label] if columns.label < len(fields) else ""))
    return rows


def _separator(lines: Sequence[str]) -> str:
    """The separator that divides most lines into a path and another field."""
    counts = {}
    for separator in SEPARATORS:
        split = [_fields(line, separator) for line in lines]
        counts[separator] = sum(map(_has_one_path, split)), sum(len(fields) > 1 for fields in split)
    return max(SEPARATORS, key=lambda separator: counts[separator])


def _has_one_path(fields: Sequence[str]) -> bool:
    return len(fields) > 1 and any(map(is_media, fields)) and not all(map(is_media, fields))


def is_media(text: str) -> bool:
    return text.lower().endswith(ENDINGS)


def _is_comment(line: str) -> bool:
    """Whether a line is a comment. (A path may begin with # too.)"""
    return line.startswith("#") and (line[1:2].isspace() or not re.search(ENDING, line, re.IGNORECASE))


def _fields(line: str, separator: str) -> list[str]:
    """The fields of a line; one field if it has no separator."""
    if separator == " ":
        match = PATH_FIRST.fullmatch(line) or LABEL_FIRST.fullmatch(line)
        fields = list(match.groups()) if match else line.rsplit(None, 1)
        if NUMBERS.fullmatch(fields[-1]):
            fields[-1:] = fields[-1].split()
        return [_unquoted(field) for field in fields]
    if separator not in line:
        return [line]
    if separator == "::":
        return [_unquoted(field.strip()) for field in line.rsplit("::", 1)]
    fields = [_unquoted(field.strip()) for field in line.split(separator)]
    try:
        if '"' in line:
            row = next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))
            fields = [field.strip() for field in row]
    except csv.Error:
        return [line]
    while len(fields) > 2 and not fields[-1]:
        fields.pop()
    return fields


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _header(lines: Sequence[str], separator: str) -> list[str]:
    """The names of the columns in lower case; empty if the first line is not a header, because it has a path."""
    bare = lines[0].lstrip("# ") if lines else ""
    names = bare.split() if separator == " " else _fields(bare, separator)
    names = [_unquoted(name).lower().replace(" ", "_") for name in names]
    count = sum(name in PATHS or name in LABELS for name in names)
    paths_follow = any(any(map(is_media, _fields(line, separator))) for line in lines[1:])
    if count < (1 if paths_follow else 2) or any(name.isdecimal() or "." in name or "/" in name for name in names):
        return []
    return names


def _columns(source: Path, header: list[str], split: list[list[str]]) -> Columns:
    count = len(header) or (Counter(map(len, split)).most_common(1)[0][0] if split else 2)
    paths = Counter(column for fields in split for column, field in enumerate(fields[:count]) if is_media(field))
    named = [header.index(name) for name in PATHS if name in header] or list(range(count))
    path = max(named, key=lambda column: paths[column])
    labels = [header.index(name) for name in LABELS if name in header] or ([1 - path] if count == 2 else [])
    if count > 1 and not labels:
        raise UserError(
            f"'{source}' has {count} columns and no header that says which are path and label; "
            "add a first line with the columns' names, two of them path and label"
        )
    return Columns(path, labels[0] if labels else 1, max(count, 2))


def _explain_line(line: str, fields: list[str], separator: str, columns: Columns) -> str:
    """Why a line cannot be used; empty if it can."""
    if len(fields) > columns.total or separator == " " and 1 < len(fields) < columns.total:
        return f"has {len(fields)} columns, not {columns.total}; put quotes around text that contains a separator"
    if len(fields) > 1:
        return ""
    other = next((name for name in SEPARATORS if _has_one_path(_fields(line, name))), None)
    if other:
        return f"has {SEPARATORS[other]} between path and label, but other lines have {SEPARATORS[separator]}"
    return "has an opening quote without a closing one" if line.count('"') % 2 else "has no label after the path"


def read_classes(path: str | Path) -> list[str]:
    """Class names in the order of their numbers: lines ``NAME``; lines ``NUMBER NAME`` or ``NAME,NUMBER`` from 0 or 1,
    with any separator, quotes and a header; or JSON: a list of names, an object of names to numbers or the reverse.
    """
    path = Path(path)
    try:
        pairs = _json_classes(read_json(path)) if path.suffix.lower() == ".json" else _line_classes(read_lines(path))
        numbers = {name: int(number) for name, number in pairs}
        if not all(isinstance(name, str) for name in numbers):
            raise ValueError("it has a name that is not text")
        if len(numbers) < len(pairs):
            raise ValueError("it has a name twice")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is not a list of class names: {error}") from error
    names = sorted(numbers, key=lambda name: numbers[name])
    first = min(numbers.values(), default=0)
    if not names or sorted(numbers.values()) != list(range(first, first + len(names))):
        raise UserError(f"'{path}' is not a list of class names: its numbers are not consecutive, or one occurs twice")
    return names


def _json_classes(content: Any) -> list[tuple[Any, Any]]:
    """Names and their numbers."""
    if isinstance(content, list):
        return [(name, number) for number, name in enumerate(content)]
    if all(key.isdecimal() for key in content) and all(isinstance(name, str) for name in content.values()):
        return [(name, number) for number, name in content.items()]
    return list(content.items())


def _line_classes(lines: list[str]) -> list[tuple[str, int]]:
    """Names and their numbers, without a header and without lines that begin with ``# ``."""
    lines = [line for line in lines if not line.startswith("# ")]
    first = lines[0] if lines else ""
    words = {word.strip("\"' ").lower() for word in re.split(r"[\s,;:]+", first)}
    begin = 1 if words <= CLASS_COLUMNS else 0
    if pairs := _numbered(lines[begin:]):
        return pairs
    pairs = _numbered(lines[1:]) if re.search(r"[,;\t]", first) else []
    if pairs and min(number for _, number in pairs) < 2:  # then the first line is a header
        return pairs
    names = lines[begin:] if "," not in first and len(lines) > 1 else lines
    return [(_plain(name), number) for number, name in enumerate(names)]


def _numbered(lines: list[str]) -> list[tuple[str, int]]:
    """Names and their numbers; empty if a line lacks one of them."""
    for pattern in (NUMBER_FIRST, NUMBER_LAST):
        matches = [pattern.fullmatch(line) for line in lines]
        if all(matches):
            return [(_plain(match["name"]), int(match["number"])) for match in matches if match]
    return []


def _plain(text: str) -> str:
    """``text`` without the quotes of CSV."""
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def number_of(label: str) -> int | None:
    """The class number that a label such as 3, 03 or 3.0 stands for; None if it is not a class number."""
    match = re.fullmatch(r"\+?(\d+)(?:\.0*)?", label)
    return int(match[1]) if match else None


def class_names(labels: Iterable[str]) -> list[str]:
    """The class names from the labels: numbers in order, then words. If all are numbers, every number up to the
    largest.

    Empty text, -1 and nan mean "no label". If all other labels are numbers, none, null and na mean it too.
    """
    names = {label for label in labels if label.lower() not in NO_LABEL}
    words = {label for label in names if not NUMBER.fullmatch(label)}
    numbers = {number for label in names if (number := number_of(label)) is not None}
    several = {word for word in words if SEVERAL.fullmatch(word)}
    if (numbers or several) and all(word.lower() in NO_NUMBER for word in words - several):
        return [str(number) for number in range(min(max(numbers, default=-1) + 1, MAX_CLASSES))]
    return sorted(names, key=lambda label: (number_of(label) is None, number_of(label) or 0, label))


def class_name(label: str, names: list[str], known: Container[str]) -> str | None:
    """The class of ``label``: it is one of ``names`` (the set ``known``), or the number of one. None if it is
    neither."""
    if label in known:
        return label
    number = number_of(label)
    return names[number] if number is not None and number < len(names) else None


def unknown(label: str, names: list[str]) -> str:
    """A sentence that says why ``label`` is not a class."""
    if label.lower() in NO_LABEL:
        return f"label '{label}' means that there is no label"
    if SEVERAL.fullmatch(label):
        return f"label '{label[:200]}' is several labels; a sample must have one"
    return f"label '{label[:200]}' is not one of the {len(names)} classes{nearest(label[:200], names)}"
