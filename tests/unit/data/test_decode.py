import io
import struct

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image
from videos import moving, numbered, numbers

from scaleup.data import decode, pictures
from scaleup.data.decode import BadSample, check, decode_clip, decode_clips, decode_image
from scaleup.data.pictures import Cut, whole_view


def shown(stamps, times):
    """The obvious rule: at every time the last frame that has appeared."""
    return [max(i for i, stamp in enumerate(stamps) if stamp <= time + 1e-6) for time in times]


@pytest.mark.parametrize("fps", [10, 5, 20, 7.5, 3.3])
@pytest.mark.parametrize("start", [0, 0.37, 1])
def test_frames_are_those_on_screen_at_the_wanted_times(fps, start):
    stamps = [i / 10 for i in range(20)]
    slack = max(0, 1.9 - 5 / fps)
    expected = shown(stamps, [start * slack + k / fps for k in range(6)])
    assert numbers(decode_clip(numbered(20), 6, fps, start)) == expected


def test_variable_rate_goes_by_timestamps():
    stamps = [0, 1, 2, 10, 11, 12]
    assert numbers(decode_clip(numbered(6, stamps=stamps), 13, 10)) == shown(stamps, range(13))


def test_start_1_ends_with_the_last_frame_and_0_begins_with_the_first():
    clips = decode_clips(numbered(20), 4, 10, [0, 1])
    assert [numbers(clip) for clip in clips] == [[0, 1, 2, 3], [16, 17, 18, 19]]


@pytest.mark.parametrize("start", [0, 0.5, 1])
def test_a_short_video_repeats_its_last_frame(start):
    assert numbers(decode_clip(numbered(3), 6, 10, start)) == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "options",
    [{"g": "4", "bf": "2", "crf": "4"}, {"g": "5", "bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}],
    ids=["closed", "open"],
)
def test_decoding_from_a_later_key_frame_gives_the_same_frames(options):
    video = numbered(20, options=options)
    whole = decode_clip(video, 20, 10)
    for begin in range(17):
        assert numbers(decode_clip(video, 4, 10, begin / 16)) == list(range(begin, begin + 4))
        assert torch.equal(decode_clip(video, 4, 10, begin / 16), whole[:, begin : begin + 4])


CODECS = {
    "h264": {},
    "pyramid": {"options": {"g": "30", "x264-params": "bframes=8:ref=6:b-pyramid=normal"}},
    "open": {"options": {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=strict"}},
    "interlaced": {"options": {"x264-params": "interlaced=1"}},
    "vp9": {"codec": "libvpx-vp9", "container": "webm"},
    "av1": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "avi": {"codec": "mpeg4", "container": "avi", "options": {"bf": "2"}},
    "mjpeg": {"codec": "mjpeg", "container": "matroska", "pix_fmt": "yuvj420p"},
}


@pytest.mark.parametrize("case", CODECS)
def test_decoding_only_what_is_needed_gives_what_decoding_everything_gives(case):
    video = moving(**CODECS[case])
    whole_video = decode_clip(video, 40, 10)  # (3, 40, H, W)
    for begin in range(0, 25, 3):
        assert torch.equal(decode_clip(video, 8, 5, begin / 25), whole_video[:, begin : begin + 16 : 2])


def test_frames_that_nobody_needs_are_not_decoded():
    """Garbage in them is no trouble: those before the key frame, after the clip, and those that none refers to."""
    options = {"g": "12", "preset": "veryfast", "x264-params": "bframes=2:b-adapt=0:b-pyramid=none:scenecut=0"}
    video = moving(options=options)  # I at 0, 12, 24, 36, then B B P B B P; the clip is 29 and 30
    hurt, needed = bytearray(video), {0, 24, 27, 29, 30}  # 0: a video begins with what can be decoded
    with av.open(io.BytesIO(video)) as file:
        for packet in file.demux(video=0):
            if packet.size and round(packet.pts * packet.time_base * 10) not in needed:
                hurt[packet.pos + 5 : packet.pos + packet.size] = b"\xff" * (packet.size - 5)  # all but its type
    assert torch.equal(decode_clip(bytes(hurt), 2, 10, 29 / 38), decode_clip(video, 40, 10)[:, 29:31])


@pytest.mark.parametrize("container, codec", [("avi", "mpeg4"), ("matroska", "libx264"), ("h264", "libx264")])
def test_other_containers_and_missing_timestamps(container, codec):
    video = numbered(12, fps=25, container=container, codec=codec, options={"bf": "0"})
    assert numbers(decode_clip(video, 5, 25, 1)) == [7, 8, 9, 10, 11]


def test_shrinks_the_short_side_and_never_enlarges():
    video = numbered(3, height=64, width=96)
    assert decode_clip(video, 2, 10, view=whole_view(32)).shape == (3, 2, 32, 48)
    assert decode_clip(video, 2, 10, view=whole_view(200)).shape == (3, 2, 64, 96)
    image = io.BytesIO()
    Image.new("RGB", (96, 64)).save(image, "png")
    assert decode_image(image.getvalue(), short=32).shape == (3, 32, 48)
    assert decode_image(image.getvalue(), short=200).shape == (3, 64, 96)


def test_image_pixels_and_orientation():
    pixels = np.random.default_rng(0).integers(0, 255, (6, 4, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    plain, turned = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(plain, "png")
    Image.fromarray(pixels).save(turned, "png", exif=exif)
    assert np.array_equal(decode_image(plain.getvalue()).permute(1, 2, 0), pixels)
    assert np.array_equal(decode_image(turned.getvalue()).permute(1, 2, 0), np.rot90(pixels, -1))


def test_a_rotation_flag_turns_the_video():
    """A phone's upright video: its matrix says to show it a quarter turn clockwise."""
    bars = io.BytesIO()
    with av.open(bars, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        pixels = np.zeros((32, 64, 3), np.uint8)
        pixels[:8] = 255  # the top is white
        file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    flat = bars.getvalue()
    matrix = flat.index(b"tkhd") + 4 + 40
    turned = flat[:matrix] + struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30) + flat[matrix + 36 :]
    upright = decode_clip(turned, 1, 10)
    assert torch.equal(upright, decode_clip(flat, 1, 10).rot90(-1, (2, 3)))
    assert upright.shape == (3, 1, 64, 32) and upright[..., -8:].min() > 200  # the white is on the right


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "CMYK"])
def test_every_kind_of_image_becomes_rgb(mode):
    image = io.BytesIO()
    Image.new(mode, (8, 6)).save(image, "tiff")
    assert decode_image(image.getvalue()).shape == (3, 6, 8)


def sound_only():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def no_frames():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        file.start_encoding()
    return buffer.getvalue()


@pytest.mark.parametrize("make", [lambda: b"", lambda: b"<html>not found</html>" * 50, sound_only, no_frames])
def test_what_cannot_be_decoded_is_a_bad_sample(make):
    for read in (lambda data: decode_clip(data, 4, 10), decode_image):
        with pytest.raises(BadSample) as error:
            read(make())
        assert str(error.value) and "\n" not in str(error.value)


def test_damage_anywhere_is_a_bad_sample_or_harmless():
    rng = np.random.default_rng(0)
    video, image = numbered(8), io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(image, "png")
    bad = 0
    for data, read in [(video, lambda data: decode_clip(data, 4, 10)), (image.getvalue(), decode_image)] * 60:
        hurt = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        for place in rng.integers(len(hurt), size=8) if hurt else []:
            hurt[place] = rng.integers(256)
        try:
            assert read(bytes(hurt)).dtype == torch.uint8
        except BadSample:
            bad += 1
    assert bad > 60


def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
    image = io.BytesIO()
    Image.new("1", (40, 40)).save(image, "png")
    video = numbered(2, height=40, width=40)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    with pytest.raises(BadSample, match="40 x 40 pixels"):
        decode_image(image.getvalue())
    monkeypatch.setattr(decode, "_seek", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadSample, match="40 x 40 pixels"):
        decode_clip(video, 2, 10)


def test_check_decodes_to_the_end():
    """Damage in the last frame is no trouble to a clip from the beginning, but is found."""
    video = numbered(20, options={"g": "5", "preset": "ultrafast"})
    with av.open(io.BytesIO(video)) as file:
        last = [packet for packet in file.demux(video=0) if packet.size][-1]
        place, size = last.pos, last.size
    hurt = video[: place + 4] + b"\xff" * (size - 4) + video[place + size :]
    assert numbers(decode_clip(hurt, 3, 10)) == [0, 1, 2]
    check(video, "video")
    with pytest.raises(BadSample):
        check(hurt, "video")


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "gray", "yuv444p", "yuv422p", "yuva420p", "rgb24", "gray10le"])
def test_every_kind_of_pixel_becomes_rgb(pix_fmt):
    """10 bit, gray, alpha, unsampled colours: a red and a gray half keep what they can of their colour."""
    pixels = np.full((32, 48, 3), 90, np.uint8)
    pixels[:, :24] = (200, 30, 40)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "bgr0" if pix_fmt == "rgb24" else pix_fmt
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    clip = decode_clip(buffer.getvalue(), 2, 10)
    assert clip.shape == (3, 2, 32, 48) and torch.equal(clip[:, 0], clip[:, 1])
    found = clip[:, 0, :, 4:20].double().mean((1, 2)), clip[:, 0, :, 28:44].double().mean((1, 2))
    red = torch.tensor([200.0, 30, 40]) if "gray" not in pix_fmt else torch.full((3,), 82.0)
    assert (found[0] - red).abs().max() < 4 and (found[1] - 90).abs().max() < 4


@pytest.mark.parametrize("colorspace, color_range", [(1, 1), (5, 1), (1, 2), (5, 2)])
def test_colours_are_converted_by_their_matrix_and_range(colorspace, color_range):
    """BT.709 (1) and BT.601 (5), limited (1) and full (2): the formula of ITU-R BT.601 and 709."""
    y, cb, cr = 120, 100, 180
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, color_range
        frame = av.VideoFrame(32, 32, "yuv444p")
        for plane, value in zip(frame.planes, (y, cb, cr), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.colorspace, frame.color_range = colorspace, color_range
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    kr, kb = (0.2126, 0.0722) if colorspace == 1 else (0.299, 0.114)
    luma, chroma = ((y - 16) / 219, 224) if color_range == 1 else (y / 255, 255)
    red, blue = luma + 2 * (1 - kr) * (cr - 128) / chroma, luma + 2 * (1 - kb) * (cb - 128) / chroma
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    found = decode_clip(buffer.getvalue(), 1, 10).double().mean((1, 2, 3))
    assert (found - 255 * torch.tensor([red, green, blue]).double()).abs().max() < 3


@pytest.mark.parametrize("height, width", [(33, 47), (34, 47), (33, 48), (2, 2)])
def test_odd_sizes(height, width):
    video = moving(6, height=height, width=width, pix_fmt="yuv444p")
    assert decode_clip(video, 2, 10).shape == (3, 2, height, width)
    box = decode_clip(video, 2, 10, view=lambda h, w: Cut((1, 0, h - 1, w - 1), (h - 1, w - 1)))
    assert box.shape == (3, 2, height - 1, width - 1)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_a_view_is_that_part_of_the_picture(pix_fmt):
    """Cropping before the conversion gives what cropping after it gives, scaling what an antialiased resize gives."""
    video = moving(6, height=64, width=96, pix_fmt=pix_fmt, options={"crf": "1"})
    full = decode_clip(video, 3, 10)
    box = decode_clip(video, 3, 10, view=lambda h, w: Cut((10, 20, 30, 40), (30, 40)))
    assert (box.int() - full[..., 10:40, 20:60].int()).abs().double().mean() < (6 if pix_fmt == "yuv420p" else 0.1)
    half = decode_clip(video, 3, 10, view=lambda h, w: Cut((10, 20, 30, 40), (15, 20)))
    slow = full[..., 10:40, 20:60].double().transpose(0, 1)  # (T, 3, H, W)
    slow = torch.nn.functional.interpolate(slow, (15, 20), mode="bilinear", antialias=True).transpose(0, 1)
    assert (half.double() - slow).abs().mean() < (16 if pix_fmt == "yuv420p" else 3)  # of 255, on noise


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_view_is_of_the_upright_picture(turn):
    flat = moving(4, height=32, width=64, options={"crf": "1"})
    matrix = flat.index(b"tkhd") + 4 + 40
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]  # clockwise
    turned = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    video = flat[:matrix] + turned + flat[matrix + 36 :]
    upright = decode_clip(video, 1, 10)
    assert torch.equal(upright, decode_clip(flat, 1, 10).rot90(-turn // 90, (2, 3)))
    box = decode_clip(video, 1, 10, view=lambda h, w: Cut((2, 4, h - 8, w - 12), (h - 8, w - 12)))
    near = upright[:, :, 2:, 4:][..., : upright.shape[2] - 8, : upright.shape[3] - 12]
    assert (box.int() - near.int()).abs().double().mean() < 6


def test_pictures_that_change_their_size_are_named():
    one, other = (moving(3, container="h264", height=height, options={"bf": "0"}) for height in (32, 48))
    with pytest.raises(BadSample, match=r"change from \(32, 64\) to \(48, 64\) rows and columns"):
        check(one + other, "video")
    with pytest.raises(BadSample, match="change from"):
        decode_clip(one + other, 6, 10)


def test_sound_with_a_cover_is_no_video():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        sound, picture = file.add_stream("aac", rate=8000), file.add_stream("png", rate=1)
        picture.height, picture.width, picture.pix_fmt = 16, 16, "rgb24"
        picture.disposition = Disposition.attached_pic.value
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        file.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        file.mux(picture.encode(None))
        file.mux(sound.encode(frame))
        file.mux(sound.encode(None))
    with pytest.raises(BadSample, match="no video stream"):
        decode_clip(buffer.getvalue(), 2, 10)


def test_one_frame_and_no_duration():
    assert numbers(decode_clip(numbered(1), 4, 10, 0.7)) == [0, 0, 0, 0]
    stream = moving(12, container="h264", options={"bf": "0"})  # bare H.264 has no times and no duration
    assert decode_clip(stream, 4, 25, 0.5).shape == (3, 4, 48, 64)
