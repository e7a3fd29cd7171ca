"""A video stream as a player shows it: which stream, the time of each frame, and damaged or missing frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.frame import VideoFrame

from scaleup.data.pictures import BadSample

MAX_DAMAGED = 0.02  # share of damaged frames; a video with more is left out
MAX_MISSING = 0.1  # missing share of the length in the header; a video that lacks more is left out

Opened = Callable[[av.VideoStream], None]  # called with the stream of the frames, before the first frame
Noted = Callable[[str], None]  # called with a sentence about a sample that is unusual but usable
MIN_GAP = 1e-4  # seconds from one frame to the next; a smaller gap counts as none
MAX_GAP = 660.0  # seconds that one frame may stay on screen; a GIF can ask for 655
RATES = 0.1, 300.0  # plausible frames per second of a header; for other values DEFAULT_RATE is used
LOWEST_GUESS = 1.0  # frames per second; older FFmpeg guesses 3/4 where timestamps are days apart
DEFAULT_RATE = 25.0


def ignore(_: object) -> None:
    """Do nothing: the default of ``opened`` and ``noted``."""


class Clock:
    """Turns timestamps of frames, in the order in which frames are shown, into the seconds at which they are shown.

    A timestamp is plausible if it is more than ``MIN_GAP`` and at most ``MAX_GAP`` after the one before; then it is
    used. Otherwise the frame comes one ``period`` after the frame before it. If later timestamps continue from an
    implausible
    one, they are used again, shifted: so the pieces of a joined video follow one another.
    """

    def __init__(self, period: float) -> None:
        self.doubted = 0  # number of implausible timestamps
        self._period = period
        self._second = self._stamp = -math.inf  # of the frame before
        self._offsets: list[float] = []  # from timestamps to seconds: the present one, and that of the frame before

    def __call__(self, stamp: float | None) -> float:
        """The second at which the next frame is shown. ``stamp`` is its timestamp in seconds."""
        if stamp is None:
            self._second = 0.0 if self._second == -math.inf else self._second + self._period
            return self._second
        if self._second == -math.inf:
            self._second, self._offsets = stamp, [0.0]
        elif not self._believed(stamp):
            self.doubted += bool(self._offsets)  # the very first timestamp may have any value
            self._second += self._period
            self._offsets = [*self._offsets[:1], self._second - stamp]
        self._stamp = stamp
        return self._second

    def _believed(self, stamp: float) -> bool:
        for offset in self._offsets:
            if MIN_GAP < stamp + offset - self._second <= MAX_GAP:
                self._second, self._offsets = stamp + offset, [offset]
                return True
        # The frame before was placed one period after its predecessor, and this was too long.
        return stamp > self._stamp + MIN_GAP and any(
            0 <= self._second - stamp - o < self._period for o in self._offsets[:1]
        )


class Stamps:
    """The timestamp of each decoded frame: its presentation time, or its packet's decoding time if presentation times
    go back more often. FFmpeg's players do the same, because in some files packets have the times of other packets.
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
    """Seconds from one frame to the next, by the frame rate in the file if it is plausible."""
    rates = (stream.guessed_rate, LOWEST_GUESS), (stream.average_rate, RATES[0])
    return 1 / next((float(rate) for rate, lowest in rates if rate and lowest <= rate <= RATES[1]), DEFAULT_RATE)


class Timeline:
    """The times at which the packets of a stream are shown. Packets are in decoding order."""

    def __init__(self, stream: av.VideoStream, packets: Sequence[av.Packet]) -> None:
        base = float(stream.time_base or 0)
        self._stream = stream
        self._shown = np.array([packet.pts for packet in packets], float) * base  # seconds; NaN: unknown
        self._decoded = np.array([packet.dts for packet in packets], float) * base
        self._hidden = np.array([packet.is_discard for packet in packets])  # by an edit list: decoded, but not shown

    @property
    def opens(self) -> bool:
        """Whether the first packet is shown first, as a key frame is."""
        return not (self._shown < self._shown[0]).any()

    def seconds(self, first: float) -> tuple[np.ndarray, bool]:
        """The second at which each packet is shown (NaN: never), and whether all timestamps are plausible.

        Args:
            first: the timestamp in seconds of the first frame that can be decoded. Frames before it are never shown.
        """
        if self._believable():
            return np.where(self._hidden | (self._shown < first), np.nan, self._shown), True
        order = self._order()
        order = order[~self._hidden[order]]
        order = order[np.argmax(self._shown[order] == first) :]  # from the beginning if ``first`` is not among them
        clock, seconds = Clock(period(self._stream)), np.full(len(self._shown), np.nan)
        for place in order:
            seconds[place] = clock(None if np.isnan(self._shown[place]) else self._shown[place])
        return seconds, False

    def _believable(self) -> bool:
        """Whether all timestamps are plausible for :class:`Clock`, and decoding times ascend."""
        gaps = np.diff(np.sort(self._shown[~self._hidden]))
        if not ((gaps > MIN_GAP) & (gaps <= MAX_GAP)).all():  # NaN: no
            return False
        return bool((np.diff(self._decoded[~np.isnan(self._decoded)]) >= 0).all())

    def _order(self) -> np.ndarray:
        """The packets in the order in which they are shown, as far as it can be known.

        If decoding times go back or leap, a new piece begins. Each piece is sorted by its timestamps.
        """
        unknown = bool(np.isnan(self._decoded).all())
        decoded = _fill(self._shown if unknown else self._decoded)
        steps = np.diff(decoded, prepend=decoded[0])
        back = -1 if unknown else 0  # seconds; B-frames make timestamps go back a little
        pieces = np.cumsum((steps > MAX_GAP) | (steps < back))
        near = np.abs(self._shown - decoded) <= MAX_GAP
        return np.lexsort((np.where(near, self._shown, decoded), pieces))


def _fill(values: np.ndarray) -> np.ndarray:
    """``values`` with NaN replaced by the value before it, or at the beginning by the first value; zeros if all are
    NaN."""
    places = np.flatnonzero(~np.isnan(values))
    if not places.size:
        return np.zeros_like(values)
    before = np.searchsorted(places, np.arange(len(values)), side="right") - 1
    return values[places[np.maximum(0, before)]]


class Extent:
    """The time from the first to the last packet of a stream."""

    def __init__(self, stream: av.VideoStream, packets: Iterable[av.Packet] = ()) -> None:
        self._stream, self._base, self._period = stream, float(stream.time_base or 0), period(stream)
        self._count, self._begin, self._end = 0, 0.0, -math.inf
        self._unstamped = 0  # packets without a timestamp; each lasts a period
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
        """The share of the header's length that is missing at the end, and a sentence about it.

        The header is ignored if the file has as many packets as it says, or if its length is not plausible.
        """
        stated, length = _stated(self._stream), self._end - self._begin + self._unstamped * self._period
        if not stated or self._count == self._stream.frames or stated > self._count * MAX_GAP:
            return 0.0, ""
        if not -math.inf < length < stated - 2 * self._period:
            return 0.0, ""
        return 1 - length / stated, f"ends early: it has {length:.1f} of {stated:.1f} seconds"


def _stated(stream: av.VideoStream) -> float | None:
    """The length in seconds by the header of this stream, or by the file's header if there is no other stream."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    container: Any = stream.container
    alone = len(container.streams) == 1 and container.duration
    return container.duration / av.time_base if alone else None


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream that a player shows: the default one; of several, the largest.

    Raises:
        BadSample: there is only sound, perhaps with a cover image; or no stream that can be decoded.
    """
    moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not moving:
        raise BadSample("no video stream")
    moving = [stream for stream in moving if stream.codec_context is not None]
    if not moving:
        raise BadSample("FFmpeg has no decoder for its video stream")
    return max(moving, key=lambda s: (s.frames != 1, bool(s.disposition & Disposition.default), s.width * s.height))


class Playback:
    """The frames of one stream, from the first one that can be decoded.

    A frame is damaged if the decoder marks it or refuses its packet. The frame before is shown instead. At the end
    ``noted`` is called with sentences about what was unusual.
    """

    def __init__(self, stream: av.VideoStream, noted: Noted = ignore) -> None:
        self._stream, self._noted = stream, noted
        self._stamps, self._clock, self._extent = Stamps(), Clock(period(stream)), Extent(stream)
        self._whole = self._damaged = 0  # frames
        self._unopened: list[int] = []  # stamps of packets before the first frame

    def frames(self, packets: Iterable[av.Packet]) -> Iterator[tuple[float, VideoFrame]]:
        """Every undamaged frame with the second at which it is shown.

        Raises:
            BadSample: at the end, if there was none, too many were damaged, or too much is missing.
        """
        base = float(self._stream.time_base or 0)  # frame.time is NaN for frames that come out at a flush
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
            self._damaged += bool(self._whole)  # packets before the first frame do not count
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
        """BadSample if too many of the frames so far are damaged, or if there are none."""
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
            self._noted(f"{times} are not plausible; the frame rate is used instead")
        else:
            refuse_missing(self._extent, self._noted)
        if self._damaged:
            self._noted(f"{self._damaged} of {count} frames are damaged and not shown")
        if self._unopened:
            self._noted(f"its first {len(self._unopened)} frames cannot be decoded: no key frame comes before them")


def refuse_missing(extent: Extent, noted: Noted = ignore) -> None:
    """BadSample if too much of a video is missing."""
    share, sentence = extent.missing()
    if share > MAX_MISSING:
        raise BadSample(sentence)
    if share:
        noted(sentence)
