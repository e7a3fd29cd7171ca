"""High dynamic range and wide colours (ITU-R BT.2100, BT.2020) to the range and colours of all other videos (BT.709).

FFmpeg can do it, but takes seconds to prepare. This does the same up to half of white, and bends what is brighter.
"""

from __future__ import annotations

from scaleup.data.display import Filters, Form

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
