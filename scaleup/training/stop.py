"""When a run ends early: asked to by a signal, or at a limit of time; every rank at the same step."""

from __future__ import annotations

import signal
import time
from types import FrameType

from scaleup.common.distributed import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # the last: of schedulers, before the time is up
LIMIT = 1  # the reason that is no signal


class Stop:
    """Notes SIGTERM, SIGINT and SIGUSR2 while it is entered; a second signal of its kind does what it did before.

    Args:
        after: seconds from now at which to stop, if at all.
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
        """0: go on; :data:`LIMIT`, or 128 + a signal: stop now. The same on all ranks, which must all ask."""
        late = self.limit is not None and time.monotonic() >= self.limit
        return self.world.largest(max(self.asked, LIMIT if late else 0))


def exit_code(reason: int) -> int:
    """Of a run that ended early: 0 at the limit, as was asked for; 128 + the signal after a signal."""
    return 0 if reason == LIMIT else reason
