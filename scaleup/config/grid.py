"""The arms of a grid: every combination of the values that a recipe lists, each under a name that says what it is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

SHORT = {"frozen_depth": "depth"}


def expand(grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """``{"frozen_depth": [6, 8], "gate": [True]}`` -> ``{"depth6_gate": {"frozen_depth": 6, "gate": True}, ...}``.

    The last setting changes fastest; no setting, no arm.
    """
    combinations = itertools.product(*grid.values()) if grid else ()
    changes = [dict(zip(grid, values, strict=True)) for values in combinations]
    return {"_".join(itertools.starmap(_said, each.items())): each for each in changes}


def _said(setting: str, value: Any) -> str:
    """A setting and its value in letters, digits, '_' and '-' alone: ``depth6``, ``lr1e-4``, ``gate``, ``no_gate``."""
    setting = SHORT.get(setting, setting)
    if value is None or isinstance(value, bool):
        return setting if value else f"no_{setting}"
    if isinstance(value, int | float):
        return setting + _number(value)
    return re.sub(r"[^0-9A-Za-z_-]", "-", str(value))


def _number(value: float) -> str:
    """A number without a point, which names may not have: 0.00015 is ``15e-5``."""
    exact = Decimal(repr(value))
    exponent = exact.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return f"{exact:.0f}" if 0 <= exponent <= 6 else f"{exact.scaleb(-exponent):.0f}e{exponent}"
