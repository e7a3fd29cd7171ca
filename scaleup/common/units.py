"""Amounts of memory and of disk, as people write them."""

from __future__ import annotations

import re

from scaleup.errors import UserError

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
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


def said(size: float) -> str:
    """Bytes in words: ``12.3 GB``."""
    unit = next((unit for unit in "TGMk" if size >= UNITS[unit]), "")
    return f"{size / UNITS[unit]:.3g} {unit}B"
