"""Bytes of an image or a video to uint8 pixels, through Pillow and PyAV (FFmpeg)."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import av
import numpy as np
from av.stream import Disposition
from av.video.frame import VideoFrame
from PIL import Image

from scaleup.data.modes import upright_rgb
from scaleup.data.pictures import MAX_PIXELS, BadSample, Pictures, View, check_pixels, shrunk, whole

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EXTENSIONS", "MAX_PIXELS", "BadSample", "check", "decode_clip", "decode_clips", "decode_image"]

T = TypeVar("T")
Opened = Callable[[av.VideoStream], None]
EXTENSIONS = {"image": ("png", "jpg", "webp", "jpeg"), "video": ("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg")}


def decode_image(data: bytes, short: int | None = None) -> Tensor:
    """The first picture in ``data``, upright by its EXIF tag.

    Args:
        short: shrink so that the short side has this many pixels; smaller pictures stay as they are.

    Returns:
        uint8 (3, H, W), RGB.

    Raises:
        BadSample: it cannot be decoded, or has more than ``MAX_PIXELS`` pixels.
    """
    upright = upright_image(data)
    height, width = shrunk(upright.height, upright.width, short)
    pixels = np.array(upright.resize((width, height), reducing_gap=2.0))  # (H, W, 3)
    import torch  # takes seconds, which those who write or check files alone do not wait for

    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def upright_image(data: bytes) -> Image.Image:
    """The first picture in ``data`` as Pillow has it, RGB, upright by its EXIF tag; BadSample as above."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_pixels(*image.size)
            return upright_rgb(image)
    except BadSample:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise BadSample(reason("image", error)) from None


def decode_clip(data: bytes, frames: int, fps: float, start: float = 0.0, view: View | None = None) -> Tensor:
    """One clip of a video, uint8 (3, T, h, w); see :func:`decode_clips`."""
    return decode_clips(data, frames, fps, [start], view)[0]


def decode_clips(data: bytes, frames: int, fps: float, starts: Sequence[float], view: View | None = None) -> Tensor:
    """Clips of ``frames`` frames at ``fps`` from one video, which is decoded once for all of them.

    Frame k of a clip is what a player shows k / fps seconds after the clip begins: a slower video's frames are
    repeated, a faster one's skipped, by their timestamps; frame counts and durations in headers are not believed.
    A clip begins ``start`` (0 to 1) of the way through the slack, the time by which the video is longer than the
    clip: 1 ends with the last frame. A video shorter than the clip begins at its first frame and repeats its last.
    Frames without timestamps are taken to be evenly spaced. Only what these frames need is decoded.

    Args:
        view: which part of the picture as it is shown, and how large it becomes; by default all of it, as it is.

    Returns:
        uint8 (V, 3, T, h, w), RGB, upright by the display matrix and in square pixels, V = ``len(starts)``.

    Raises:
        BadSample: it cannot be decoded, has no video stream or no frame, or more than ``MAX_PIXELS`` a frame.
    """
    pictures = Pictures(view or whole())
    shown = shown_frames(data, frames, fps, starts, pictures.planes, pictures.opened)
    clips = np.empty((len(starts), 3, frames, *shown[0][0].shape), np.uint8)
    for number, planes in enumerate(shown):
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
    opened: Opened = lambda stream: None,
) -> list[T]:
    """What ``take`` makes of each frame of each clip, clip by clip; of a frame that is shown twice it is asked once.

    Args:
        opened: is called with the stream that the frames come from before the first of them is taken.
    """
    with _video(data) as (packets, times):
        opened(packets[0].stream)
        wanted = _wanted_times(times, frames, fps, starts)  # (V, T)
        seconds, places = np.unique(wanted, return_inverse=True)
        found = _sought(packets, times, seconds, take) or _met(packets, times, seconds, take)
    return [found[place] for place in places.ravel()]


@contextmanager
def _video(data: bytes) -> Iterator[tuple[list[av.Packet], np.ndarray]]:
    """The packets of the video stream in decoding order, and the second each is shown at (NaN: never)."""
    try:
        with av.open(io.BytesIO(data)) as container:
            yield _packets(container)
    except BadSample:
        raise
    except Exception as error:  # includes InvalidDataError, which is a ValueError
        raise BadSample(reason("video", error)) from None


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first stream of pictures that move; BadSample where there is sound alone, perhaps with a cover."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise BadSample("no video stream")


def _packets(container: av.container.InputContainer) -> tuple[list[av.Packet], np.ndarray]:
    stream = video_stream(container)
    stream.thread_type, stream.thread_count = "NONE", 1  # starting threads costs more than a small video
    stream.codec_context.options = {"err_detect": "explode"}  # damage is an error, not a grey patch
    check_pixels(stream.width, stream.height)
    packets = [packet for packet in container.demux(stream) if packet.size]
    if all(packet.is_discard for packet in packets):
        raise BadSample("no frames")
    if any(packet.pts is None for packet in packets):
        return packets, np.arange(len(packets)) / float(stream.guessed_rate or 25)
    # An edit list marks packets that are decoded for others' sake and never shown.
    stamps = [float("nan") if packet.is_discard else packet.pts for packet in packets]
    return packets, np.array(stamps, dtype=float) * float(packets[0].time_base)


def _wanted_times(times: np.ndarray, frames: int, fps: float, starts: Sequence[float]) -> np.ndarray:
    """When each frame of each clip is shown, in seconds, (V, T)."""
    first, last = np.nanmin(times), np.nanmax(times)
    slack = max(0.0, last - first - (frames - 1) / fps)
    return first + np.asarray(starts)[:, None] * slack + np.arange(frames) / fps


def _sought(
    packets: list[av.Packet], times: np.ndarray, wanted: np.ndarray, take: Callable[[VideoFrame], T]
) -> list[T] | None:
    """What ``take`` makes of the frame on screen at each second in ``wanted`` (ascending); no more is decoded than that
    needs.

    Decoding starts at the last key frame before, and frames that are neither shown nor referred to are skipped.
    None: that does not bring out every frame by its timestamp, as with references across a key frame, or damage.
    """
    if any(packet.pts is None for packet in packets):
        return None
    order = np.argsort(times)[: np.isfinite(times).sum()]  # NaN is last
    places = np.searchsorted(times[order], wanted + 1e-4, side="right") - 1
    shown = [packets[order[max(0, place)]].pts for place in places]
    needed, found = set(shown), dict[int, T]()
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe and times[i] <= wanted[0]]
    last = max(i for i, packet in enumerate(packets) if packet.pts in needed)
    context = packets[0].stream.codec_context
    skips = context.codec.name != "libdav1d"  # which heeds the first setting alone
    try:
        for packet in [*packets[keys[-1] if keys else 0 : last + 1], None]:
            if skips:
                context.skip_frame = "DEFAULT" if packet is None or packet.pts in needed else "NONREF"
            for frame in context.decode(packet):
                if frame.pts in needed and frame.pts not in found:
                    found[frame.pts] = take(frame)
        if len(found) == len(needed):
            return [found[stamp] for stamp in shown]
    except av.FFmpegError:
        pass
    context.skip_frame = "DEFAULT"
    context.flush_buffers()
    return None


def _frames(packets: list[av.Packet], times: np.ndarray) -> Iterator[tuple[float, VideoFrame]]:
    """Every decoded frame with the second it is shown at."""
    context, stamped = packets[0].stream.codec_context, all(packet.pts is not None for packet in packets)
    base, order = float(packets[0].time_base), 0  # frame.time is NaN for those that a flush brings out
    for packet in [*packets, None]:
        for frame in context.decode(packet):
            second = times[min(order, len(times) - 1)] if not stamped or frame.pts is None else frame.pts * base
            yield second, frame
            order += 1


def _met(packets: list[av.Packet], times: np.ndarray, wanted: np.ndarray, take: Callable[[VideoFrame], T]) -> list[T]:
    """As :func:`_sought`, by decoding from the beginning and going by what comes out."""
    shown: list[T] = []
    current, taken = None, None
    for second, frame in _frames(packets, times):
        while current is not None and len(shown) < len(wanted) and wanted[len(shown)] < second - 1e-4:
            taken = take(current) if taken is None else taken
            shown.append(taken)
        if len(shown) == len(wanted):
            return shown
        current, taken = frame, None
    if current is None:
        raise BadSample("no frames")
    return shown + [take(current)] * (len(wanted) - len(shown))


def reason(what: str, error: Exception) -> str:
    """Why something could not be read, in the words of the library that tried."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(r" <.* at 0x[0-9a-f]+>", "", text.splitlines()[0])  # Pillow names the object that it reads
    return f"not a readable {what}: {text.rstrip('.')}"


def every_frame(data: bytes, opened: Opened) -> Iterator[tuple[float, VideoFrame]]:
    """All frames of a video as decoded, with the second each is shown at; BadSample and ``opened`` as above."""
    with _video(data) as (packets, times):
        opened(packets[0].stream)
        none = True
        for second, frame in _frames(packets, times):
            yield second, frame
            none = False
        if none:
            raise BadSample("no frames")


def check(data: bytes, modality: str) -> None:
    """Decode all of it; BadSample if that fails anywhere."""
    if modality == "image":
        upright_image(data)
        return
    pictures = Pictures(whole(16))
    for number, (_, frame) in enumerate(every_frame(data, pictures.opened)):
        pictures.accept(frame) if number else pictures(frame)
