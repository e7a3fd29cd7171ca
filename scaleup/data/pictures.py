"""Decoded frames to pixels as shown: turned, cropped and scaled before they are converted, which is the cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from av import FFmpegError, VideoStream
from av.filter import Graph
from av.video.frame import VideoFrame
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from scaleup.data import display
from scaleup.data.display import ONE, ORIENTATIONS, Filters, Form, aspect_of, form_of

MAX_PIXELS = 2**26  # of one frame; an 8K frame has half as many
# What FFmpeg converts wrongly (float greys as if their range were limited), or dies of (with alpha, 32 bits each).
UNREADABLE = ("grayf16", "yaf16", "yaf32")

Box = tuple[int, int, int, int]  # top, left, height, width


class Cut(NamedTuple):
    """A part of a picture, and what becomes of it."""

    box: Box
    size: tuple[int, int]  # height, width in the result
    mirrored: bool = False


View = Callable[[int, int], Cut]  # of the height and width of a picture as it is shown


class BadSample(Exception):
    """A sample that cannot be read, and why, in a few words. It is named, counted and left out."""


def whole_view(short: int | None = None) -> View:
    """All of the picture, shrunk so that its short side has at most ``short`` pixels."""
    return lambda height, width: Cut((0, 0, height, width), shrunk_size(height, width, short))


def shrunk_size(height: int, width: int, short: int | None) -> tuple[int, int]:
    """(height, width) with a short side of at most ``short`` pixels."""
    scale = min(1.0, (short or MAX_PIXELS) / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Pictures:
    """Frames of one video to pixels, all through the same view, which is asked once."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._aspect: Callable[[], Fraction] = lambda: ONE
        self._form: Form | None = None
        self._graph: Graph | None = None

    def opened(self, stream: VideoStream) -> None:
        """The frames come from this stream, which knows what they do not tell: how wide a pixel is."""
        self._aspect = aspect_of(stream)

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (3, h, w), RGB, upright, in square pixels; alpha is dropped, more than 8 bits are rounded.

        Raises:
            BadSample: the frame is damaged, too large, not as large as the one before, or not convertible.
        """
        return np.stack(self.planes(frame))

    def planes(self, frame: VideoFrame) -> list[np.ndarray]:
        """The same as three arrays (h, w), which are not copied from where FFmpeg wrote them."""
        form = self.accept(frame)
        try:
            self._graph = self._graph or _graph(frame, self._filters(form))
            self._graph.vpush(frame)
            planes = self._graph.vpull().planes  # green, blue, red
        except FFmpegError:
            raise BadSample(_unreadable(form)) from None
        rows = [np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size) for plane in planes]
        return [rows[c][:, : planes[c].width] for c in (2, 0, 1)]

    def accept(self, frame: VideoFrame) -> Form:
        """The frame's form; BadSample where ``__call__`` would raise it, but for what FFmpeg cannot convert."""
        if frame.is_corrupt:
            raise BadSample("damaged frame")
        form = form_of(frame, self._aspect(), self._form)
        if form != self._form:
            self._change(form)
        return form

    def _change(self, to: Form) -> None:
        """Frames have another form from here on, which need not matter."""
        check_pixels(to.width, to.height)
        height, width = to.shown
        check_pixels(width, height)
        if to.pixel_format.startswith(UNREADABLE):
            raise BadSample(_unreadable(to))
        if self._form is None:
            self._cut = self._view(height, width)
        elif self._form.shown != to.shown:
            raise BadSample(f"its pictures change from {self._form.shown} to {to.shown} rows and columns")
        self._form, self._graph = to, None

    def _filters(self, form: Form) -> Filters:
        """What makes the cut of frames of this form."""
        (top, left, height, width), (h, w) = _stored(self._cut.box, form), self._cut.size
        crop = [("crop", f"{width}:{height}:{left}:{top}:exact=1")] if (height, width) != form.stored else []
        # Without accurate_rnd FFmpeg 8 leaves the last columns of some widths black where nothing is scaled.
        flags = "bilinear+accurate_rnd" if (height, width) == (h, w) else "bilinear"
        scale = ("scale", f"{w}:{h}:flags={flags}")
        mirror = [("hflip", "")] if self._cut.mirrored else []
        return [*ORIENTATIONS[form.matrix], *crop, scale, *display.filters(form), ("format", "gbrp"), *mirror]


def _stored(box: Box, form: Form) -> Box:
    """A box of the picture as it is shown, in pixels as they are stored, of which none is cut."""
    top, left, height, width = box
    down, right = (Fraction(*sides) for sides in zip(form.stored, form.shown, strict=True))
    y, x = math.floor(top * down), math.floor(left * right)
    return y, x, math.ceil((top + height) * down) - y, math.ceil((left + width) * right) - x


def _unreadable(form: Form) -> str:
    return (
        f"pixels of format {form.pixel_format} with colour matrix {form.colours[0]} (ITU-T H.273) cannot be converted"
    )


def _graph(frame: VideoFrame, filters: Filters) -> Graph:
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


WHITE_IS_ZERO = 0  # of TIFF's photometric interpretations


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image just opened as RGB, upright by its EXIF tag; BadSample for greys of which nothing says what is white."""
    upright = ImageOps.exif_transpose(image)
    if image.mode != "F" and not image.mode.startswith("I"):
        return upright.convert("RGB")
    white, values = _white(image), np.asarray(upright)
    if not 0 <= values.min() <= values.max() <= white:  # NaN is in no order
        raise BadSample(f"greys from {values.min():g} to {values.max():g}; from 0 to {white} is what can be shown")
    levels = np.rint(values * (255 / white)).astype(np.uint8)
    inverted = _tag(image, PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
    return Image.fromarray(255 - levels if inverted else levels).convert("RGB")


def _white(image: Image.Image) -> int:
    """The value of white."""
    if image.mode == "F":
        return 1
    if image.mode.startswith("I;16"):
        return 2**12 - 1 if _tag(image, BITSPERSAMPLE) == (12,) else 2**16 - 1
    if image.format == "PPM":  # which Pillow scales to 16 bits
        return 2**16 - 1
    raise BadSample("greys of 32 bits or with a sign, and nothing says which of them is white")


def _tag(image: Image.Image, number: int) -> object:
    return image.tag_v2.get(number) if isinstance(image, TiffImageFile) else None
