"""Which cases of a test ``make test`` leaves to ``make test-all``."""

from typing import Any

import pytest


def at_length(*cases: Any) -> list[Any]:
    """Cases that repeat what the others prove; one of several arguments is a tuple."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.all) for case in cases]
