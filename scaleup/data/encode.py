"""Media re-encoded for shards: smaller, at another rate, in another image format. The same bytes every time."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from scaleup.data.decode import check, every_frame, upright_image
from scaleup.data.pictures import Cut, Pictures, shrunk_size
from scaleup.data.playback import Noted, ignore

PILLOW = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}  # endings, and Pillow's words for them
CLOCK = 90_000  # ticks a second of re-encoded videos
COLOURS = 6, 1  # BT.601 and limited range (ITU-T H.273), which is how FFmpeg makes YUV of RGB; players guess otherwise
# Made to be decoded in parts: codes and filters that are cheap to undo, and three of four frames that no other refers
# to, so that clips at half the rate leave out what they do not show. It takes half the time, for a tenth more bytes.
X264 = {"crf": "20", "preset": "veryfast", "tune": "fastdecode", "g": "64", "bf": "3"}
X264 |= {"x264-params": "b-adapt=0:b-pyramid=none"}


@dataclass(frozen=True)
class Encoding:
    """How media are re-encoded; with nothing set they are copied."""

    short: int | None = None  # shrink so that the short side has this many pixels
    fps: float | None = None  # of videos; slower ones stay as they are
    image: str | None = None  # jpg, png or webp
    quality: int = 90  # of JPEG and WebP
    again: bool = False  # re-encode even if nothing else is asked for

    @property
    def copies(self) -> bool:
        return not (self.short or self.fps or self.image or self.again)


def encoded(data: bytes, extension: str, modality: str, encoding: Encoding, noted: Noted = ignore) -> tuple[str, bytes]:
    """The ending and bytes of what goes into a shard; all of ``data`` is decoded in any case.

    ``noted`` is told what is odd about it.

    Raises:
        BadSample: it cannot be decoded.
    """
    if encoding.copies:
        check(data, modality, noted)
        return extension, data
    if modality == "video":
        return "mp4", _video(data, encoding, noted)
    ending = encoding.image or extension
    return ending, _image(data, ending, encoding)


def _image(data: bytes, ending: str, encoding: Encoding) -> bytes:
    buffer, upright = io.BytesIO(), upright_image(data)
    height, width = shrunk_size(upright.height, upright.width, encoding.short)
    smaller = upright.resize((width, height), Image.Resampling.BICUBIC)
    smaller.save(buffer, PILLOW[ending], quality=encoding.quality)
    return buffer.getvalue()


def _video(data: bytes, encoding: Encoding, noted: Noted) -> bytes:
    """H.264 in MP4, upright and without sound, with a key frame every two seconds at 30 frames a second at least."""
    buffer, pictures = io.BytesIO(), Pictures(lambda h, w: Cut((0, 0, h, w), even(*shrunk_size(h, w, encoding.short))))
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as file:
        stream: Any = file.add_stream("libx264", rate=30, options=X264)
        stream.pix_fmt, stream.thread_count, stream.codec_context.time_base = "yuv420p", 1, Fraction(1, CLOCK)
        stream.codec_context.colorspace, stream.codec_context.color_range = COLOURS
        for ticks, frame in _resample(every_frame(data, pictures.opened, noted), encoding.fps):
            pixels = np.ascontiguousarray(pictures(frame).transpose(1, 2, 0))  # (h, w, 3)
            picture = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", threads=1)
            if not stream.codec_context.is_open:
                stream.height, stream.width = pixels.shape[:2]
            picture.pts, picture.time_base = ticks, Fraction(1, CLOCK)
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def _resample(frames: Iterator[tuple[float, VideoFrame]], fps: float | None) -> Iterator[tuple[int, VideoFrame]]:
    """Frames with the tick each is shown at; with ``fps`` one at most in each of its periods, the last shown in it."""
    begin, before, rate = None, None, fps or CLOCK
    for second, frame in frames:
        begin = second if begin is None else begin
        period = math.ceil((second - begin) * rate - 1e-3)
        if before is not None and period > before[0]:
            yield round(before[0] * CLOCK / rate), before[1]
        if before is None or period >= before[0]:
            before = period, frame
    if before is not None:
        yield round(before[0] * CLOCK / rate), before[1]


def even(height: int, width: int) -> tuple[int, int]:
    """Rounded down to what half as many colours as pixels need, 2 at least."""
    return max(2, height // 2 * 2), max(2, width // 2 * 2)
