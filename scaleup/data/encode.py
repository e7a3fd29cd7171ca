"""Re-encodes media for shards: smaller, at another frame rate, in another image format. The bytes are reproducible."""

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

from scaleup.common.processes import cpu_facts
from scaleup.data.decode import check, every_frame, upright_image
from scaleup.data.pictures import Cut, Pictures, shrunk_size
from scaleup.data.playback import Noted, ignore

PILLOW = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}  # file extension -> Pillow's format
CLOCK = 90_000  # ticks a second of re-encoded videos
COLOURS = 6, 1  # BT.601, limited range (ITU-T H.273), as FFmpeg converts; else players guess
# Options for fast decoding of clips: cheap entropy coding and filters, and no other frame refers to three of four
# frames, so clips at half the frame rate need not decode them. Decoding takes half the time; files are a tenth larger.
X264 = {"crf": "20", "preset": "veryfast", "tune": "fastdecode", "g": "64", "bf": "3"}
# With AVX-512, x264's search ahead gives other bytes from run to run; with AVX2 it does not.
STEADY = "asm=avx2" if "avx512" in cpu_facts() else ""
X264 |= {"x264-params": ":".join(filter(None, ["b-adapt=0", "b-pyramid=none", STEADY]))}


@dataclass(frozen=True)
class Encoding:
    """How media are re-encoded. If nothing is set, they are copied."""

    short: int | None = None  # shrink so that the short side has this many pixels
    fps: float | None = None  # highest frame rate of videos
    image: str | None = None  # format of images: jpg, png or webp
    quality: int = 90  # of JPEG and WebP
    again: bool = False  # re-encode even if nothing else is set

    @property
    def copies(self) -> bool:
        return not (self.short or self.fps or self.image or self.again)


def encoded(data: bytes, extension: str, modality: str, encoding: Encoding, noted: Noted = ignore) -> tuple[str, bytes]:
    """The extension and bytes of a file as it goes into a shard. The whole file is decoded, also if it is only copied.

    Args:
        noted: called with a sentence if the file is unusual but usable.

    Raises:
        BadSample: the file cannot be decoded.
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
    """Frames with the tick at which each is shown. With ``fps``, only the last frame of each period of 1 / fps
    seconds."""
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
    """Height and width rounded down to even numbers, at least 2. (YUV 4:2:0 needs even sides.)"""
    return max(2, height // 2 * 2), max(2, width // 2 * 2)
