"""What a run writes down: ``metrics.jsonl``, one object a step, and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from scaleup.common.files import sync, write_text


class Metrics:
    """Appends to ``out/metrics.jsonl`` at every step and to ``out/tensorboard`` at every ``log_every``-th, what arms
    were validated with (``valid``) at any.

    Every line is flushed: a run that is killed loses one line at most. What a killed run wrote of steps from ``start``
    on is taken back; ``kept`` are the lines before.
    """

    def __init__(self, out: Path, log_every: int, start: int = 0) -> None:
        self.log_every, path = log_every, out / "metrics.jsonl"
        self.kept = [entry for entry in read_lines(path) if entry["step"] < start]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in self.kept))
        self.lines = path.open("a", buffering=1)
        self.board = SummaryWriter(out / "tensorboard", purge_step=start)

    def log(self, entry: dict[str, Any]) -> None:
        """``entry`` holds ``step`` and, nested as it likes, numbers; what is not a number goes to the lines alone."""
        self.lines.write(json.dumps(entry) + "\n")
        for name, value in flatten(entry):
            if entry["step"] % self.log_every == 0 or "/valid/" in name:
                self.board.add_scalar(name, value, entry["step"])

    def sync(self) -> None:
        """Put the lines on the disk."""
        sync(self.lines.fileno())

    def close(self) -> None:
        self.lines.close()
        self.board.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a run so far; the last one of a run that was killed may be half a line, and is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def flatten(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested mapping by path: ``("arms/model/loss", 0.3)``."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}{name}", value
