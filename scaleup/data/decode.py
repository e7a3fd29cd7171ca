"""Bytes of an image or a video to uint8 pixels, through Pillow and PyAV (FFmpeg)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 2**26  # of one frame; an 8K frame has half as many
EXTENSIONS = {"image": ("png", "jpg", "webp"), "video": ("mp4", "webm", "mkv", "mov", "avi")}


class BadSample(Exception):
    """A sample that cannot be read, and why, in a few words. It is named, counted and left out."""


def decode_image(data: bytes, short: int | None = None) -> Tensor:
    """The first picture in ``data``, upright by its EXIF tag.

    Args:
        short: shrink so that the short side has this many pixels; smaller pictures stay as they are.

    Returns:
        uint8 (3, H, W), RGB.

    Raises:
        BadSample: it cannot be decoded, or has more than ``MAX_PIXELS`` pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_pixels(*image.size)
            upright = ImageOps.exif_transpose(image).convert("RGB")
            pixels = np.array(upright.resize(_shrunk(*upright.size, short), reducing_gap=2.0))  # (H, W, 3)
    except BadSample:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise BadSample(_reason("image", error)) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def decode_clip(data: bytes, frames: int, fps: float, start: float = 0.0, short: int | None = None) -> Tensor:
    """One clip of a video, uint8 (3, T, H, W); see :func:`decode_clips`."""
    return decode_clips(data, frames, fps, [start], short)[0]


def decode_clips(data: bytes, frames: int, fps: float, starts: Sequence[float], short: int | None = None) -> Tensor:
    """Clips of ``frames`` frames at ``fps`` from one video, which is decoded once for all of them.

    Frame k of a clip is what a player shows k / fps seconds after the clip begins: a slower video's frames are
    repeated, a faster one's skipped, by their timestamps; frame counts and durations in headers are not believed.
    A clip begins ``start`` (0 to 1) of the way through the slack, the time by which the video is longer than the
    clip: 1 ends with the last frame. A video shorter than the clip begins at its first frame and repeats its last.
    Frames without timestamps are taken to be evenly spaced.

    Args:
        short: shrink so that the short side has this many pixels; smaller videos stay as they are.

    Returns:
        uint8 (V, 3, T, H, W), RGB, upright by the rotation flag, V = ``len(starts)``.

    Raises:
        BadSample: it cannot be decoded, has no video stream or no frame, or more than ``MAX_PIXELS`` a frame.
    """
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise BadSample("no video stream")
            packets, times = _packets(container)
            wanted = _wanted_times(times, frames, fps, starts)  # (V, T)
            ordered, places = np.unique(wanted, return_inverse=True)
            shown = _shown(_frames(packets, times, ordered[0]), ordered, short)
    except BadSample:
        raise
    except Exception as error:  # includes InvalidDataError, which is a ValueError
        raise BadSample(_reason("video", error)) from None
    clips = np.stack(shown)[places.reshape(wanted.shape)]  # (V, T, H, W, 3)
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).contiguous()


def _packets(container: av.container.InputContainer) -> tuple[list[av.Packet], np.ndarray]:
    """The packets of the video stream in decoding order, and the second each is shown at (NaN: never)."""
    stream = container.streams.video[0]
    stream.thread_type, stream.thread_count = "NONE", 1  # starting threads costs more than a small video
    stream.codec_context.options = {"err_detect": "explode"}  # damage is an error, not a grey patch
    _check_pixels(stream.width, stream.height)
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


def _frames(packets: list[av.Packet], times: np.ndarray, begin: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decoded frames with the second they are shown at, from the last key frame that is not after ``begin``."""
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe and times[i] <= begin]
    context = packets[0].stream.codec_context
    stamped = all(packet.pts is not None for packet in packets)
    base, order = float(packets[0].time_base), 0  # frame.time is NaN for those that a flush brings out
    for packet in [*packets[keys[-1] if stamped and keys else 0 :], None]:
        for frame in context.decode(packet):
            yield (frame.pts * base if stamped else times[min(order, len(times) - 1)]), frame
            order += 1


def _shown(frames: Iterator[tuple[float, av.VideoFrame]], wanted: np.ndarray, short: int | None) -> list[np.ndarray]:
    """For each second in ``wanted`` (ascending) the frame on screen then, uint8 (H, W, 3)."""
    converter = VideoReformatter()
    shown: list[np.ndarray] = []
    current, pixels = None, None
    for second, frame in frames:
        while current is not None and len(shown) < len(wanted) and wanted[len(shown)] < second - 1e-4:
            pixels = _pixels(current, converter, short) if pixels is None else pixels
            shown.append(pixels)
        if len(shown) == len(wanted):
            return shown
        current, pixels = frame, None
    if current is None:
        raise BadSample("no frames")
    return shown + [_pixels(current, converter, short)] * (len(wanted) - len(shown))


def _pixels(frame: av.VideoFrame, converter: VideoReformatter, short: int | None) -> np.ndarray:
    """uint8 (H, W, 3), upright. swscale shrinks and converts to RGB in one pass."""
    _check_pixels(frame.width, frame.height)
    if frame.is_corrupt:
        raise BadSample("damaged frame")
    width, height = _shrunk(frame.width, frame.height, short)
    pixels = converter.reformat(frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1).to_ndarray()
    return np.rot90(pixels, frame.rotation // 90) if frame.rotation else pixels


def _shrunk(width: int, height: int, short: int | None) -> tuple[int, int]:
    """(width, height) with a short side of at most ``short`` pixels."""
    scale = min(1.0, (short or MAX_PIXELS) / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadSample(f"{width} x {height} pixels; at most {MAX_PIXELS} are decoded")


def _reason(what: str, error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"not a readable {what}: {text.splitlines()[0].rstrip('.')}"


def check(data: bytes, modality: str) -> None:
    """Decode all of it; BadSample if that fails anywhere."""
    if modality == "image":
        decode_image(data)
    else:
        decode_clips(data, 2, 1e-9, [0.0], short=16)  # the second frame, decades later, is the last
