"""Lists as people have them: rows of a path and a label, by one separator, with or without quotes and a header."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleup.data.decode import EXTENSIONS
from scaleup.errors import UserError

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as spreadsheets write "Unicode text"


def read_text(path: Path) -> str:
    """All of a file in UTF-8, or in UTF-16 that says so; UserError where it is neither."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not text in UTF-8, byte {error.start} cannot be; save it as UTF-8") from None
    if text.count("\0") > len(text) / 4:
        raise UserError(f"'{path}' is not text in UTF-8 but looks like UTF-16; save it as UTF-8")
    return text


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and their numbers from 1, without what surrounds them; empty ones are left out."""
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    yield from ((number, stripped) for number, line in enumerate(lines, 1) if (stripped := line.strip()))


def read_lines(path: Path) -> list[str]:
    """Lines without what surrounds them; empty ones are left out."""
    return [line for _, line in numbered_lines(path)]


def read_json(path: Path) -> Any:
    """UserError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not JSON: {error}") from None


SEPARATORS = {
    "\t": "tabs",
    "::": "'::'",
    ",": "commas",
    ";": "semicolons",
    "|": "bars",
    " ": "spaces",
}  # the first of equals
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


@dataclass(frozen=True)
class Row:
    """One line, or why it is no row."""

    path: str
    label: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Columns:
    """Which column is which, of how many."""

    path: int
    label: int
    count: int


def read_rows(source: Path) -> list[Row]:
    """The rows of a list; a header and lines that begin with ``#`` are none.

    Raises:
        UserError: there are more than two columns, and no header says which are path and label.
    """
    lines = list(numbered_lines(source))
    if lines and lines[0][1].startswith("{"):
        raise UserError(f"'{source}' holds JSON; a list has a path and a label in each line, such as clips/a.mp4 run")
    separator = separator_of([line for _, line in lines])
    header = _header([line for _, line in lines], separator)
    lines = [(number, line) for number, line in lines[1 if header else 0 :] if not _is_comment(line)]
    split = [_fields(line, separator) for _, line in lines]
    columns = _columns(source, header, split)
    return [_row(*line, fields, separator, columns) for line, fields in zip(lines, split, strict=True)]


def separator_of(lines: Sequence[str]) -> str:
    """The one that makes a path and something else of most lines."""

    def fitting(separator: str) -> tuple[int, int]:
        split = [_fields(line, separator) for line in lines]
        return sum(_has_one_path(fields) for fields in split), sum(len(fields) > 1 for fields in split)

    return max(SEPARATORS, key=fitting)


def _has_one_path(fields: Sequence[str]) -> bool:
    return len(fields) > 1 and any(map(is_media, fields)) and not all(map(is_media, fields))


def is_media(text: str) -> bool:
    return text.lower().endswith(ENDINGS)


def _is_comment(line: str) -> bool:
    """A path may begin with # too."""
    return line.startswith("#") and (line[1:2].isspace() or not re.search(ENDING, line, re.IGNORECASE))


def _fields(line: str, separator: str) -> list[str]:
    """The fields of a line; one field where it cannot be divided."""
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
    try:
        rows = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True) if '"' in line else None
        fields = (
            [field.strip() for field in next(rows)] if rows else [_unquoted(f.strip()) for f in line.split(separator)]
        )
    except csv.Error:
        return [line]
    while len(fields) > 2 and not fields[-1]:
        fields.pop()
    return fields


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _header(lines: Sequence[str], separator: str) -> list[str]:
    """The names of the columns in small letters; none where the first line is a row, as it is if it has a path."""
    bare = lines[0].lstrip("# ") if lines else ""
    names = bare.split() if separator == " " else _fields(bare, separator)
    names = [_unquoted(name).lower().replace(" ", "_") for name in names]
    known = [name in PATHS or name in LABELS for name in names]
    paths = any(any(map(is_media, _fields(line, separator))) for line in lines[1:])
    is_header = any(known) if paths else sum(known) > 1
    return names if is_header and not any(name.isdecimal() or "." in name or "/" in name for name in names) else []


def _columns(source: Path, header: list[str], split: list[list[str]]) -> Columns:
    count = len(header) or (Counter(map(len, split)).most_common(1)[0][0] if split else 2)
    paths = Counter(column for fields in split for column, field in enumerate(fields[:count]) if is_media(field))
    named = [header.index(name) for name in PATHS if name in header] or list(range(count))
    path = max(named, key=lambda column: paths[column])
    labels = [header.index(name) for name in LABELS if name in header] or ([1 - path] if count == 2 else [])
    if count > 1 and not labels:
        raise UserError(
            f"'{source}' has {count} columns and no header that says which are path and label; "
            "put such a line on top, with the columns' names, two of them path and label"
        )
    return Columns(path, labels[0] if labels else 1, max(count, 2))


def _row(number: int, line: str, fields: list[str], separator: str, columns: Columns) -> Row:
    path = fields[min(columns.path, len(fields) - 1)]
    reason = _wrong(line, fields, separator, columns)
    if reason:
        return Row(path, reason=f"line {number} {reason}")
    return Row(path, fields[columns.label] if columns.label < len(fields) else "")


def _wrong(line: str, fields: list[str], separator: str, columns: Columns) -> str:
    """Why a line is no row of its list, if it is none."""
    if len(fields) > columns.count or separator == " " and 1 < len(fields) < columns.count:
        return f"has {len(fields)} columns, not {columns.count}; text that has a separator in it needs quotes around it"
    if len(fields) > 1:
        return ""
    other = next((name for name in SEPARATORS if _has_one_path(_fields(line, name))), None)
    if other:
        return f"has {SEPARATORS[other]} between path and label, the others {SEPARATORS[separator]}"
    return "has quotes that do not close" if line.count('"') % 2 else "has no label after the path"
