"""Errors that are the user's to mend, and hints such as the nearest allowed name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the user's input: one sentence with the value and what is allowed. Tools exit with code 2."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(value: str, allowed: Iterable[str], count: int = 3) -> str:
    """A clause with the entries of ``allowed`` that are most like ``value``: ``"; nearest: 'a', 'b'"``, or ``""``."""
    allowed = list(allowed)
    matches = difflib.get_close_matches(value, allowed, n=count, cutoff=0.5)
    matches += [name for name in allowed if value and value in name and name not in matches]
    return f"; nearest: {', '.join(repr(name) for name in matches[:count])}" if matches else ""
