"""Names of classes: read from files, numbered, and what a label means."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from scaleup.data.lists import read_json, read_lines
from scaleup.errors import UserError, nearest

MAX_CLASSES = 100_000  # where numbers stand for classes and no list of names bounds them
NO_LABEL = {"", "-1", "-1.0", "nan"}
NO_NUMBER = {"none", "null", "na", "n/a"}  # no label where labels are numbers; else they may be words like any other
SEVERAL = re.compile(r"\d+(\s*[,;|]\s*\d+)+")  # numbers in one label, as sets with several labels a sample have them
NUMBER_FIRST = re.compile(r"\"?(?P<number>\d+)\"?(?:\s*[,;:\t]\s*|\s+)(?P<name>.+)")
NUMBER_LAST = re.compile(r"(?P<name>.+?)\s*[,;\t]\s*\"?(?P<number>\d+)\"?")
HEADER = {
    "id",
    "index",
    "number",
    "class",
    "class_id",
    "label",
    "label_id",
    "name",
    "class_name",
    "label_name",
    "names",
    *("", "idx", "class_idx", "class_index", "label_idx", "label_index"),
}


def read_classes(path: str | Path) -> list[str]:
    """Class names in the order of their numbers: lines ``NAME``; lines ``NUMBER NAME`` or ``NAME,NUMBER`` from 0 or 1,
    with any separator, quotes and a header; or JSON: a list of names, an object of names to numbers or the reverse.
    """
    path = Path(path)
    try:
        numbered = _of_json(read_json(path)) if path.suffix.lower() == ".json" else _of_lines(read_lines(path))
        names = sorted(numbered, key=lambda name: int(numbered[name]))
        numbers = [int(numbered[name]) for name in names]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is not a list of class names: {error}") from error
    if not names or numbers != list(range(numbers[0], numbers[0] + len(names))):
        raise UserError(f"'{path}' is not a list of class names: they are not numbered one after the other, once each")
    return names


def _of_json(content: Any) -> dict[str, int]:
    """Names and their numbers."""
    if isinstance(content, list):
        return _once((name, number) for number, name in enumerate(content))
    if all(key.isdecimal() for key in content) and all(isinstance(name, str) for name in content.values()):
        return _once((name, number) for number, name in content.items())
    return dict(content)


def _of_lines(lines: list[str]) -> dict[str, int]:
    """Names and their numbers; a first line that names the columns is none, nor are lines that begin with ``# ``."""
    lines = [line for line in lines if not line.startswith("# ")]
    begin = 1 if lines and {word.strip("\"' ").lower() for word in re.split(r"[\s,;:]+", lines[0])} <= HEADER else 0
    if numbered := _numbered(lines[begin:]):
        return _once(numbered)
    numbered = _numbered(lines[1:]) if lines and re.search(r"[,;\t]", lines[0]) else []
    if numbered and min(number for _, number in numbered) < 2:  # so the first line is a header of other words
        return _once(numbered)
    plain = lines[begin:] if begin and len(lines[0].split(",")) == 1 and len(lines) > 1 else lines
    return _once((_unquoted(name), number) for number, name in enumerate(plain))


def _numbered(lines: list[str]) -> list[tuple[str, int]]:
    """Names and their numbers if all lines have both, else nothing."""
    for pattern in (NUMBER_FIRST, NUMBER_LAST):
        pairs = [pattern.fullmatch(line) for line in lines]
        if all(pairs):
            return [(_unquoted(pair["name"]), int(pair["number"])) for pair in pairs if pair]
    return []


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[str, int]:
    pairs = list(pairs)
    if not all(isinstance(name, str) for name, _ in pairs):
        raise ValueError("a name in it is no text")
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _unquoted(text: str) -> str:
    """Without the quotes of CSV."""
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def number_of(label: str) -> int | None:
    """The number that a label is, such as 3, 03 or 3.0; None: it is a word, or no number that classes have."""
    match = re.fullmatch(r"\+?(\d+)(?:\.0*)?", label)
    return int(match[1]) if match else None


def _is_number(label: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", label, re.IGNORECASE) is not None


def class_names(labels: Iterable[str]) -> list[str]:
    """The labels that occur, numbers in their order and then words; if all are numbers, every number up to the largest.

    What stands for no label is none: nothing, -1 and nan; beside numbers alone, none, null and na too.
    """
    found = {label for label in labels if label.lower() not in NO_LABEL}
    words = {label for label in found if not _is_number(label)}
    numbers = {number for label in found if (number := number_of(label)) is not None}
    several = {word for word in words if SEVERAL.fullmatch(word)}
    if (numbers or several) and all(word.lower() in NO_NUMBER for word in words - several):
        return [str(number) for number in range(min(max(numbers, default=-1) + 1, MAX_CLASSES))]
    return sorted(found, key=lambda label: (number_of(label) is None, number_of(label) or 0, label))


def class_name(label: str, names: list[str], known: Container[str]) -> str | None:
    """The class that ``label`` means, itself one of ``names`` (``known``) or the number of one; None: neither."""
    if label in known:
        return label
    number = number_of(label)
    return names[number] if number is not None and number < len(names) else None


def unknown(label: str, names: list[str]) -> str:
    """Why ``label`` is no class."""
    if label.lower() in NO_LABEL:
        return f"label '{label}' is none of the {len(names)} classes but stands for no label"
    if SEVERAL.fullmatch(label):
        return f"label '{label[:200]}' is several labels; a sample has one"
    return f"label '{label[:200]}' is none of the {len(names)} classes{nearest(label[:200], names)}"
