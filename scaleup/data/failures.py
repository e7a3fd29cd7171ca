"""What was left out and why, as an index keeps it and as people are told."""

from __future__ import annotations

import re
from collections.abc import Iterable

Failure = dict[str, str]  # source, reason


def failure(source: object, reason: str) -> Failure:
    """The entry of an index; a name that is no text is written with escapes, so that it can be printed."""
    return {"source": printable(str(source)), "reason": printable(reason)}


def printable(text: str) -> str:
    """Text with escapes for bytes of a name that are none."""
    return text.encode("utf-8", "backslashreplace").decode()


def by_reason(failures: Iterable[Failure]) -> list[str]:
    """A line for each kind of reason, the most frequent first: one that has it, and how many more."""
    kinds: dict[str, list[Failure]] = {}
    for each in failures:
        kinds.setdefault(_kind(each["reason"]), []).append(each)
    ordered = sorted(kinds.values(), key=len, reverse=True)
    return [f"{each[0]['source']}: {each[0]['reason']}{_more(len(each) - 1)}" for each in ordered]


def _kind(reason: str) -> str:
    """A reason without what is of one file: names in quotes, numbers, what stands after a colon."""
    return re.sub(r"'[^']*'|\S*\d\S*", "*", reason.partition(":")[0])


def _more(count: int) -> str:
    return f" (and {count} more like it)" if count else ""
