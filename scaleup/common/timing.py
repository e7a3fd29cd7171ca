"""Clocks that wait for the device, and progress on stderr with a steady ETA."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    import torch  # takes seconds: tools import this module before they know what is asked


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all that it was asked to."""
    if device.type != "cpu":
        import torch

        torch.accelerator.synchronize(device)
    return time.perf_counter()


SHORTEST = 0.5  # seconds; steps that are shorter are counted together
RECENT, GROUPS = 45, 9  # stretches of work that are remembered, and the groups whose median counts


class Rate:
    """Seconds of a step: the median of nine means, each over a ninth of the recent steps.

    A mean within a group, since steps may take turns (images and videos, say); the median of the groups, since one step
    may wait for a disk or be the first after a pause. The first stretch is left out as soon as there are others: it
    warms up, and holds the steps that an earlier run did.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()  # of the stretch that is open
        self._steps = 0
        self._first: tuple[float, int] | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)  # seconds and steps

    def count(self, steps: int) -> None:
        """So many steps are done."""
        self._steps += steps
        seconds = self._clock() - self._began
        if seconds < SHORTEST or not self._steps:
            return
        if self._first is None:
            self._first = seconds, self._steps
        else:
            self._recent.append((seconds, self._steps))
        self._began, self._steps = self._clock(), 0

    def seconds(self) -> float | None:
        """Of a step; None before there is one to go by."""
        stretches = list(self._recent) or ([self._first] if self._first else [])
        if not stretches:
            return None
        size = -(-len(stretches) // GROUPS)
        groups = [stretches[begin : begin + size] for begin in range(0, len(stretches), size)]
        return median(sum(s for s, _ in group) / sum(n for _, n in group) for group in groups)

    def eta(self, left: float) -> str:
        """``"eta 0:02:15"`` for so many steps; empty before there is anything to go by."""
        seconds = self.seconds()
        return "" if seconds is None else f"eta {timedelta(seconds=round(left * seconds))}"


console = Console(stderr=True)  # stdout belongs to results


def is_first_rank() -> bool:
    """Whether this process prints: of several that run together, the first does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr with elapsed and remaining time; yields ``advance(steps=1, note="")``.

    Off a terminal one plain line stands for every tenth part, so that logs stay short. Steps that an earlier run did
    are given in the first call.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
        TextColumn("{task.fields[note]}"),
    )
    rate, tenth, leads = Rate(), max(1, total // 10), is_first_rank()
    with Progress(*columns, console=console, disable=not (console.is_terminal and leads)) as bars:
        task = bars.add_task(title, total=total, eta="", note="")

        def advance(steps: int = 1, note: str = "") -> None:
            before = bars.tasks[0].completed
            rate.count(steps)
            done = before + steps
            eta = rate.eta(total - done)
            bars.update(task, advance=steps, eta=eta, note=note)
            if leads and not console.is_terminal and int(before // tenth) != int(done // tenth):
                print(f"{title}: {done:.0f}/{total} {eta} {note}".rstrip(), file=sys.stderr)

        yield advance
