"""The time that work takes on a device, and progress on stderr with a steady ETA."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    import torch  # takes seconds, and tools import this module first


def now(device: torch.device) -> float:
    """Seconds on a clock, after the device has finished its work."""
    if device.type != "cpu":
        import torch

        torch.accelerator.synchronize(device)
    return time.perf_counter()


class Span:
    """The time that the work inside ``with Span(device):`` takes.

    A GPU measures it with events in its stream, so the host does not wait.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Span:
        self.began = self._mark()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = self._mark()

    def _mark(self) -> Any:
        if self.device.type == "cpu":
            return time.perf_counter()
        import torch

        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event

    @property
    def seconds(self) -> float:
        """On a GPU only after it has done the work."""
        if self.device.type == "cpu":
            return self.ended - self.began
        return self.began.elapsed_time(self.ended) / 1000  # from milliseconds


def measure_in_turns(
    calls: Mapping[str, Callable[[], Any]], clock: Callable[[], float], rounds: int = 3
) -> dict[str, list[float]]:
    """Seconds of some runs of each call, after a first one. Calls take turns, so that other work slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            began = clock()
            call()
            seconds[name].append(clock() - began)
    return {name: times[1:] for name, times in seconds.items()}


SHORTEST = 0.5  # seconds; steps that are shorter are counted together
RECENT, GROUPS = 45, 9  # number of measurements that are kept, and of the groups whose median counts


class Rate:
    """Seconds of a step: the median of nine means, each over a ninth of the recent steps.

    Within a group the mean counts, because steps may differ in turns (images and videos). Of the groups the median
    counts, because one step may wait for a disk. The first measurement is dropped when there are others: it contains
    the warm-up and the steps of an earlier run.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()  # of the stretch that is open
        self._steps = 0
        self._first: tuple[float, int] | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)  # seconds and steps

    def count(self, steps: int) -> None:
        """Add ``steps`` finished steps."""
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
        """Seconds of a step; None before the first measurement."""
        stretches = list(self._recent) or ([self._first] if self._first else [])
        if not stretches:
            return None
        size = -(-len(stretches) // GROUPS)
        groups = [stretches[begin : begin + size] for begin in range(0, len(stretches), size)]
        return median(sum(s for s, _ in group) / sum(n for _, n in group) for group in groups)

    def eta(self, left: float) -> str:
        """``"eta 0:02:15"`` for ``left`` more steps; empty before the first measurement."""
        seconds = self.seconds()
        return "" if seconds is None else f"eta {timedelta(seconds=round(left * seconds))}"


console = Console(stderr=True)  # stdout is for results


def is_first_rank() -> bool:
    """Whether this process prints. Of distributed processes, only the first does."""
    return os.environ.get("RANK", "0") == "0"


def late_mean(seconds: list[float]) -> float:
    """The mean without the first few steps, which pay for warming up."""
    return fmean(seconds[min(5, len(seconds) // 2) :])


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr with elapsed and remaining time; yields ``advance(steps=1, note="")``.

    If stderr is not a terminal, a line is printed for every tenth of the work. The first call may add the steps of an
    earlier run.
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
