"""What users are told when something they gave does not work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: one sentence that names the value and what is allowed. Tools exit with 2."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(value: str, allowed: Iterable[str], count: int = 3) -> str:
    """A clause naming the entries of ``allowed`` closest to ``value``: ``"; nearest: 'a', 'b'"``, or ``""``."""
    allowed = list(allowed)
    matches = difflib.get_close_matches(value, allowed, n=count, cutoff=0.5)
    matches += [name for name in allowed if value and value in name and name not in matches]
    return f"; nearest: {', '.join(repr(name) for name in matches[:count])}" if matches else ""
