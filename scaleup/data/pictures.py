"""Converts decoded frames to RGB as a player shows them. Frames are rotated, cropped and scaled before the colour
conversion, which takes most of the time.

The form of a frame is its rotation, pixel aspect and colours. FFmpeg's own filter for HDR colours takes seconds to
start. The filter here gives the same values up to half of white, and compresses brighter ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from av import FFmpegError, VideoStream
from av.filter import Graph
from av.video.frame import VideoFrame
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

Filters = Sequence[tuple[str, str]]  # (name, options) of FFmpeg's filters
# Four numbers of a display matrix, (a b; c d). It takes a pixel to (a x + c y, b x + d y), y downwards.
Matrix = tuple[int, int, int, int]

UPRIGHT: Matrix = (1, 0, 0, 1)
ORIENTATIONS: dict[Matrix, Filters] = {
    UPRIGHT: (),
    (0, 1, -1, 0): (("transpose", "clock"),),
    (-1, 0, 0, -1): (("hflip", ""), ("vflip", "")),
    (0, -1, 1, 0): (("transpose", "cclock"),),
    (-1, 0, 0, 1): (("hflip", ""),),
    (1, 0, 0, -1): (("vflip", ""),),
    (0, 1, 1, 0): (("transpose", "cclock_flip"),),
    (0, -1, -1, 0): (("transpose", "clock_flip"),),
}
ONE = Fraction(1)
WIDEST = 10  # largest ratio of a pixel's sides; no camera or disc has pixels that are less square
SQUARE = Fraction(1, 100)  # an aspect this close to 1 is a rounding error


class Form(NamedTuple):
    """Everything but the pixels that the conversion of a frame depends on."""

    width: int  # as stored
    height: int
    pixel_format: str
    matrix: Matrix  # a key of ORIENTATIONS
    aspect: Fraction  # width of a pixel over its height, as stored
    colours: tuple[int, int, int, int]  # matrix, range, transfer and primaries, by their numbers in ITU-T H.273

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width of the upright picture in stored pixels."""
        return (self.height, self.width) if self.matrix[0] else (self.width, self.height)

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width of the upright picture in square pixels: one side is stretched, none is shrunk."""
        height, width = self.stored
        aspect = self.aspect if self.matrix[0] else 1 / self.aspect
        return round(height * max(ONE, 1 / aspect)), round(width * max(ONE, aspect))


def form_of(frame: VideoFrame, aspect: Fraction, before: Form | None) -> Form:
    """The form of a frame that comes after one of form ``before``."""
    matrix = _orientation(frame)
    if matrix is None:  # a codec gives it for a key frame; it holds until the next one
        matrix = UPRIGHT if before is None or frame.key_frame else before.matrix
    colours = (frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries)
    return Form(frame.width, frame.height, frame.format.name, matrix, aspect, colours)


def _orientation(frame: VideoFrame) -> Matrix | None:
    """The key of ORIENTATIONS that is nearest to the frame's display matrix."""
    try:
        each: Any
        for each in frame.side_data:  # a lookup takes ten times as long if there is none
            if each.type.name == "DISPLAYMATRIX":
                a, b, _, c, d = np.frombuffer(each, np.int32)[:5].tolist()
                return max(ORIENTATIONS, key=lambda key: key[0] * a + key[1] * b + key[2] * c + key[3] * d)
    except ValueError:  # raised for kinds of side data that PyAV does not know
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        return list(ORIENTATIONS)[-turns % 4]
    return None


def aspect_of(stream: VideoStream) -> Callable[[], Fraction]:
    """A function that returns the pixel aspect of the last decoded frame: the container's, or else the codec's."""
    context, stated = stream.codec_context, stream.sample_aspect_ratio
    by_container = stated != context.sample_aspect_ratio
    return lambda: _sane(stated if by_container else context.sample_aspect_ratio)


@lru_cache(maxsize=8)
def _sane(aspect: Fraction | None) -> Fraction:
    """The aspect, or 1 if it is missing or not plausible."""
    if not aspect or not ONE / WIDEST <= aspect <= WIDEST or abs(aspect - 1) < SQUARE:
        return ONE
    return aspect


BT2020, PQ, HLG = 9, 16, 18  # primaries, and transfers, by their numbers in ITU-T H.273
WHITE = 203  # candela per square metre, of paper in HDR by ITU-R BT.2408
GAMMA = 2.4  # of other videos' screens, by ITU-R BT.1886
# Expressions of FFmpeg: each sets register 1 to the light of a code value; WHITE is 1.
LIGHT = {
    PQ: "st(0,pow(val/maxval,1/78.84375));"
    f"st(1,10000/{WHITE}*pow(max(ld(0)-.8359375,0)/(18.8515625-18.6875*ld(0)),1/.1593017578125))",
    HLG: "st(0,val/maxval);"
    "st(0,if(lte(ld(0),.5),ld(0)*ld(0)/3,(exp((ld(0)-.55991073)/.17883277)+.28466892)/12));"
    f"st(1,1000/{WHITE}*pow(ld(0),1.2))",
}
KNEE = "maxval*if(lte(ld(1),.6),ld(1),.6+.4*(1-exp((.6-ld(1))/.4)))"  # light above 0.6 is compressed, below 1
# Linear light of BT.2020 to that of BT.709, by ITU-R BT.2087.
MIX = "rr=1.6605:rg=-.5876:rb=-.0728:gr=-.1246:gg=1.1329:gb=-.0083:br=-.0182:bg=-.1006:bb=1.1187"


def _colour_filters(form: Form) -> Filters:
    """FFmpeg's filters from HDR colours to those of other videos; empty for other videos."""
    _, _, transfer, primaries = form.colours
    if transfer not in LIGHT and primaries != BT2020:
        return ()
    light = f"{LIGHT[transfer]};{KNEE}" if transfer in LIGHT else f"maxval*pow(val/maxval,{GAMMA})"
    code = f"maxval*pow(val/maxval,1/{GAMMA})"
    eight_bits = ("scale", "flags=bilinear+accurate_rnd")
    return [("format", "rgb48le"), _each(light), ("colorchannelmixer", MIX), _each(code), eight_bits]


def _each(expression: str) -> tuple[str, str]:
    """A filter that applies one expression to red, green and blue."""
    return "lutrgb", ":".join(f"{colour}='{expression}'" for colour in "rgb")


MAX_PIXELS = 2**26  # of one frame; an 8K frame has half as many
# Formats that FFmpeg converts wrongly (float greys, as if their range were limited) or crashes on (32 bits, with
# alpha).
UNREADABLE = ("grayf16", "yaf16", "yaf32")

Box = tuple[int, int, int, int]  # top, left, height, width


class Cut(NamedTuple):
    """A part of a picture, and the size to which it is resized."""

    box: Box
    size: tuple[int, int]  # height, width in the result
    mirrored: bool = False


View = Callable[[int, int], Cut]  # (height, width) of the picture as it is shown -> the part to take


class BadSample(Exception):
    """A sample that cannot be read, with the reason in a few words. It is printed, counted and left out."""


def whole_view(short: int | None = None) -> View:
    """The view of the whole picture, shrunk so that its short side has at most ``short`` pixels."""
    return lambda height, width: Cut((0, 0, height, width), shrunk_size(height, width, short))


def shrunk_size(height: int, width: int, short: int | None) -> tuple[int, int]:
    """(height, width) with a short side of at most ``short`` pixels."""
    scale = min(1.0, (short or MAX_PIXELS) / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Pictures:
    """Converts the frames of one video to pixels. All frames have the same view, which is called once."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._aspect: Callable[[], Fraction] = lambda: ONE
        self._form: Form | None = None
        self._graph: Graph | None = None

    def opened(self, stream: VideoStream) -> None:
        """Set the stream of the frames. It has the pixel aspect, which frames do not have."""
        self._aspect = aspect_of(stream)

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """A frame as uint8 (3, h, w), RGB, upright, in square pixels. Alpha is dropped; more than 8 bits are rounded.

        Raises:
            BadSample: the frame is damaged, too large, of another size than the one before, or cannot be converted.
        """
        return np.stack(self.planes(frame))

    def planes(self, frame: VideoFrame) -> list[np.ndarray]:
        """The same as three arrays (h, w), which are views of FFmpeg's memory."""
        form = self.accept(frame)
        try:
            self._graph = self._graph or _graph(frame, self._filters(form))
            self._graph.vpush(frame)
            planes = self._graph.vpull().planes  # green, blue, red
        except FFmpegError:
            raise BadSample(_explain_format(form)) from None
        rows = [np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size) for plane in planes]
        return [rows[c][:, : planes[c].width] for c in (2, 0, 1)]

    def accept(self, frame: VideoFrame) -> Form:
        """The frame's form; BadSample as in ``__call__``, except for frames that FFmpeg cannot convert."""
        if frame.is_corrupt:
            raise BadSample("damaged frame")
        form = form_of(frame, self._aspect(), self._form)
        if form != self._form:
            self._change(form)
        return form

    def _change(self, to: Form) -> None:
        """Set a new form for this and later frames; BadSample if the size of the picture changes."""
        check_pixels(to.width, to.height)
        height, width = to.shown
        check_pixels(width, height)
        if to.pixel_format.startswith(UNREADABLE):
            raise BadSample(_explain_format(to))
        if self._form is None:
            self._cut = self._view(height, width)
        elif self._form.shown != to.shown:
            raise BadSample(f"its frames change from {self._form.shown} to {to.shown} rows and columns")
        self._form, self._graph = to, None

    def _filters(self, form: Form) -> Filters:
        """FFmpeg's filters that cut, scale and convert frames of this form."""
        (top, left, height, width), (h, w) = _stored(self._cut.box, form), self._cut.size
        crop = [("crop", f"{width}:{height}:{left}:{top}:exact=1")] if (height, width) != form.stored else []
        # Without accurate_rnd, FFmpeg 8 leaves the last columns black for some widths if nothing is scaled.
        flags = "bilinear+accurate_rnd" if (height, width) == (h, w) else "bilinear"
        scale = ("scale", f"{w}:{h}:flags={flags}")
        mirror = [("hflip", "")] if self._cut.mirrored else []
        return [*ORIENTATIONS[form.matrix], *crop, scale, *_colour_filters(form), ("format", "gbrp"), *mirror]


def _stored(box: Box, form: Form) -> Box:
    """A box of the shown picture in stored pixels, rounded outwards."""
    top, left, height, width = box
    down, right = (Fraction(*sides) for sides in zip(form.stored, form.shown, strict=True))
    y, x = math.floor(top * down), math.floor(left * right)
    return y, x, math.ceil((top + height) * down) - y, math.ceil((left + width) * right) - x


def _explain_format(form: Form) -> str:
    return (
        f"pixels of format {form.pixel_format} with colour matrix {form.colours[0]} (ITU-T H.273) cannot be converted"
    )


def _graph(frame: VideoFrame, filters: Filters) -> Graph:
    graph = Graph()
    graph.threads = 1  # there is already a process for each core
    size = f"{frame.width}x{frame.height}"
    last = graph.add("buffer", video_size=size, pix_fmt=frame.format.name, time_base="1/1")
    for name, options in filters:
        last.link_to(following := graph.add(name, options or None))
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadSample(f"{width} x {height} pixels; at most {MAX_PIXELS} are allowed")


WHITE_IS_ZERO = 0  # of TIFF's photometric interpretations


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image as RGB, upright by its EXIF tag; BadSample for greys whose white is unknown."""
    upright = ImageOps.exif_transpose(image)
    if image.mode != "F" and not image.mode.startswith("I"):
        return upright.convert("RGB")
    white, values = _white(image), np.asarray(upright)
    if not 0 <= values.min() <= values.max() <= white:  # also true for NaN
        raise BadSample(f"greys from {values.min():g} to {values.max():g}; allowed are 0 to {white}")
    levels = np.rint(values * (255 / white)).astype(np.uint8)
    inverted = _tag(image, PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
    return Image.fromarray(255 - levels if inverted else levels).convert("RGB")


def _white(image: Image.Image) -> int:
    """The value of white."""
    if image.mode == "F":
        return 1
    if image.mode.startswith("I;16"):
        return 2**12 - 1 if _tag(image, BITSPERSAMPLE) == (12,) else 2**16 - 1
    if image.format == "PPM":  # Pillow scales PPM to 16 bits
        return 2**16 - 1
    raise BadSample("greys of 32 bits or with a sign, whose white is unknown")


def _tag(image: Image.Image, number: int) -> object:
    return image.tag_v2.get(number) if isinstance(image, TiffImageFile) else None
