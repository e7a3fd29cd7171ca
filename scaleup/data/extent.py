"""How much of a video is there, of what its header states."""

from __future__ import annotations

import math
from typing import Any

import av

from scaleup.data.timeline import MAX_GAP, period


class Extent:
    """From where to where the packets of a stream go."""

    def __init__(self, stream: av.VideoStream) -> None:
        self._stream, self._base, self._period = stream, float(stream.time_base or 0), period(stream)
        self._count, self._begin, self._end = 0, 0.0, -math.inf
        self._unstamped = 0  # packets; each lasts a period

    def add(self, packet: av.Packet) -> None:
        self._count += 1
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            self._unstamped += 1
            return
        second = stamp * self._base
        self._begin = min(self._begin, second)
        self._end = max(self._end, second + max(self._period, (packet.duration or 0) * self._base))

    def missing(self) -> tuple[float, str]:
        """The share of the stated length that is missing at the end, and a sentence that says so.

        A header is not believed where as many packets are there as it counts, or where they could not last so long.
        """
        stated, length = _stated(self._stream), self._end - self._begin + self._unstamped * self._period
        if not stated or self._count == self._stream.frames or stated > self._count * MAX_GAP:
            return 0.0, ""
        if not -math.inf < length < stated - 2 * self._period:
            return 0.0, ""
        return 1 - length / stated, f"ends early: {length:.1f} of {stated:.1f} seconds are there"


def _stated(stream: av.VideoStream) -> float | None:
    """Seconds, by the header of this stream, or by the file's where there is no other stream."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    container: Any = stream.container
    alone = len(container.streams) == 1 and container.duration
    return container.duration / av.time_base if alone else None
