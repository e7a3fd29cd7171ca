"""Files of text that people made: lines and JSON."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
