"""Ends a run early: signals that are recorded, and a limit of time."""

from __future__ import annotations

import signal
import time
from types import FrameType

from scaleup.common.distributed import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # schedulers send SIGUSR2 before the time limit
LIMIT = 1  # the reason if the time is over


class Stop:
    """Inside this context, SIGTERM, SIGINT and SIGUSR2 are only recorded. A second signal has its usual effect.

    Args:
        after: seconds until the run should stop, or None.
    """

    def __init__(self, world: World, after: float | None) -> None:
        self.world, self.asked = world, 0
        self.limit = None if after is None else time.monotonic() + after

    def __enter__(self) -> Stop:
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.asked = 128 + number
        signal.signal(number, self.before[signal.Signals(number)])

    def reason(self) -> int:
        """0: continue. :data:`LIMIT`, or 128 + a signal: stop now. All ranks must call, and get the same."""
        late = self.limit is not None and time.monotonic() >= self.limit
        return max(self.world.gather_numbers(max(self.asked, LIMIT if late else 0)))


def exit_code(reason: int) -> int:
    """The exit code of a run that ended early: 0 after the limit of time, 128 + the signal after a signal."""
    return 0 if reason == LIMIT else reason
