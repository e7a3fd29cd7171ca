"""Decodes images (Pillow) and videos (PyAV, FFmpeg) to uint8 pixels."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from scaleup.data.pictures import (
    MAX_PIXELS,
    BadSample,
    Pictures,
    View,
    check_pixels,
    shrunk_size,
    upright_rgb,
    whole_view,
)
from scaleup.data.playback import Extent, Noted, Opened, Playback, Timeline, ignore, refuse_missing, video_stream

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EXTENSIONS", "MAX_PIXELS", "BadSample", "check", "decode_clip", "decode_clips", "decode_image"]

T = TypeVar("T")
EXTENSIONS = {
    "image": ("png", "jpg", "webp", "jpeg"),
    "video": ("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "gif"),
}


def decode_image(data: bytes, short: int | None = None) -> Tensor:
    """The first picture in ``data``, upright by its EXIF tag.

    Args:
        short: shrink so that the short side has this many pixels; smaller pictures are not changed.

    Returns:
        uint8 (3, H, W), RGB.

    Raises:
        BadSample: it cannot be decoded, or has more than ``MAX_PIXELS`` pixels.
    """
    upright = upright_image(data)
    height, width = shrunk_size(upright.height, upright.width, short)
    pixels = np.array(upright.resize((width, height), reducing_gap=2.0))  # (H, W, 3)
    import torch  # takes seconds, and is not needed to write or check files

    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def upright_image(data: bytes) -> Image.Image:
    """As :func:`decode_image`, but a Pillow image in RGB."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_pixels(*image.size)
            return upright_rgb(image)
    except BadSample:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise BadSample(failure_reason("image", error)) from None


def decode_clip(data: bytes, frames: int, fps: float, start: float = 0.0, view: View | None = None) -> Tensor:
    """One clip of a video, uint8 (3, T, h, w); see :func:`decode_clips`."""
    return decode_clips(data, frames, fps, [start], view)[0]


def decode_clips(data: bytes, frames: int, fps: float, starts: Sequence[float], view: View | None = None) -> Tensor:
    """Clips of ``frames`` frames at ``fps`` from one video, which is decoded once for all of them.

    Frame k of a clip is the frame that a player shows k / fps seconds after the clip begins. So frames of a slower
    video are repeated, and frames of a faster one skipped. Timestamps are used if they are plausible (see ``Clock``).
    The slack is the time by which the video is longer than the clip. A clip begins at the share ``start`` (0 to 1) of
    the slack; with 1 it ends with the last frame. If the video is shorter than the clip, the clip begins at the first
    frame and repeats the last one. The video begins with the first frame that can be decoded. Instead of a damaged
    frame, the frame before it is shown. Only frames that are needed are decoded.

    Args:
        starts: the ``start`` of each clip.
        view: the part of the picture to take, and its new size; by default the whole picture, in its size.

    Returns:
        uint8 (V, 3, T, h, w), RGB, upright by the display matrix and in square pixels, V = ``len(starts)``.

    Raises:
        BadSample: it cannot be decoded, has no video stream, no frame, or a frame of more than ``MAX_PIXELS``; too
            much of it is damaged, or missing at its end.
    """
    pictures = Pictures(view or whole_view())
    pixels = shown_frames(data, frames, fps, starts, pictures.planes, pictures.opened)
    clips = np.empty((len(starts), 3, frames, *pixels[0][0].shape), np.uint8)
    for number, planes in enumerate(pixels):
        for colour, plane in enumerate(planes):
            clips[number // frames, colour, number % frames] = plane
    import torch  # as above

    return torch.from_numpy(clips)


def shown_frames(
    data: bytes,
    frames: int,
    fps: float,
    starts: Sequence[float],
    take: Callable[[VideoFrame], T],
    opened: Opened = ignore,
) -> list[T]:
    """``take(frame)`` for each frame of each clip, in order. For a repeated frame ``take`` is called once.

    Args:
        opened: called with the video stream before the first frame is taken.
    """
    with _video(data, strict=True) as (stream, packets):
        opened(stream)
        times, believed = _times(stream, packets)
        seconds, places = _seconds(times, frames, fps, starts)
        results = _seek(packets, times, seconds, take) if believed else None
    if results is None:
        with _video(data) as (stream, packets):
            opened(stream)
            times, _ = Timeline(stream, packets).seconds(_first_stamp(stream, packets))  # the first may be damaged
            seconds, places = _seconds(times, frames, fps, starts)
            results = _play(stream, packets, seconds, take)
    return [results[place] for place in places]


@contextmanager
def _video(data: bytes, strict: bool = False) -> Iterator[tuple[av.VideoStream, list[av.Packet]]]:
    """The video stream and its packets in decoding order. ``strict``: the decoder also refuses errors that it could
    mend."""
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = video_stream(container)
            stream.thread_type, stream.thread_count = "NONE", 1  # starting threads costs more than a small video
            stream.codec_context.options = {"err_detect": "explode"} if strict else {}
            check_pixels(stream.width, stream.height)
            packets = [packet for packet in container.demux(stream) if packet.size]
            if all(packet.is_discard for packet in packets):
                raise BadSample("no frames")
            yield stream, packets
    except BadSample:
        raise
    except Exception as error:  # includes InvalidDataError, which is a ValueError
        raise BadSample(failure_reason("video", error)) from None


def _times(stream: av.VideoStream, packets: list[av.Packet]) -> tuple[np.ndarray, bool]:
    """The second at which each packet is shown (NaN: never), and whether all timestamps are plausible."""
    timeline = Timeline(stream, packets)
    opens = packets[0].is_keyframe and timeline.opens
    times, believed = timeline.seconds(-math.inf if opens else _first_stamp(stream, packets))
    if believed and len(packets) != stream.frames:
        refuse_missing(Extent(stream, packets))
    return times, believed


def _first_stamp(stream: av.VideoStream, packets: list[av.Packet]) -> float:
    """The timestamp in seconds of the first frame that can be decoded; minus infinity if it has none."""
    context = stream.codec_context
    for packet in [*packets, None]:
        try:
            frame = next(iter(context.decode(packet)), None)
        except av.FFmpegError:
            continue
        if frame is not None:
            context.flush_buffers()
            return -math.inf if frame.pts is None else frame.pts * float(stream.time_base or 0)
    raise BadSample("no frames")


def _seconds(times: np.ndarray, frames: int, fps: float, starts: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The sorted seconds at which frames are needed, each once; and for each frame of each clip, its index in them."""
    first, last = np.nanmin(times), np.nanmax(times)
    slack = max(0.0, last - first - (frames - 1) / fps)
    clips = first + np.asarray(starts)[:, None] * slack + np.arange(frames) / fps  # (V, T)
    seconds, places = np.unique(clips, return_inverse=True)
    return seconds, places.ravel()


def _seek(
    packets: list[av.Packet], times: np.ndarray, seconds: np.ndarray, take: Callable[[VideoFrame], T]
) -> list[T] | None:
    """``take(frame)`` for the frame that is shown at each of ``seconds``, decoding as little as possible.

    Decoding starts at the last key frame before. Frames that are neither shown nor referred to are skipped. The result
    is None if some frame does not come out with its timestamp, or in another order. This happens with references across
    a key frame, packed B-frames, or damage.
    """
    order = np.argsort(times)[: np.isfinite(times).sum()]  # NaN is last
    places = np.searchsorted(times[order], seconds + 1e-4, side="right") - 1
    stamps = [packets[order[max(0, place)]].pts for place in places]
    needed, results, before = set(stamps), dict[int, T](), -math.inf
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe and times[i] <= seconds[0]]
    last = max(i for i, packet in enumerate(packets) if packet.pts in needed)
    context = packets[0].stream.codec_context
    skips = context.codec.name != "libdav1d"  # libdav1d ignores changes of skip_frame
    try:
        for packet in [*packets[keys[-1] if keys else 0 : last + 1], None]:
            if skips:
                context.skip_frame = "DEFAULT" if packet is None or packet.pts in needed else "NONREF"
            for frame in context.decode(packet):
                if frame.pts is None or frame.pts <= before:
                    return None
                before = frame.pts
                if before in needed and not frame.is_corrupt:
                    results[before] = take(frame)
    except av.FFmpegError:
        return None
    return [results[stamp] for stamp in stamps] if len(results) == len(needed) else None


def _play(
    stream: av.VideoStream, packets: list[av.Packet], seconds: np.ndarray, take: Callable[[VideoFrame], T]
) -> list[T]:
    """As :func:`_seek`, but every frame is decoded, from the beginning."""
    results: list[T] = []
    current, result, playback = None, None, Playback(stream)
    for second, frame in playback.frames(packets):
        while current is not None and len(results) < len(seconds) and seconds[len(results)] < second - 1e-4:
            result = take(current) if result is None else result
            results.append(result)
        if len(results) == len(seconds):
            playback.refuse_damage()
            return results
        current, result = frame, None
    assert current is not None  # a video without frames is refused before
    return results + [take(current)] * (len(seconds) - len(results))


def failure_reason(modality: str, error: Exception) -> str:
    """Why a file could not be read, in the words of the library."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(r" <.* at 0x[0-9a-f]+>", "", text.splitlines()[0])  # Pillow prints the file object
    return f"not a readable {modality}: {text.rstrip('.')}"


def every_frame(data: bytes, opened: Opened, noted: Noted = ignore) -> Iterator[tuple[float, VideoFrame]]:
    """All undamaged frames of a video, each with the second at which it is shown.

    Raises:
        BadSample: as :func:`decode_clips`; it may be raised at the end.
    """
    with _video(data) as (stream, packets):
        opened(stream)
        yield from Playback(stream, noted).frames(packets)


def check(data: bytes, modality: str, noted: Noted = ignore) -> None:
    """Decode a whole file; BadSample if it cannot be used. If it is unusual but usable, ``noted`` is called with a
    sentence."""
    if modality == "image":
        upright_image(data)
        return
    pictures = Pictures(whole_view(16))
    for number, (_, frame) in enumerate(every_frame(data, pictures.opened, noted)):
        pictures.accept(frame) if number else pictures(frame)
