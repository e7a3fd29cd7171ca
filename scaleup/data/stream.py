"""Clips of a video of any length, or of a live stream, as soon as their frames arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np
import torch
from torch import Tensor

from scaleup.config.schema import Input
from scaleup.data.augment import covering, spatial_views
from scaleup.data.decode import failure_reason
from scaleup.data.pictures import BadSample, Cut, Pictures
from scaleup.data.playback import Noted, Opened, Playback, ignore, video_stream


def frames(
    source: str | BinaryIO, opened: Opened = ignore, noted: Noted = ignore
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Decoded frames, each with the second at which it is shown; the first is at 0. Only needed frames are read.

    Args:
        source: a path or an address that FFmpeg opens, or a binary stream, which is not rewound.
        opened: called with the video stream, before the first frame.
        noted: called at the end with sentences about what was unusual.

    Raises:
        BadSample: it cannot be decoded, has no video stream or no frame; at the end, if too much of it was damaged
            or is missing.
    """
    try:
        with av.open(source) as container:
            stream, first = video_stream(container), None
            opened(stream)
            for second, frame in Playback(stream, noted).frames(container.demux(stream)):
                first = second if first is None else first
                yield second - first, frame
    except (av.FFmpegError, OSError) as error:
        raise BadSample(failure_reason("video", error)) from None


def clips(source: str | BinaryIO, input: Input, hop: float, noted: Noted = ignore) -> Iterator[tuple[float, Tensor]]:
    """Centre crops of clips that begin every ``hop`` seconds: (second, uint8 (3, T, h, w)), each as soon as it is
    complete.

    Frame k of a clip is the frame on screen k / fps seconds after the clip begins. If frames remain after the last
    complete clip, one more clip ends with the last frame. A video shorter than a clip repeats its last frame.
    """
    step, window = max(1, round(hop * input.fps)), deque[np.ndarray](maxlen=input.frames)
    count, due = 0, input.frames  # frames on the grid of 1 / fps so far, and those of the next clip's end
    for pixels in _on_grid(source, input, noted):
        window.append(pixels)
        count += 1
        if count == due:
            yield (count - input.frames) / input.fps, _clip(window, input.frames)
            due += step
    if count < input.frames or due - step < count:
        yield max(0, count - input.frames) / input.fps, _clip(window, input.frames)


def _on_grid(source: str | BinaryIO, input: Input, noted: Noted) -> Iterator[np.ndarray]:
    """The frame on screen every 1 / fps seconds, (3, h, w)."""
    pictures = Pictures(lambda height, width: Cut((0, 0, height, width), covering(height, width, input.size, 1)))
    current, count, second = None, 0, 0.0
    for second, frame in frames(source, pictures.opened, noted):
        pixels = None
        while current is not None and count / input.fps < second - 1e-4:
            pixels = _centre(pictures(current), input) if pixels is None else pixels
            yield pixels
            count += 1
        current = frame
    assert current is not None
    if count / input.fps < second + 1e-4 or count < input.frames:  # a short video ends with its last frame
        yield _centre(pictures(current), input)


def _centre(pixels: np.ndarray, input: Input) -> np.ndarray:
    return spatial_views(torch.from_numpy(pixels), input.size, 1)[0].numpy()


def _clip(window: deque[np.ndarray], length: int) -> Tensor:
    """Frames (3, h, w), the last repeated -> (3, T, h, w)."""
    return torch.from_numpy(np.stack([*window, *[window[-1]] * (length - len(window))], axis=1))
