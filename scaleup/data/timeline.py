"""When each frame of a video is shown: by its stamp where that can be true, else evenly spaced."""

from __future__ import annotations

import math
from collections.abc import Sequence

import av
import numpy as np

MAX_GAP = 660.0  # seconds that one frame may stay on screen; a GIF can ask for 655
RATES = 0.1, 300.0  # frames a second that a header may state; without such a rate it is taken to be DEFAULT_RATE
DEFAULT_RATE = 25.0


class Clock:
    """Stamps of frames, in the order in which they are shown, to the seconds at which they are shown.

    A frame comes after the one before it, by at most ``MAX_GAP``. A stamp that says so is believed; a frame without
    such a stamp comes one ``period`` after the one before it. Where the stamps go on from one that was not believed,
    they are believed again, from there: two pieces of a joined video follow one another.
    """

    def __init__(self, period: float) -> None:
        self.doubted = 0  # stamps that were not believed
        self._period = period
        self._second = self._stamp = -math.inf  # of the frame before
        self._offsets: list[float] = []  # from stamps to seconds: as so far, and as from the frame before on

    def __call__(self, stamp: float | None) -> float:
        """The second of the next frame; ``stamp`` in seconds."""
        if stamp is None:
            self._second = 0.0 if self._second == -math.inf else self._second + self._period
            return self._second
        if self._second == -math.inf:
            self._second, self._offsets = stamp, [0.0]
        elif not self._believed(stamp):
            self.doubted += bool(self._offsets)  # the first of all says nothing of itself
            self._second += self._period
            self._offsets = [*self._offsets[:1], self._second - stamp]
        self._stamp = stamp
        return self._second

    def _believed(self, stamp: float) -> bool:
        for offset in self._offsets:
            if 0 < stamp + offset - self._second <= MAX_GAP:
                self._second, self._offsets = stamp + offset, [offset]
                return True
        # The frame before was put a period after its own before, and that was too long.
        return stamp > self._stamp and any(0 <= self._second - stamp - o < self._period for o in self._offsets[:1])


class Stamps:
    """One stamp for each decoded frame: its own or, where those go back more often, its packet's time of decoding.

    That is how FFmpeg's players choose: some files hold packets with the times of others.
    """

    def __init__(self) -> None:
        self._last = [-math.inf, -math.inf]
        self._faults = [0, 0]

    def __call__(self, shown: int | None, decoded: int | None) -> int | None:
        for kind, stamp in enumerate((shown, decoded)):
            if stamp is not None:
                self._faults[kind] += stamp <= self._last[kind]
                self._last[kind] = stamp
        usual = shown is not None and (decoded is None or self._faults[0] <= self._faults[1])
        return shown if usual else decoded


def period(stream: av.VideoStream) -> float:
    """Seconds from one frame to the next, by what the file states of its rate, where that can be true."""
    rates = (float(rate) for rate in (stream.guessed_rate, stream.average_rate) if rate)
    return 1 / next((rate for rate in rates if RATES[0] <= rate <= RATES[1]), DEFAULT_RATE)


def seconds_of(packets: Sequence[av.Packet], first: int | None) -> tuple[np.ndarray, bool]:
    """The second at which each of the packets of a video, in decoding order, is shown (NaN: never).

    An edit list marks packets that are decoded for others' sake and never shown.

    Args:
        first: the stamp of the first frame that can be decoded; what comes before it is never shown. None: all can.

    Returns:
        The seconds, and whether all stamps are believed.
    """
    base = float(packets[0].time_base)
    stamps = np.array([np.nan if packet.pts is None else packet.pts for packet in packets], float)
    hidden = np.array([packet.is_discard for packet in packets])
    if _believable(packets, stamps, hidden, base):
        hidden |= stamps < (-math.inf if first is None else first)
        return np.where(hidden, np.nan, stamps) * base, True
    order = _order(packets, stamps, base)
    order = order[~hidden[order]]
    if first is not None and (stamps[order] == first).any():
        order = order[np.argmax(stamps[order] == first) :]
    clock, seconds = Clock(period(packets[0].stream)), np.full(len(packets), np.nan)
    for place in order:
        seconds[place] = clock(None if np.isnan(stamps[place]) else stamps[place] * base)
    return seconds, False


def _believable(packets: Sequence[av.Packet], stamps: np.ndarray, hidden: np.ndarray, base: float) -> bool:
    """Whether a :class:`Clock` would believe them all, and they are decoded at ascending times."""
    gaps = np.diff(np.sort(stamps[~hidden])) * base
    decoded = np.array([packet.dts for packet in packets if packet.dts is not None], float)
    return bool(((gaps > 0) & (gaps <= MAX_GAP)).all() and (np.diff(decoded) >= 0).all())  # NaN: False


def _order(packets: Sequence[av.Packet], stamps: np.ndarray, base: float) -> np.ndarray:
    """The packets in the order in which they are shown, as far as that can be known.

    Where the times of decoding go back or leap, another piece begins; each piece is in the order of its stamps.
    """
    timed = any(packet.dts is not None for packet in packets)
    times = [packet.dts if timed else packet.pts for packet in packets]
    decoded = _filled(np.array([np.nan if time is None else time for time in times], float)) * base
    steps = np.diff(decoded, prepend=decoded[0])
    pieces = np.cumsum((steps > MAX_GAP) | (steps < (0 if timed else -1)))  # stamps may go back a little: B-frames
    shown = stamps * base
    near = np.abs(shown - decoded) <= MAX_GAP
    return np.lexsort((np.where(near, shown, decoded), pieces))


def _filled(values: np.ndarray) -> np.ndarray:
    """NaN replaced by the value before, or at the beginning by the first; zeros if there is none."""
    known = np.flatnonzero(~np.isnan(values))
    if not known.size:
        return np.zeros_like(values)
    places = np.searchsorted(known, np.arange(len(values)), side="right") - 1
    return values[known[np.maximum(0, places)]]
