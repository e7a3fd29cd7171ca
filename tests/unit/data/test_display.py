"""Which way up, and with pixels how wide: in training, in prediction and after re-encoding."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from PIL import Image

from scaleup.config.schema import Input
from scaleup.data import pictures
from scaleup.data.augment import covering
from scaleup.data.decode import BadSample, check, decode_clip
from scaleup.data.encode import Encoding, encoded
from scaleup.data.pictures import Cut
from scaleup.data.stream import clips

HEIGHT, WIDTH, ONE = 64, 96, 1 << 16
UPRIGHT = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
UPRIGHT[:32, :48], UPRIGHT[:32, 48:], UPRIGHT[32:, :48] = (250, 0, 0), (0, 250, 0), (0, 0, 250)  # and black

# The first four numbers of a display matrix, and what it shows: red, green, blue and K for black, row by row.
MATRICES = {
    (1, 0, 0, 1): "RGBK",
    (0, 1, -1, 0): "BRKG",
    (-1, 0, 0, -1): "KBGR",
    (0, -1, 1, 0): "GKRB",
    (-1, 0, 0, 1): "GRKB",
    (1, 0, 0, -1): "BKRG",
    (0, 1, 1, 0): "RBGK",
    (0, -1, -1, 0): "KGBR",
}


def made(aspect=None, container="mp4", codec="libx264", pix_fmt="yuv420p", matrix=None, filters=None, frames=8):
    buffer, bitstream = io.BytesIO(), None
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pix_fmt
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if matrix:
            a, b, c, d = (round(number * ONE) for number in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        file.start_encoding()
        if filters:
            bitstream = BitStreamFilterContext(filters, stream)
        for picture in [UPRIGHT] * frames + [None]:
            frame = None if picture is None else av.VideoFrame.from_ndarray(picture, format="rgb24")
            for packet in stream.encode(frame):
                file.mux(bitstream.filter(packet) if bitstream else packet)
        file.mux(bitstream.filter(None) if bitstream else [])
    return buffer.getvalue()


def quarters(clip):
    """What the four quarters show in the first frame, and its height and width."""
    frame = clip[:, 0].numpy() > 125
    height, width = frame.shape[1:]
    places = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    colours = {(True, False, False): "R", (False, True, False): "G", (False, False, True): "B", (False,) * 3: "K"}
    return "".join(colours[tuple(frame[:, y, x].tolist())] for y, x in places), (height, width)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_all_eight_orientations(container, matrix):
    """In training, in prediction, and in what is written anew, which has no matrix."""
    media = made(container=container, matrix=matrix)
    turned = matrix[0] == 0
    size = (WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH)
    assert quarters(decode_clip(media, 2, 8)) == (MATRICES[matrix], size)
    (_, clip), *_ = clips(io.BytesIO(media), Input(frames=2, size=list(size), fps=8), 1)
    assert quarters(clip) == (MATRICES[matrix], size)
    _, again = encoded(media, "mp4", "video", Encoding(short=32))
    assert quarters(decode_clip(again, 2, 8)) == (MATRICES[matrix], (size[0] // 2, size[1] // 2))
    with av.open(io.BytesIO(again)) as file:
        assert not list(next(file.decode(video=0)).side_data)[1:]  # the encoder's name alone


def test_a_view_is_of_the_mirrored_picture():
    """The crop of the corner that is shown as the first, and a mirrored one of it."""
    media = made(matrix=(-1, 0, 0, 1))
    corner = decode_clip(media, 1, 8, view=lambda h, w: Cut((0, 0, h // 2, w // 2), (h // 2, w // 2)))
    assert quarters(corner)[0] == "GGGG"
    whole = decode_clip(media, 1, 8, view=lambda h, w: Cut((0, 0, h, w), (h, w), mirrored=True))
    assert quarters(whole)[0] == "RGBK"


@pytest.mark.parametrize(
    "matrix, shown",
    [
        ((0.87, 0.5, -0.5, 0.87), "RGBK"),  # 30 degrees
        ((0.5, 0.87, -0.87, 0.5), "BRKG"),  # 60
        ((2, 0, 0, 2), "RGBK"),
        ((-1.2, 0.3, 0.1, 0.9), "GRKB"),  # skewed
        ((0, 0, 0, 0), "RGBK"),
        ((1, 0, 0, 0), "RGBK"),
    ],
)
def test_other_matrices_are_taken_for_the_nearest(matrix, shown):
    assert quarters(decode_clip(made(matrix=matrix, container="matroska"), 1, 8))[0] in (shown, "RGBK")
    file = made()
    at = file.index(b"tkhd") + 4 + 40
    a, b, c, d = (round(number * ONE) for number in matrix)
    turned = file[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + file[at + 36 :]
    assert quarters(decode_clip(turned, 1, 8))[0] == shown


def by_codec(turn):
    """H.264 alone, whose key frame says how it is turned; FFmpeg hands that on with this one frame."""
    return made(filters=f"h264_metadata=display_orientation=insert:{turn}", container="h264")


def test_what_the_codec_says_of_a_key_frame_holds_up_to_the_next():
    for turn, shown in {"rotate=180": "KBGR", "rotate=90": "GKRB", "rotate=90:flip=horizontal": "RBGK"}.items():
        clip = decode_clip(by_codec(turn), 8, 25)
        assert [quarters(clip[:, k : k + 1])[0] for k in range(8)] == [shown] * 8
    clip = decode_clip(made(container="h264") + by_codec("rotate=180") + made(container="h264"), 24, 25)
    assert [quarters(clip[:, k : k + 1])[0] for k in range(24)] == ["RGBK"] * 8 + ["KBGR"] * 8 + ["RGBK"] * 8
    with pytest.raises(BadSample, match=r"change from \(64, 96\) to \(96, 64\)"):
        check(made(container="h264") + by_codec("rotate=90"), "video")


@pytest.mark.parametrize("orientation, shown", [(1, "RGBK"), (3, "KBGR"), (6, "BRKG"), (8, "GKRB")])
def test_orientations_of_motion_jpeg(orientation, shown):
    """By EXIF, which FFmpeg hands on together with the matrix, and PyAV has no name for."""
    exif, picture, buffer = Image.Exif(), io.BytesIO(), io.BytesIO()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    Image.fromarray(UPRIGHT).save(picture, "jpeg", exif=exif, quality=95)
    with av.open(buffer, "w", format="avi") as file:
        stream = file.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        for number in range(3):
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            file.mux(packet)
    assert quarters(decode_clip(buffer.getvalue(), 2, 25))[0] == shown


PASP = struct.pack(">I4sII", 16, b"pasp", 1, 1)


@pytest.mark.parametrize(
    "container, codec", [("mp4", "libx264"), ("mov", "mpeg4"), ("avi", "mpeg4"), ("mpegts", "libx264")]
)
@pytest.mark.parametrize(
    "aspect, size", [("64/45", (64, 137)), ("1/2", (128, 96)), ("8/9", (72, 96)), ("1/1", (64, 96))]
)
def test_pixels_become_square(container, codec, aspect, size):
    media = made(aspect, container, codec)
    assert quarters(decode_clip(media, 2, 8)) == ("RGBK", size)
    covered = tuple(covering(*size, (32, 32), 1))
    (_, clip), *_ = clips(io.BytesIO(media), Input(frames=2, size=list(covered), fps=8), 1)
    assert quarters(clip) == ("RGBK", covered)
    _, again = encoded(media, "mp4", "video", Encoding(again=True))
    assert quarters(decode_clip(again, 2, 8)) == ("RGBK", (size[0], size[1] // 2 * 2))
    with av.open(io.BytesIO(again)) as file:
        assert file.streams.video[0].sample_aspect_ratio in (None, 0, 1)


def test_pixels_of_discs():
    """MPEG-2 has a few shapes of pictures in place of pixels' shapes; the nearest was written."""
    (height, width) = quarters(decode_clip(made("64/45", "mpeg", "mpeg2video"), 2, 8))[1]
    assert (height, width) == (64, 141)  # 2.21 : 1


def test_the_container_says_it():
    """Matroska says how large a picture is shown, MP4 how wide its pixels are, each before the codec."""
    matroska = made(container="matroska", codec="mpeg4").replace(b"\x54\xb2\x81\x04", b"\x54\xb2\x81\x00")  # pixels
    size = b"\xb0\x81\x60\xba\x81\x40"
    begin = matroska.rindex(b"\xe0", 0, matroska.index(size))
    end = begin + 2 + (matroska[begin + 1] & 0x7F)
    track = matroska[:begin].replace(b"\x22\xb5\x9c\x83und", b"").replace(b"\x9c\x81\x00", b"")  # makes room for
    shown = b"\x54\xb0\x81\xc0" + b"\x54\xba\x81\x40" + b"\xec\x80"  # 192 x 64
    wide = track + bytes([0xE0, matroska[begin + 1] + 10]) + matroska[begin + 2 : end] + shown + matroska[end:]
    assert len(wide) == len(matroska) and quarters(decode_clip(wide, 2, 8)) == ("RGBK", (64, 192))
    mp4 = made("1/1")
    assert quarters(decode_clip(mp4.replace(PASP, struct.pack(">I4sII", 16, b"pasp", 1, 3)), 2, 8))[1] == (192, 96)


@pytest.mark.parametrize("across, down", [(1000, 1), (1, 1000), (0, 1), (1, 0), (2**32 - 1, 1), (1008, 1000)])
def test_absurd_pixels_are_taken_for_square(across, down):
    mp4 = made("1/1")
    assert PASP in mp4
    media = mp4.replace(PASP, struct.pack(">I4sII", 16, b"pasp", across, down))
    assert torch.equal(decode_clip(media, 2, 8), decode_clip(mp4, 2, 8))


def test_turned_pixels_that_are_not_square():
    for matrix, shown in MATRICES.items():
        media = made("2/1", matrix=matrix)
        assert quarters(decode_clip(media, 1, 8)) == (shown, (192, 64) if matrix[0] == 0 else (64, 192))


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0)])
@pytest.mark.parametrize("aspect", ["3/1", "1/3"])
def test_a_view_is_of_square_pixels(aspect, matrix):
    """It is asked with the size that is shown, and a part of it is that part of all of it."""
    media, asked = made(aspect, matrix=matrix), []

    def part(height, width):
        asked.append((height, width))
        return Cut((height // 3, width // 3, height // 3, width // 3), (height // 3, width // 3))

    full = decode_clip(media, 1, 8)
    assert decode_clip(media, 1, 8, view=part).shape[2:] == (full.shape[2] // 3, full.shape[3] // 3)
    assert asked == [tuple(full.shape[2:])]
    height, width = asked[0]
    near = full[..., height // 3 :, width // 3 :][..., : height // 3, : width // 3]
    assert (decode_clip(media, 1, 8, view=part).int() - near.int()).abs().double().mean() < 10


def test_one_row_of_a_stretched_picture():
    media = made("1/3")
    for top in (0, 100, 191):
        row = decode_clip(media, 1, 8, view=lambda h, w, top=top: Cut((top, 0, 1, w), (1, w)))
        assert row.shape == (3, 1, 1, 96)


def test_pixels_that_change_their_shape_are_named():
    one, other = made("1/1", "h264"), made("2/1", "h264")
    with pytest.raises(BadSample, match=r"change from \(64, 96\) to \(64, 192\) rows and columns"):
        check(one + other, "video")


def test_a_stretched_picture_is_no_larger_than_is_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", HEIGHT * WIDTH)
    assert decode_clip(made(), 1, 8).shape == (3, 1, 64, 96)
    with pytest.raises(BadSample, match="288 x 64 pixels"):
        decode_clip(made("3/1"), 1, 8)
