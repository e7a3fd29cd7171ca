"""How fast work goes, steadily: one slow step is no reason to say that all the others will be slow."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from statistics import median

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
