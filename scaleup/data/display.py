"""How frames are meant to be shown: which way up, how wide a pixel, which colours.

FFmpeg can do it, but takes seconds to prepare. This does the same up to half of white, and bends what is brighter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from av import VideoStream
from av.video.frame import VideoFrame

Filters = Sequence[tuple[str, str]]  # FFmpeg's filters, each with its options
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
WIDEST = 10  # times as wide as high, or as high as wide: no camera or disc makes pixels that are less square
SQUARE = Fraction(1, 100)  # what is nearer to 1 comes from rounding


class Form(NamedTuple):
    """All that a frame's conversion depends on beside its pixels."""

    width: int  # as stored
    height: int
    pixel_format: str
    matrix: Matrix  # a key of ORIENTATIONS
    aspect: Fraction  # width of a pixel over its height, as stored
    colours: tuple[int, int, int, int]  # matrix, range, transfer and primaries, by their numbers in ITU-T H.273

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width, the right way up, of the pixels that there are."""
        return (self.height, self.width) if self.matrix[0] else (self.width, self.height)

    @property
    def shown(self) -> tuple[int, int]:
        """The same in square pixels: one side is stretched, none is shrunk."""
        height, width = self.stored
        aspect = self.aspect if self.matrix[0] else 1 / self.aspect
        return round(height * max(ONE, 1 / aspect)), round(width * max(ONE, aspect))


def form_of(frame: VideoFrame, aspect: Fraction, before: Form | None) -> Form:
    """The form of a frame that comes after one of form ``before``."""
    matrix = _orientation(frame)
    if matrix is None:  # what a codec says of a key frame holds up to the next one
        matrix = UPRIGHT if before is None or frame.key_frame else before.matrix
    colours = (frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries)
    return Form(frame.width, frame.height, frame.format.name, matrix, aspect, colours)


def _orientation(frame: VideoFrame) -> Matrix | None:
    """The key of ORIENTATIONS that is nearest to the frame's display matrix."""
    try:
        each: Any
        for each in frame.side_data:  # to look it up takes ten times as long where there is none
            if each.type.name == "DISPLAYMATRIX":
                a, b, _, c, d = np.frombuffer(each, np.int32)[:5].tolist()
                return max(ORIENTATIONS, key=lambda key: key[0] * a + key[1] * b + key[2] * c + key[3] * d)
    except ValueError:  # PyAV does not know all kinds of side data, and then gives none
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        return list(ORIENTATIONS)[-turns % 4]
    return None


def aspect_of(stream: VideoStream) -> Callable[[], Fraction]:
    """Tells the aspect of the pixels of the frame that was decoded last: the container's word, or else the codec's."""
    context, told = stream.codec_context, stream.sample_aspect_ratio
    by_container = told != context.sample_aspect_ratio
    return lambda: _sane(told if by_container else context.sample_aspect_ratio)


@lru_cache(maxsize=8)
def _sane(aspect: Fraction | None) -> Fraction:
    """1 where nothing is said, or nothing that could be meant."""
    if not aspect or not ONE / WIDEST <= aspect <= WIDEST or abs(aspect - 1) < SQUARE:
        return ONE
    return aspect


BT2020, PQ, HLG = 9, 16, 18  # primaries, and transfers, by their numbers in ITU-T H.273
WHITE = 203  # candela per square metre, of paper in HDR by ITU-R BT.2408
GAMMA = 2.4  # of other videos' screens, by ITU-R BT.1886
# Each sets register 1 to the light of a code value, WHITE being 1; in the language of FFmpeg's expressions.
LIGHT = {
    PQ: "st(0,pow(val/maxval,1/78.84375));"
    f"st(1,10000/{WHITE}*pow(max(ld(0)-.8359375,0)/(18.8515625-18.6875*ld(0)),1/.1593017578125))",
    HLG: "st(0,val/maxval);"
    "st(0,if(lte(ld(0),.5),ld(0)*ld(0)/3,(exp((ld(0)-.55991073)/.17883277)+.28466892)/12));"
    f"st(1,1000/{WHITE}*pow(ld(0),1.2))",
}
KNEE = "maxval*if(lte(ld(1),.6),ld(1),.6+.4*(1-exp((.6-ld(1))/.4)))"  # what is brighter than 0.6 never reaches 1
# Linear light of BT.2020 to that of BT.709, by ITU-R BT.2087.
MIX = "rr=1.6605:rg=-.5876:rb=-.0728:gr=-.1246:gg=1.1329:gb=-.0083:br=-.0182:bg=-.1006:bb=1.1187"


def filters(form: Form) -> Filters:
    """FFmpeg's filters for RGB of this form; none where the colours are those of other videos already."""
    _, _, transfer, primaries = form.colours
    if transfer not in LIGHT and primaries != BT2020:
        return ()
    light = f"{LIGHT[transfer]};{KNEE}" if transfer in LIGHT else f"maxval*pow(val/maxval,{GAMMA})"
    code = f"maxval*pow(val/maxval,1/{GAMMA})"
    eight_bits = ("scale", "flags=bilinear+accurate_rnd")
    return [("format", "rgb48le"), _each(light), ("colorchannelmixer", MIX), _each(code), eight_bits]


def _each(expression: str) -> tuple[str, str]:
    """Red, green and blue, each by the same expression."""
    return "lutrgb", ":".join(f"{colour}='{expression}'" for colour in "rgb")
