"""Decoded frames to pixels: turned upright, cropped and scaled before they are converted, which is the cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame

MAX_PIXELS = 2**26  # of one frame; an 8K frame has half as many
TURNS = ((), (("transpose", "cclock"),), (("hflip", ""), ("vflip", "")), (("transpose", "clock"),))  # FFmpeg's filters

Box = tuple[int, int, int, int]  # top, left, height, width


class Cut(NamedTuple):
    """A part of a picture, and what becomes of it."""

    box: Box
    size: tuple[int, int]  # height, width in the result
    mirrored: bool = False


View = Callable[[int, int], Cut]  # of an upright picture's height and width


class BadSample(Exception):
    """A sample that cannot be read, and why, in a few words. It is named, counted and left out."""


def whole(short: int | None = None) -> View:
    """All of the picture, shrunk so that its short side has at most ``short`` pixels."""
    return lambda height, width: Cut((0, 0, height, width), shrunk(height, width, short))


def shrunk(height: int, width: int, short: int | None) -> tuple[int, int]:
    """(height, width) with a short side of at most ``short`` pixels."""
    scale = min(1.0, (short or MAX_PIXELS) / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Pictures:
    """Frames of one video to pixels, all through the same view, which is asked once."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._upright: tuple[int, int] | None = None  # height, width
        self._form: tuple[object, ...] = ()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (3, h, w), RGB, upright by the rotation flag; alpha is dropped, more than 8 bits are rounded.

        Raises:
            BadSample: the frame is damaged, too large, or not as large as the one before.
        """
        return np.stack(self.planes(frame))

    def planes(self, frame: VideoFrame) -> list[np.ndarray]:
        """The same as three arrays (h, w), which are not copied from where FFmpeg wrote them."""
        self.accept(frame)
        form = (frame.width, frame.height, frame.format.name, frame.rotation)
        if form != self._form:
            self._graph, self._form = self._made(frame), form
        self._graph.vpush(frame)
        planes = self._graph.vpull().planes  # green, blue, red
        rows = [np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size) for plane in planes]
        return [rows[c][:, : planes[c].width] for c in (2, 0, 1)]

    def accept(self, frame: VideoFrame) -> None:
        """BadSample where ``__call__`` would raise it."""
        check_pixels(frame.width, frame.height)
        if frame.is_corrupt:
            raise BadSample("damaged frame")
        upright = (frame.width, frame.height) if _turns(frame) % 2 else (frame.height, frame.width)
        if self._upright is None:
            self._upright, self._cut = upright, self._view(*upright)
        if upright != self._upright:
            raise BadSample(f"its pictures change from {self._upright} to {upright} rows and columns")

    def _made(self, frame: VideoFrame) -> Graph:
        """The filters for frames such as this one."""
        (top, left, height, width), (h, w), mirrored = self._cut
        crop = [("crop", f"{width}:{height}:{left}:{top}:exact=1")] if (height, width) != self._upright else []
        # Without accurate_rnd FFmpeg 8 leaves the last columns of some widths black where nothing is scaled.
        flags = "bilinear+accurate_rnd" if (height, width) == (h, w) else "bilinear"
        scale = [("scale", f"{w}:{h}:flags={flags}"), ("format", "gbrp"), *([("hflip", "")] if mirrored else [])]
        return _graph(frame, [*TURNS[_turns(frame)], *crop, *scale])


def _turns(frame: VideoFrame) -> int:
    """Quarter turns counterclockwise that show the frame upright."""
    return round(frame.rotation / 90) % 4


def _graph(frame: VideoFrame, filters: Sequence[tuple[str, str]]) -> Graph:
    graph = Graph()
    graph.threads = 1  # processes are as many as there are cores already
    last = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base="1/1",
    )
    for name, options in filters:
        last.link_to(following := graph.add(name, options or None))
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadSample(f"{width} x {height} pixels; at most {MAX_PIXELS} are decoded")
