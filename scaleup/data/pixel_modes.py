"""Pillow's modes to RGB: its own conversion cuts off what is above 255, which makes wide greys white."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from scaleup.data.pictures import BadSample

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
