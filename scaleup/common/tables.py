"""Tables of text: columns for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any


def columns(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """A line for each row, with columns as wide as they need; all but those in ``left`` stand to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]], right: Collection[int] = ()) -> list[str]:
    """The lines of a table in Markdown; columns in ``right`` stand to the right."""
    rule = ["--:" if number in right else "---" for number in range(len(header))]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in (header, rule, *rows)]
