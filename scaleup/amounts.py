"""Amounts of memory and of disk, as people write them."""

from __future__ import annotations

import re

from scaleup.errors import UserError

POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def bytes_of(text: str, option: str) -> int:
    """``200G`` (10^9) or ``24GiB`` (2^30) -> bytes; ``option`` is what was given so.

    Raises:
        UserError: it is no amount.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)(i?)b?", text.lower())
    if not match or (match[3] and not match[2]):
        raise UserError(f"{option} {text!r} is no amount of bytes; allowed are such as 200G, 1.5T, 800M and 24GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** POWERS[match[2]])
