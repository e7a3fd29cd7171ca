"""Pixels of every format, matrix, range and light: right values, or a sentence."""

import contextlib
import io

import av
import numpy as np
import pytest

from scaleup.config.schema import Input
from scaleup.data.decode import BadSample, check, decode_clip
from scaleup.data.encode import Encoding, encoded
from scaleup.data.pictures import Pictures, whole_view
from scaleup.data.stream import clips

PATCHES = np.array([[200, 30, 40], [30, 180, 60], [20, 40, 220], [130, 130, 130]], np.uint8)
GREYS = PATCHES @ [0.299, 0.587, 0.114]  # BT.601


def picture(size=32):
    return np.repeat(np.repeat(PATCHES.reshape(1, 4, 3), size, 0), size, 1)


def patches(pixels):
    """(3, h, 4 * size) -> (4, 3), the mean of each patch, but for its edge."""
    size = pixels.shape[1]
    return np.array([pixels[:, 4:-4, size * k + 4 : size * (k + 1) - 4].mean((1, 2)) for k in range(4)])


def converted(frame):
    return patches(Pictures(whole_view())(frame))


def writable():
    """The formats that FFmpeg can make of RGB."""
    source = av.VideoFrame.from_ndarray(picture(), format="rgb24")
    for name in sorted(av.video.format.names):
        with contextlib.suppress(OSError, ValueError):
            yield name, source.reformat(format=name)


def test_every_format_that_can_be_made():
    tried = 0
    for name, frame in writable():
        try:
            found = converted(frame)
        except BadSample as error:
            assert name in ("rgb4", "bgr4") and f"format {name} " in str(error)
            continue
        tried += 1
        grey = name.startswith(("gray", "ya", "mono"))
        # Dots of black and white or of 16 colours; and one format with alpha, which FFmpeg does not write well.
        near = 10 if name.startswith("mono") or "4_byte" in name else 20 if name == "yuva422p10le" else 4
        assert np.abs(found - (GREYS[:, None] if grey else PATCHES)).max() <= near, name
    assert tried > 150


@pytest.mark.parametrize("name", ["grayf16le", "yaf16be", "yaf32le", "yaf32be", "gray32le", "rgba128le", "xv30be"])
def test_formats_that_ffmpeg_does_not_convert_are_named(name):
    """With two of them its process would end."""
    with pytest.raises(BadSample, match=f"format {name} with colour matrix"):
        converted(av.VideoFrame(64, 16, name))


@pytest.mark.parametrize("name", ["bayer_rggb8", "bayer_bggr16le", "rgbf16le", "gbrpf16be", "rgbf32le", "pal8"])
def test_formats_that_can_only_be_read(name):
    frame = av.VideoFrame(64, 16, name)
    kind = {"16le": "<u2", "f16le": "<f2", "f16be": ">f2", "f32le": "<f4"}
    kind = next((kind[end] for end in sorted(kind, key=len, reverse=True) if name.endswith(end)), "u1")
    grey = np.array([0.25 if "f" in kind else 64 if kind == "u1" else 64 * 257]).astype(kind).tobytes()
    for plane in frame.planes:
        plane.update(grey * (plane.buffer_size // len(grey)))
    assert np.abs(converted(frame) - 64).max() <= 1


def video(
    matrix, range_=1, transfer=2, primaries=2, codes=None, pix_fmt="yuv420p10le", codec="ffv1", container="matroska"
):
    """Patches of (Y, Cb, Cr), by their code values."""
    buffer, size = io.BytesIO(), 16
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = size, size * len(codes), pix_fmt
        context, frame = stream.codec_context, av.VideoFrame(size * len(codes), size, pix_fmt)
        for each in (context, frame):
            each.colorspace, each.color_range, each.color_trc, each.color_primaries = (
                matrix,
                range_,
                transfer,
                primaries,
            )
        for number, plane in enumerate(frame.planes):
            kind = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
            width = plane.line_size // np.dtype(kind).itemsize
            rows = np.zeros((plane.height, width), kind)
            rows[:, : plane.width] = np.repeat(np.array(codes)[:, number], plane.width // len(codes))
            plane.update(rows.tobytes().ljust(plane.buffer_size, b"\0"))
        for _ in range(3):
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


def codes(rgb, matrix, bits, full=False):
    """Code values of ITU-R BT.601, 709 and 2020 for RGB from 0 to 1."""
    kr, kb = WEIGHTS[matrix]
    red, green, blue = np.asarray(rgb).T
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    scale = 2 ** (bits - 8)
    top, wide, low = (2**bits - 1, 2**bits - 1, 0) if full else (219 * scale, 224 * scale, 16 * scale)
    return np.rint(np.stack([low + top * luma, *(128 * scale + wide * each for each in chroma)], 1)).astype(int)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "pix_fmt, bits", [("yuv444p", 8), ("yuv420p10le", 10), ("yuv444p12le", 12), ("yuv422p10le", 10)]
)
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_matrices_and_ranges(matrix, pix_fmt, bits, full):
    media = video(matrix, 1 + full, codes=codes(PATCHES / 255, matrix, bits, full), pix_fmt=pix_fmt)
    assert np.abs(patches(decode_clip(media, 1, 10)[:, 0].numpy()) - PATCHES).max() <= 3
    _, again = encoded(media, "mkv", "video", Encoding(again=True))
    assert np.abs(patches(decode_clip(again, 1, 10)[:, 0].numpy()) - PATCHES).max() <= 6
    with av.open(io.BytesIO(again)) as file:  # for players, which guess by the size where nothing is said
        context = file.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (6, 1)


@pytest.mark.parametrize("matrix", [8, 10, 14])
def test_other_matrices_are_named(matrix):
    """YCgCo, BT.2020 with constant luminance, ICtCp; in training, in checks and in prediction."""
    media = video(matrix, codes=[(500, 500, 500)] * 4)
    for read in (
        lambda: decode_clip(media, 1, 10),
        lambda: check(media, "video"),
        lambda: list(clips(io.BytesIO(media), Input(frames=2, size=[16, 16], fps=10), 1)),
    ):
        with pytest.raises(BadSample, match=f"format yuv420p10le with colour matrix {matrix} "):
            read()


def test_colours_without_a_word_are_those_of_601():
    """At any size, as FFmpeg has it."""
    media = video(2, 0, codes=codes(PATCHES / 255, 6, 10))
    assert np.abs(patches(decode_clip(media, 1, 10)[:, 0].numpy()) - PATCHES).max() <= 3


TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # ITU-R BT.2087


def pq(light):
    """SMPTE ST 2084, of candela per square metre."""
    power = (np.asarray(light) / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(light):
    """ITU-R BT.2100, on a screen of 1000 candela per square metre."""
    scene = (np.asarray(light) / 1000) ** (1 / 1.2)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )


CURVES = {16: lambda light: pq(203 * light), 18: lambda light: hlg(203 * light), 14: lambda light: light ** (1 / 2.4)}


@pytest.mark.parametrize("transfer", CURVES)
def test_hdr_and_wide_colours(transfer):
    """A picture that was made of an ordinary one is that again, where it is not near white; greys stay grey."""
    light = (PATCHES / 255) ** 2.4 @ TO_2020.T
    media = video(9, 1, transfer, 9, codes(CURVES[transfer](light), 9, 10))
    assert np.abs(patches(decode_clip(media, 1, 10)[:, 0].numpy()) - PATCHES).max() <= 6
    (_, clip), *_ = clips(io.BytesIO(media), Input(frames=2, size=[16, 64], fps=10), 1)
    assert np.abs(patches(clip[:, 0].numpy()) - PATCHES).max() <= 6
    _, again = encoded(media, "mkv", "video", Encoding(again=True))
    assert np.abs(patches(decode_clip(again, 1, 10)[:, 0].numpy()) - PATCHES).max() <= 9


@pytest.mark.parametrize("transfer", [16, 18])
def test_what_is_brighter_than_white_keeps_its_order(transfer):
    light = np.array([0.01, 0.2, 0.6, 1, 2, 4])[:, None].repeat(3, 1)
    media = video(9, 1, transfer, 9, codes(CURVES[transfer](light), 9, 10))
    shown = decode_clip(media, 1, 10)[:, 0].numpy()[:, 8, 8::16].astype(int)
    assert np.abs(shown - shown[:1]).max() <= 1 and (np.diff(shown[0][:5]) > 0).all() and np.diff(shown[0])[-1] >= 0
    assert np.abs(shown[0][:3] - 255 * light[:3, 0] ** (1 / 2.4)).max() <= 3 and 230 < shown[0][3] < 250


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (35, 1)])
def test_one_row_or_column(size):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as file:
        stream = file.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "rgb24"
        pixels = np.full((*size, 3), (200, 30, 40), np.uint8)
        file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    clip = decode_clip(buffer.getvalue(), 1, 10)
    assert clip.shape == (3, 1, *size) and np.abs(clip.numpy()[:, 0, 0, 0].astype(int) - (200, 30, 40)).max() <= 3
    _, again = encoded(buffer.getvalue(), "mkv", "video", Encoding(again=True))
    assert np.abs(decode_clip(again, 1, 10).numpy()[:, 0, 0, 0].astype(int) - (200, 30, 40)).max() <= 6
