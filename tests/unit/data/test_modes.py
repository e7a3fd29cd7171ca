"""Images of every mode: right values, or a sentence."""

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from scaleup.data.decode import BadSample, check, decode_image
from scaleup.data.encode import Encoding, encoded

RAMP = np.linspace(0, 255, 40 * 60).reshape(40, 60).round().astype(np.uint8)
GREY = Image.fromarray(RAMP)
COLOUR = Image.merge(
    "RGB", [GREY, GREY.transpose(Image.Transpose.ROTATE_180), GREY.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def off(media, image):
    """The mean difference of what is decoded from an image in RGB."""
    return np.abs(decode_image(media).permute(1, 2, 0).numpy().astype(int) - np.asarray(image.convert("RGB"))).mean()


WIDE = RAMP.astype(np.uint16) * 257


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm", "jpeg2000"])
def test_wide_greys(kind):
    media = saved(Image.fromarray(WIDE), kind)
    assert off(media, GREY) < 0.5
    check(media, "image")
    _, again = encoded(media, "png", "image", Encoding(image="png", short=20))
    assert abs(decode_image(again).double().mean() - 127.5) < 1
    _, again = encoded(media, "png", "image", Encoding(image="jpg"))
    assert off(again, GREY) < 2


def test_wide_greys_of_the_other_byte_order():
    big = Image.frombytes("I;16B", (60, 40), WIDE.astype(">u2").tobytes())
    assert off(saved(big, "tiff"), GREY) < 0.5


def tagged(media, number, old, new):
    """A little-endian TIFF with another value of a tag of one short."""
    entry = number.to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00" + old.to_bytes(2, "little")
    assert media.count(entry) == 1
    return media.replace(entry, entry[:-2] + new.to_bytes(2, "little"))


def test_tiffs_of_which_zero_is_white():
    media = tagged(saved(Image.fromarray(65535 - WIDE), "tiff"), 262, 1, 0)
    assert off(media, GREY) < 0.5


def test_tiffs_of_12_bits():
    values = (RAMP.astype(np.uint16) << 4 | RAMP >> 4).reshape(-1, 2)
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], 1)
    media = bytearray(saved(Image.fromarray(WIDE), "tiff"))
    with Image.open(io.BytesIO(media)) as image:
        (begin,), (size,) = image.tag_v2[273], image.tag_v2[279]
    media[begin : begin + size] = packed.astype(np.uint8).tobytes().ljust(size, b"\0")
    assert off(tagged(bytes(media), 258, 16, 12), GREY) < 0.5


def test_greys_between_0_and_1():
    assert off(saved(Image.fromarray(RAMP.astype(np.float32) / 255), "tiff"), GREY) < 0.5


@pytest.mark.parametrize(
    "values, said",
    [
        (RAMP.astype(np.float32), "greys from 0 to 255; allowed are 0 to 1"),
        (RAMP.astype(np.float32) - 1, "greys from -1 to 254"),
        (np.full((4, 4), np.nan, np.float32), "greys from nan to nan"),
        (RAMP.astype(np.int32), "whose white is unknown"),
        (np.full((4, 4), -5, np.int32), "whose white is unknown"),
    ],
)
def test_greys_that_nobody_can_know(values, said):
    with pytest.raises(BadSample, match=said):
        decode_image(saved(Image.fromarray(values), "tiff"))


OLD = int(PIL.__version__.partition(".")[0]) < 13
YCBCR = pytest.param("YCbCr", marks=pytest.mark.skipif(OLD, reason="this Pillow does not read what it writes"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "CMYK", YCBCR, "LAB", "L", "LA", "P", "PA", "1"])
def test_other_modes_keep_their_colours(mode):
    image = COLOUR.convert(mode) if mode not in ("L", "LA", "1") else GREY.convert(mode)
    assert off(saved(image, "tiff"), image) < 0.5
    if mode not in ("1", "P", "PA"):  # which have few colours
        assert off(saved(image, "tiff"), GREY if mode in ("L", "LA") else COLOUR) < 6


def test_other_files_keep_their_colours():
    sixteen = np.repeat(np.asarray(COLOUR).astype(">u2")[..., None] * 257, 1, 3)
    for kind, options in {
        "webp": {"lossless": True},
        "bmp": {},
        "ppm": {},
        "jpeg": {"quality": 100, "subsampling": 0},
    }.items():
        assert off(saved(COLOUR, kind, **options), COLOUR) < 2
    assert off(b"P6 60 40 65535\n" + sixteen.astype(">u2").tobytes(), COLOUR) < 1
    assert off(saved(COLOUR.convert("CMYK"), "jpeg", quality=100), COLOUR) < 2  # inverted, as Adobe has it


def test_png_of_16_bits_a_colour():
    rows = (np.asarray(COLOUR).astype(">u2") * 257).tobytes()
    rows = b"".join(b"\0" + rows[start : start + 6 * 60] for start in range(0, len(rows), 6 * 60))
    media = b"\x89PNG\r\n\x1a\n"
    for name, body in {
        b"IHDR": struct.pack(">IIBBBBB", 60, 40, 16, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }.items():
        media += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    assert off(media, COLOUR) < 1


def test_alpha_is_dropped():
    """The colours below are what is stored, as in the pictures that public models were trained on."""
    clear = COLOUR.copy()
    clear.putalpha(0)
    assert off(saved(clear, "png"), COLOUR) == 0
    assert off(saved(clear, "webp", lossless=True, exact=True), COLOUR) == 0
    palette = COLOUR.quantize(16)
    assert off(saved(palette, "png", transparency=3), palette) == 0
    assert off(saved(Image.merge("LA", [GREY, Image.new("L", GREY.size)]), "png"), GREY) == 0


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_of_moving_images_the_first_picture(kind):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    media = saved(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=100)
    assert off(media, pictures[0]) < 2


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_exif_orientation(kind, orientation, mode):
    """1 to 8, and two that do not exist."""
    if mode == "I;16" and kind in ("jpeg", "webp"):
        pytest.skip("has no wide greys")
    image = COLOUR if mode == "RGB" else Image.fromarray(WIDE)
    turn = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turn |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    upright = COLOUR if mode == "RGB" else GREY
    upright = upright.transpose(Image.Transpose[turn[orientation]]) if orientation in turn else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpeg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    media = saved(image, kind, exif=exif, **options)
    assert off(media, upright) < 1.5
    _, again = encoded(media, kind, "image", Encoding(image="png"))
    assert off(again, upright) < 1.5


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM garbage", b"garbage"]
)
def test_damaged_exif_is_no_trouble(exif):
    assert off(saved(COLOUR, "jpeg", exif=exif, quality=100, subsampling=0), COLOUR) < 2


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_one_pixel(size):
    media = saved(Image.new("RGB", size, (200, 30, 40)), "png")
    assert decode_image(media, 8).shape == (3, size[1], size[0])
    assert encoded(media, "png", "image", Encoding(short=8, image="jpg"))[0] == "jpg"
