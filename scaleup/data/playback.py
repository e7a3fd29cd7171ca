"""A video stream as a player shows it: which one, its frames at their seconds, and an account of what is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import av
from av.stream import Disposition
from av.video.frame import VideoFrame

from scaleup.data.pictures import BadSample
from scaleup.data.timeline import Clock, Extent, Stamps, period

MAX_DAMAGED = 0.02  # of the frames; a video with more is left out
MAX_MISSING = 0.1  # of the stated length, at the end; a video that lacks more is left out

Opened = Callable[[av.VideoStream], None]  # is called with the stream that frames come from, before the first
Noted = Callable[[str], None]  # is told what is odd about a sample that can be used, in a few words


def unopened(stream: av.VideoStream) -> None:
    """For those who do not ask."""


def unnoted(note: str) -> None:
    """For those who do not ask."""


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

    def __init__(self, stream: av.VideoStream, noted: Noted = unnoted) -> None:
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


def refuse_missing(extent: Extent, noted: Noted = unnoted) -> None:
    """BadSample where too much of a video is missing."""
    share, sentence = extent.missing()
    if share > MAX_MISSING:
        raise BadSample(sentence)
    if share:
        noted(sentence)
