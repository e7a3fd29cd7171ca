"""A video stream as a player shows it: which one, when each of its frames is shown, what is damaged or missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.frame import VideoFrame

from scaleup.data.pictures import BadSample

MAX_DAMAGED = 0.02  # of the frames; a video with more is left out
MAX_MISSING = 0.1  # of the stated length, at the end; a video that lacks more is left out

Opened = Callable[[av.VideoStream], None]  # is called with the stream that frames come from, before the first
Noted = Callable[[str], None]  # is told what is odd about a sample that can be used, in a few words
MIN_GAP = 1e-4  # seconds from one frame to the next; clips tell none apart that are nearer
MAX_GAP = 660.0  # seconds that one frame may stay on screen; a GIF can ask for 655
RATES = 0.1, 300.0  # frames a second that a header may state; without such a rate it is taken to be DEFAULT_RATE
LOWEST_GUESS = 1.0  # frames a second; older FFmpeg guesses 3/4 where stamps are days apart
DEFAULT_RATE = 25.0


def ignore(_: object) -> None:
    """For those who do not ask."""


class Clock:
    """Stamps of frames, in the order in which they are shown, to the seconds at which they are shown.

    A frame comes after the one before it, by more than ``MIN_GAP`` and at most ``MAX_GAP``. A stamp that says so is
    believed; a frame without such a stamp comes one ``period`` after the one before it. Where the stamps go on from
    one that was not believed, they are believed again, from there: two pieces of a joined video follow one another.
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
            if MIN_GAP < stamp + offset - self._second <= MAX_GAP:
                self._second, self._offsets = stamp + offset, [offset]
                return True
        # The frame before was put a period after its own before, and that was too long.
        return stamp > self._stamp + MIN_GAP and any(
            0 <= self._second - stamp - o < self._period for o in self._offsets[:1]
        )


class Stamps:
    """One stamp for each decoded frame: its own or, where those go back more often, its packet's time of decoding.

    That is how FFmpeg's players choose: some files hold packets with the times of others.
    """

    def __init__(self) -> None:
        self._last = [-math.inf, -math.inf]
        self._faults = [0, 0]

    def __call__(self, pts: int | None, dts: int | None) -> int | None:
        for kind, stamp in enumerate((pts, dts)):
            if stamp is not None:
                self._faults[kind] += stamp <= self._last[kind]
                self._last[kind] = stamp
        usual = pts is not None and (dts is None or self._faults[0] <= self._faults[1])
        return pts if usual else dts


def period(stream: av.VideoStream) -> float:
    """Seconds from one frame to the next, by what the file states of its rate, where that can be true."""
    rates = (stream.guessed_rate, LOWEST_GUESS), (stream.average_rate, RATES[0])
    return 1 / next((float(rate) for rate, lowest in rates if rate and lowest <= rate <= RATES[1]), DEFAULT_RATE)


class Timeline:
    """When each packet of a stream is shown. They are in decoding order, as they come."""

    def __init__(self, stream: av.VideoStream, packets: Sequence[av.Packet]) -> None:
        base = float(stream.time_base or 0)
        self._stream = stream
        self._shown = np.array([packet.pts for packet in packets], float) * base  # seconds; NaN: not said
        self._decoded = np.array([packet.dts for packet in packets], float) * base
        self._hidden = np.array([packet.is_discard for packet in packets])  # by an edit list: for others' sake alone

    @property
    def opens(self) -> bool:
        """Whether none is shown before the first, as where that is a key frame."""
        return not (self._shown < self._shown[0]).any()

    def seconds(self, first: float) -> tuple[np.ndarray, bool]:
        """The second at which each is shown (NaN: never), and whether all stamps are believed.

        Args:
            first: the stamp in seconds of the first frame that can be decoded. What comes before it is never shown.
        """
        if self._believable():
            return np.where(self._hidden | (self._shown < first), np.nan, self._shown), True
        order = self._order()
        order = order[~self._hidden[order]]
        order = order[np.argmax(self._shown[order] == first) :]  # from the beginning if it is none of them
        clock, seconds = Clock(period(self._stream)), np.full(len(self._shown), np.nan)
        for place in order:
            seconds[place] = clock(None if np.isnan(self._shown[place]) else self._shown[place])
        return seconds, False

    def _believable(self) -> bool:
        """Whether a :class:`Clock` would believe them all, and they are decoded at ascending times."""
        gaps = np.diff(np.sort(self._shown[~self._hidden]))
        if not ((gaps > MIN_GAP) & (gaps <= MAX_GAP)).all():  # NaN: no
            return False
        return bool((np.diff(self._decoded[~np.isnan(self._decoded)]) >= 0).all())

    def _order(self) -> np.ndarray:
        """The packets in the order in which they are shown, as far as that can be known.

        Where the times of decoding go back or leap, another piece begins; each piece is in the order of its stamps.
        """
        unknown = bool(np.isnan(self._decoded).all())
        decoded = _fill(self._shown if unknown else self._decoded)
        steps = np.diff(decoded, prepend=decoded[0])
        back = -1 if unknown else 0  # seconds; stamps may go back a little: B-frames
        pieces = np.cumsum((steps > MAX_GAP) | (steps < back))
        near = np.abs(self._shown - decoded) <= MAX_GAP
        return np.lexsort((np.where(near, self._shown, decoded), pieces))


def _fill(values: np.ndarray) -> np.ndarray:
    """NaN replaced by the value before, or at the beginning by the first; zeros if there is none."""
    places = np.flatnonzero(~np.isnan(values))
    if not places.size:
        return np.zeros_like(values)
    before = np.searchsorted(places, np.arange(len(values)), side="right") - 1
    return values[places[np.maximum(0, before)]]


class Extent:
    """From where to where the packets of a stream go."""

    def __init__(self, stream: av.VideoStream, packets: Iterable[av.Packet] = ()) -> None:
        self._stream, self._base, self._period = stream, float(stream.time_base or 0), period(stream)
        self._count, self._begin, self._end = 0, 0.0, -math.inf
        self._unstamped = 0  # packets; each lasts a period
        for packet in packets:
            self.add(packet)

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


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream of moving pictures that a player shows: the default one; of several, the largest.

    Raises:
        BadSample: there is sound alone, perhaps with a cover; or nothing that can be decoded.
    """
    moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not moving:
        raise BadSample("no video stream")
    moving = [stream for stream in moving if stream.codec_context is not None]
    if not moving:
        raise BadSample("FFmpeg has no decoder for its video stream")
    return max(moving, key=lambda s: (s.frames != 1, bool(s.disposition & Disposition.default), s.width * s.height))


class Playback:
    """The frames of one stream, from the first that can be decoded.

    A frame is damaged where the decoder marks it or refuses its packet. It is not shown: the one before stays.
    ``noted`` is told at the end what was odd.
    """

    def __init__(self, stream: av.VideoStream, noted: Noted = ignore) -> None:
        self._stream, self._noted = stream, noted
        self._stamps, self._clock, self._extent = Stamps(), Clock(period(stream)), Extent(stream)
        self._whole = self._damaged = 0  # frames
        self._unopened: list[int] = []  # stamps of packets before the first frame

    def frames(self, packets: Iterable[av.Packet]) -> Iterator[tuple[float, VideoFrame]]:
        """Every whole frame with the second at which it is shown.

        Raises:
            BadSample: at the end, if there was none, too many were damaged, or too much is missing.
        """
        base = float(self._stream.time_base or 0)  # frame.time is NaN for those that a flush brings out
        for packet in packets:
            if packet.size:
                self._extent.add(packet)
                yield from self._decoded(packet, base)
        yield from self._decoded(None, base)
        self._conclude()

    def _decoded(self, packet: av.Packet | None, base: float) -> Iterator[tuple[float, VideoFrame]]:
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.FFmpegError:
            self._damaged += bool(self._whole)  # before the first frame there may be nothing that could be decoded
            frames = []
        if not self._whole and packet is not None and packet.pts is not None:
            self._unopened.append(packet.pts)
        for frame in frames:
            stamp = self._stamps(frame.pts, frame.dts)
            second = self._clock(None if stamp is None else stamp * base)
            if frame.is_corrupt:
                self._damaged += 1
                continue
            if not self._whole and frame.pts is not None:
                self._unopened = [stamp for stamp in self._unopened if stamp < frame.pts]
            self._whole += 1
            yield second, frame

    def refuse_damage(self) -> None:
        """BadSample where too many of the frames so far were damaged, or all."""
        count = self._whole + self._damaged
        if not self._whole:
            raise BadSample(f"all {count} frames are damaged" if count else "no frames")
        if self._damaged > MAX_DAMAGED * count:
            raise BadSample(f"{self._damaged} of {count} frames are damaged")

    def _conclude(self) -> None:
        self.refuse_damage()
        count = self._whole + self._damaged
        if self._clock.doubted:
            times = f"the times of {self._clock.doubted} of {count} frames"
            self._noted(f"{times} cannot be true; they are set by its rate")
        else:
            refuse_missing(self._extent, self._noted)
        if self._damaged:
            self._noted(f"{self._damaged} of {count} frames are damaged, and are not shown")
        if self._unopened:
            self._noted(f"its first {len(self._unopened)} frames cannot be decoded: no key frame is before them")


def refuse_missing(extent: Extent, noted: Noted = ignore) -> None:
    """BadSample where too much of a video is missing."""
    share, sentence = extent.missing()
    if share > MAX_MISSING:
        raise BadSample(sentence)
    if share:
        noted(sentence)
