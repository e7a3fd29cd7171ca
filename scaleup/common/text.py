"""Text for people: tables for a terminal and in Markdown, lists of words, amounts of bytes and time."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from scaleup.common.errors import UserError


def columns(rows: Sequence[Sequence[str]], to_left: Collection[int] = (0,)) -> list[str]:
    """A line for each row, with aligned columns. Columns in ``to_left`` are left-aligned, all others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number in to_left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]], to_right: Collection[int] = ()) -> list[str]:
    """The lines of a table in Markdown; columns in ``to_right`` are right-aligned."""
    rule = ["--:" if number in to_right else "---" for number in range(len(header))]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in (header, rule, *rows)]


LISTED = 4  # words that a sentence lists


def join_words(words: Iterable[str]) -> str:
    """``a, b and 3 more``."""
    words = list(words)
    if len(words) > LISTED:
        words[LISTED:] = [f"{len(words) - LISTED} more"]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str, option: str) -> int:
    """``200G`` (10^9) or ``24GiB`` (2^30) -> bytes. ``option`` is the name of the option, for the error.

    Raises:
        UserError: it is not an amount.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(i?)b?", text.lower())
    if not match or (match[3] and not match[2]):
        raise UserError(f"{option} {text!r} is not an amount of bytes; write for example 200G, 1.5T, 800M or 24GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** POWERS[match[2]])


def format_bytes(size: float) -> str:
    """Bytes in words: ``12.3 GB``."""
    unit = next((unit for unit in "TGMk" if size >= UNITS[unit]), "")
    return f"{size / UNITS[unit]:.3g} {unit}B"


def format_gib(size: float) -> str:
    """Bytes in words, as memory is counted: ``1.50 GiB``."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def format_duration(seconds: float) -> str:
    """``12.3 s``, ``4.5 min``, ``1.2 h``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def around_marks(page: Path, begin: str, end: str) -> tuple[str, str]:
    """The text of a page before and after its figures, which stand between two lines.

    Raises:
        UserError: the file does not exist, or has no such lines.
    """
    before, begun, rest = (page.read_text() if page.is_file() else "").partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise UserError(f"'{page}' cannot take figures: it has no lines {begin.strip()!r} and {end.strip()!r}")
    return before, after
