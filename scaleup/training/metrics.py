"""What a run writes down: ``metrics.jsonl``, one object a step, and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class Metrics:
    """Appends to ``out/metrics.jsonl`` at every step and to ``out/tensorboard`` at every ``log_every``-th.

    Every line is flushed: a run that is killed loses one line at most.
    """

    def __init__(self, out: Path, log_every: int) -> None:
        self.log_every = log_every
        self.lines = (out / "metrics.jsonl").open("a", buffering=1)
        self.board = SummaryWriter(out / "tensorboard")

    def log(self, entry: dict[str, Any]) -> None:
        """``entry`` holds ``step`` and, nested as it likes, numbers; what is not a number goes to the lines alone."""
        self.lines.write(json.dumps(entry) + "\n")
        if entry["step"] % self.log_every == 0:
            for name, value in flatten(entry):
                self.board.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        self.lines.close()
        self.board.close()


def flatten(entry: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested mapping by path: ``("arms/model/loss", 0.3)``."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield f"{prefix}{name}", value
