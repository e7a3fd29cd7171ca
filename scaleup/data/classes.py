"""Names of classes: read from files, numbered, and what a label means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from scaleup.data.texts import read_json, read_lines
from scaleup.errors import UserError, nearest

MAX_CLASSES = 100_000  # where numbers stand for classes and no list of names bounds them


def read_classes(path: str | Path) -> list[str]:
    """Class names in the order of their numbers: lines ``NAME``, lines ``NUMBER NAME`` from 0 or 1, or a JSON object
    of names to numbers.
    """
    path = Path(path)
    try:
        numbered = read_json(path) if path.suffix == ".json" else _numbered(list(read_lines(path)))
        names = sorted(numbered, key=lambda name: int(numbered[name]))
        numbers = [int(numbered[name]) for name in names]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is not a list of class names: {error}") from error
    if not names or numbers != list(range(numbers[0], numbers[0] + len(names))):
        raise UserError(f"'{path}' is not a list of class names: they are not numbered one after the other, once each")
    return names


def _numbered(lines: list[str]) -> dict[str, int]:
    pairs = [match for line in lines if (match := re.fullmatch(r"(\d+)\s+(.+)", line))]
    numbered = {line: number for number, line in enumerate(lines)}
    if len(pairs) == len(lines):
        numbered = {pair[2]: int(pair[1]) for pair in pairs}
    if len(numbered) < len(lines):
        raise ValueError("a name stands in it twice")
    return numbered


def class_names(labels: Iterable[str]) -> list[str]:
    """The labels that occur, sorted; if all are numbers, every number up to the largest."""
    found = {label for label in labels if label}
    if found and all(label.isdecimal() for label in found):
        return [str(number) for number in range(min(max(map(int, found)) + 1, MAX_CLASSES))]
    return sorted(found)


def class_name(label: str, names: list[str], known: set[str]) -> str | None:
    """The class that ``label`` means, itself one of ``names`` (``known``) or the number of one; None: neither."""
    if label in known:
        return label
    return names[int(label)] if label.isdecimal() and int(label) < len(names) else None


def unknown(label: str, names: list[str]) -> str:
    """Why ``label`` is no class."""
    return f"label '{label[:200]}' is none of the {len(names)} classes{nearest(label[:200], names)}"
