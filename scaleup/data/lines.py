"""Lines of text files."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scaleup.common.errors import UserError

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


@dataclass(frozen=True)
class Lines:
    """Line numbers (from 1) and lines of a text without surrounding space. Empty lines are left out."""

    text: str

    @classmethod
    def of(cls, path: Path) -> Lines:
        return cls(read_text(path).replace("\r\n", "\n").replace("\r", "\n"))

    def __iter__(self) -> Iterator[tuple[int, str]]:
        begin, number = 0, 0
        while begin <= len(self.text):
            end = self.text.find("\n", begin)
            end, number = (len(self.text) if end < 0 else end), number + 1
            if line := self.text[begin:end].strip():
                yield number, line
            begin = end + 1


def read_lines(path: Path) -> list[str]:
    """Lines without surrounding space. Empty lines are left out."""
    return [line for _, line in Lines.of(path)]
