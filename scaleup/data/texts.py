"""Files of text that people made: lines and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaleup.errors import UserError


def read_lines(path: Path) -> Iterator[str]:
    """Lines without what surrounds them; empty ones are left out."""
    with path.open(encoding="utf-8-sig") as file:
        yield from (stripped for line in file if (stripped := line.strip()))


def read_json(path: Path) -> Any:
    """UserError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not JSON: {error}") from None
