"""Reads lists of paths and labels, and lists of class names."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from scaleup.common.errors import UserError
from scaleup.common.files import read_json
from scaleup.data.decode import EXTENSIONS
from scaleup.data.lines import Lines, read_lines


@dataclass(frozen=True)
class Split:
    """The lines of a list that are neither its header nor a comment, divided into fields, which are not kept."""

    lines: Lines
    separator: str
    headers: int  # lines before the first row

    def __iter__(self) -> Iterator[tuple[int, str, list[str]]]:
        for number, line in islice(self.lines, self.headers, None):
            if not _is_comment(line):
                yield number, line, _fields(line, self.separator)

    @property
    def fields(self) -> Iterator[list[str]]:
        return (fields for _, _, fields in self)


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
HAS = {"0": False, "1": True, "0.0": False, "1.0": True}  # cells that say whether a sample has the column's class
ENDINGS = tuple(f".{ending}" for endings in EXTENSIONS.values() for ending in endings)
ENDING = rf"(?:{'|'.join(map(re.escape, ENDINGS))})"
PATH_FIRST = re.compile(rf"(.+{ENDING}[\"']?)\s+(\S.*)", re.IGNORECASE | re.DOTALL)
LABEL_FIRST = re.compile(rf"(\S+)\s+(.+{ENDING}[\"']?)", re.IGNORECASE | re.DOTALL)

NUMBERS = re.compile(r"[-+.\d]+(\s+[-+.\d]+)+")
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
    labels: list[int]
    total: int
    names: list[str] = []  # of classes, if each label column says with 0 or 1 whether a sample has one


def read_rows(source: Path, several: bool = False) -> Iterator[Row]:
    """The rows of a list, without its header and lines that begin with ``#``.

    Args:
        several: a sample may have several labels. They are in one column, in all columns with the name of a label
            (``label``, ``label_2``) or, without a header, in all columns but the path's; or each column has the name of
            a class, and 0 or 1. The label of a row with several columns is a JSON list.

    Raises:
        UserError: there are more than two columns, and no header says which are path and label.
    """
    lines = Lines.of(source)
    first = next((line for _, line in lines), "")
    if first.startswith("{"):
        raise UserError(f"'{source}' holds JSON; a list has a path and a label in each line, such as clips/a.mp4 run")
    separator = _separator(lines)
    header = _header(first, Split(lines, separator, 1))
    split = Split(lines, separator, 1 if header else 0)
    columns = _several_columns(header, _column_names(first, separator), split) if several else None
    columns = columns or _columns(source, header, split)
    for number, line, fields in split:
        path = fields[min(columns.path, len(fields) - 1)]
        if reason := _explain_line(line, fields, separator, columns):
            yield Row(path, reason=f"line {number} {reason}")
        else:
            yield Row(path, _label(fields, columns))


def _label(fields: list[str], columns: Columns) -> str:
    """The label of a line, or its labels as a JSON list."""
    cells = [fields[column] if column < len(fields) else "" for column in columns.labels]
    if columns.names:
        return json.dumps([name for name, cell in zip(columns.names, cells, strict=True) if HAS.get(cell)])
    return cells[0] if len(cells) == 1 else json.dumps([part for cell in cells for part in re.split("[;|]", cell)])


def _separator(lines: Lines) -> str:
    """The separator that divides most lines into a path and another field."""
    counts = dict.fromkeys(SEPARATORS, (0, 0))
    for _, line in lines:
        for separator, (paths, several) in counts.items():
            fields = _fields(line, separator)
            counts[separator] = paths + _has_one_path(fields), several + (len(fields) > 1)
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


def _header(first: str, others: Split) -> list[str]:
    """The names of the columns in lower case; empty if the first line is not a header, because it has a path."""
    names = [name.lower().replace(" ", "_") for name in _column_names(first, others.separator)]
    count = sum(name in PATHS or name in LABELS for name in names)
    paths_follow = any(any(map(is_media, fields)) for fields in others.fields)
    if count < (1 if paths_follow else 2) or any(name.isdecimal() or "." in name or "/" in name for name in names):
        return []
    return names


def _column_names(first: str, separator: str) -> list[str]:
    """The fields of the first line, which may be a header."""
    bare = first.lstrip("# ")
    return [_unquoted(name) for name in (bare.split() if separator == " " else _fields(bare, separator))]


def _several_columns(header: list[str], names: list[str], split: Split) -> Columns | None:
    """The columns of a list whose labels are in several columns; None if they are in one.

    Args:
        names: the header as it is written.
    """
    count = len(header) or max(map(len, split.fields), default=2)
    path = _path_column(header, split, count)
    others = [column for column in range(count) if column != path]
    cells = {fields[column] for fields in split.fields for column in others if column < len(fields)}
    if header and cells <= HAS.keys():
        return Columns(path, others, count, [names[column] for column in others])
    labels = [column for column in others if not header or re.sub(r"_?\d+$", "", header[column]) in LABELS]
    return Columns(path, labels, count) if len(labels) > 1 else None


def _path_column(header: list[str], split: Split, count: int) -> int:
    paths = Counter(column for fields in split.fields for column, field in enumerate(fields[:count]) if is_media(field))
    named = [header.index(name) for name in PATHS if name in header] or list(range(count))
    return max(named, key=lambda column: paths[column])


def _columns(source: Path, header: list[str], split: Split) -> Columns:
    lengths = Counter(map(len, split.fields)).most_common(1)
    count = len(header) or (lengths[0][0] if lengths else 2)
    path = _path_column(header, split, count)
    labels = [header.index(name) for name in LABELS if name in header] or ([1 - path] if count == 2 else [])
    if count > 1 and not labels:
        raise UserError(
            f"'{source}' has {count} columns and no header that says which are path and label; "
            "add a first line with the columns' names, two of them path and label"
        )
    return Columns(path, [labels[0] if labels else 1], max(count, 2))


def _explain_line(line: str, fields: list[str], separator: str, columns: Columns) -> str:
    """Why a line cannot be used; empty if it can."""
    missing = 1 < len(fields) < columns.total and len(columns.labels) == 1
    if len(fields) > columns.total or separator == " " and missing:
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
