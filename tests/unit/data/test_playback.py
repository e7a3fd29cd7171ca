"""What counts as a readable video: from where, how much of it, which of its streams. One rule for all who read."""

import io

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image
from videos import moving, numbered, numbers

from scaleup.config.schema import Input
from scaleup.data.decode import BadSample, check, decode_clip
from scaleup.data.encode import Encoding, encoded
from scaleup.data.stream import clips, frames

FPS = 10


def remuxed(data, container, kept=lambda number: True, changed=lambda number, packet: packet):
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as given, av.open(file, "w", format=container) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(p for p in given.demux(video=0) if p.size):
            if kept(number):
                packet = changed(number, packet)
                packet.stream = stream
                made.mux(packet)
    return file.getvalue()


def damaged(data, container, which):
    """With other bytes in the packets ``which``."""

    def changed(number, packet):
        if number not in which:
            return packet
        hurt = av.Packet(bytes(packet)[:8] + b"\xff" * (packet.size - 8))
        hurt.pts, hurt.dts, hurt.time_base = packet.pts, packet.dts, packet.time_base
        hurt.is_keyframe = packet.is_keyframe
        return hurt

    return remuxed(data, container, changed=changed)


def everyone(video):
    """Why each reader refuses it; None: it does not."""
    input = Input(frames=4, size=[32, 32], fps=FPS)
    readers = {
        "check": lambda: check(video, "video"),
        "encode": lambda: encoded(video, "mp4", "video", Encoding(again=True)),
        "train": lambda: decode_clip(video, 400, FPS),
        "predict": lambda: list(clips(io.BytesIO(video), input, 0.4)),
    }
    said = {}
    for name, read in readers.items():
        try:
            read()
            said[name] = None
        except BadSample as error:
            said[name] = str(error)
    return said


def notes_of(video):
    notes = []
    check(video, "video", notes.append)
    return notes


HEADLESS = {
    "h264": ("libx264", "matroska", {"g": "8", "bf": "0"}),
    "h264, B-frames": ("libx264", "matroska", {"g": "8", "bf": "2"}),
    "h264, TS": ("libx264", "mpegts", {"g": "8", "bf": "2"}),
    "hevc": ("libx265", "matroska", {"x265-params": "keyint=8:log-level=none"}),
    "vp9": ("libvpx-vp9", "webm", {"g": "8"}),
    "vp8": ("libvpx", "webm", {"g": "8"}),
    "intra refresh": ("libx264", "matroska", {"x264-params": "intra-refresh=1:keyint=8:bframes=0"}),
}


@pytest.mark.parametrize("case", HEADLESS)
def test_a_video_begins_with_the_first_frame_that_can_be_decoded(case):
    codec, container, options = HEADLESS[case]
    whole = numbered(20, FPS, 64, 64, container, codec, options={"crf": "4", **options})
    video = remuxed(whole, container, kept=lambda number: number > 2)
    first = numbers(
        torch.from_numpy(next(frames(io.BytesIO(video)))[1].to_ndarray(format="rgb24")).permute(2, 0, 1)[:, None]
    )
    expected = list(range(first[0], 20))
    assert first[0] > 3
    assert numbers(decode_clip(video, len(expected), FPS)) == expected
    assert numbers(decode_clip(video, 3, FPS, 1)) == expected[-3:]
    assert any("cannot be decoded" in note for note in notes_of(video))
    assert set(everyone(video).values()) == {None}


@pytest.mark.parametrize(
    ("codec", "container"), [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("mpeg4", "avi"), ("mjpeg", "matroska")]
)
def test_few_damaged_frames_are_noted_and_not_shown_many_are_refused_by_all(codec, container):
    settings = {"pix_fmt": "yuvj420p"} if codec == "mjpeg" else {"options": {"g": "10", "bf": "0"}}
    video = moving(120, codec, container, 96, 96, **settings)
    few, many = damaged(video, container, {64}), damaged(video, container, {14, 35, 64, 65, 66})
    assert everyone(video) == dict.fromkeys(everyone(video))
    if codec == "mjpeg":  # which tells no damage from another picture
        return
    assert set(everyone(few).values()) == {None}
    assert notes_of(few) == ["1 of 120 frames are damaged and not shown"]
    good = decode_clip(video, 120, FPS)
    assert torch.equal(decode_clip(few, 120, FPS)[:, 64], good[:, 63])
    assert set(everyone(many).values()) == {"5 of 120 frames are damaged"}


def cut(tmp_path, container, share):
    """A video whose header is at its beginning, and what is left of it."""
    path = tmp_path / "film"
    settings = {"movflags": "faststart"} if container == "mp4" else {}
    film = io.BytesIO(moving(100, height=96, width=96))
    with av.open(film) as given, av.open(str(path), "w", format=container, options=settings) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    return path.read_bytes()[: int(path.stat().st_size * share)]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_video_that_ends_early_is_named_by_all(tmp_path, container):
    video, most, half = (cut(tmp_path, container, share) for share in (1, 0.95, 0.6))
    assert not notes_of(video) and set(everyone(video).values()) == {None}
    for reason in everyone(half).values():
        assert reason.startswith("ends early: ") and reason.endswith(" of 10.0 seconds")
    assert notes_of(most)[0].startswith("ends early: it has 9.") and set(everyone(most).values()) == {None}


@pytest.mark.parametrize(("container", "codec", "first"), [("webm", "libvpx-vp9", 6), ("mp4", "mpeg4", 1)])
def test_a_clip_does_not_begin_before_a_damaged_key_frame_is_over(container, codec, first):
    video = numbered(16, FPS, container=container, codec=codec, options={"g": "6", "crf": "4", "bf": "0"})
    with av.open(io.BytesIO(video)) as file:
        key = bytes(next(file.demux(video=0)))
    video = video.replace(key, b"\xff" * len(key), 1)
    assert numbers(decode_clip(video, 8, FPS)) == list(range(first, first + 8))
    assert numbers(next(clips(io.BytesIO(video), Input(frames=8, size=[32, 32], fps=FPS), 1))[1])[0] == first


def test_packets_before_second_zero_without_stamps_are_there():
    """Matroska's blocks may come before its clusters; FFmpeg then gives them no time."""
    video = bytearray(numbered(16, 8, container="matroska", options={"bf": "0", "crf": "4"}))
    place = video.index(bytes.fromhex("1f43b675"))
    for time in range(0, 2000, 125):
        place = video.index(b"\x81" + time.to_bytes(2, "big"), place)
        video[place + 1 : place + 3] = (time - 1000).to_bytes(2, "big", signed=True)
    assert set(everyone(bytes(video)).values()) == {None}


def test_a_video_without_a_decoder_is_named_by_all():
    video = moving(4).replace(b"avc1", b"none").replace(b"avcC", b"none")
    assert set(everyone(video).values()) == {"FFmpeg has no decoder for its video stream"}


def two_streams(first, second, dispositions=(None, None), container="matroska"):
    """Two streams of one colour each: (colour, size, number of frames)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        made = []
        for (_, size, _), disposition in zip((first, second), dispositions, strict=True):
            stream = file.add_stream("mjpeg", rate=FPS)
            stream.height = stream.width = size
            stream.pix_fmt = "yuvj420p"
            if disposition is not None:
                stream.disposition = disposition.value
            made.append(stream)
        for stream, (gray, size, count) in zip(made, (first, second), strict=True):
            for _ in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), gray, np.uint8), format="rgb24")
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    return buffer.getvalue()


NONE = Disposition(0)
STREAMS = {
    "the larger": ((50, 32, 8), (200, 64, 8), (None, None), "matroska"),
    "the default": ((50, 64, 8), (200, 32, 8), (NONE, Disposition.default), "matroska"),
    "the first of equals": ((200, 32, 8), (50, 32, 8), (None, None), "matroska"),
    "a cover first": ((50, 96, 1), (200, 32, 8), (Disposition.attached_pic, None), "mp4"),
    "a still first": ((50, 96, 1), (200, 32, 8), (None, None), "mp4"),
}


@pytest.mark.parametrize("case", STREAMS)
def test_of_several_streams_that_which_a_player_shows(case):
    video = two_streams(*STREAMS[case])
    assert abs(decode_clip(video, 4, FPS).double().mean() - 200) < 4
    assert all(abs(frame.to_ndarray(format="gray").mean() - 200) < 20 for _, frame in frames(io.BytesIO(video)))
    check(video, "video")


def animation(kind, delays):
    pictures = [Image.new("RGB", (32, 32), (10 + 12 * i,) * 3) for i in range(len(delays))]
    file = io.BytesIO()
    pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], duration=delays, loop=0)
    return file.getvalue()


def test_a_gif_is_a_video_and_its_delays_are_kept():
    video = animation("GIF", [100, 200, 100, 15000, 100])
    assert not notes_of(video)
    assert [round(second, 2) for second, _ in frames(io.BytesIO(video))] == [0, 0.1, 0.3, 0.4, 15.4]
    assert numbers(decode_clip(video, 5, 10)) == [0, 1, 1, 2, 3]
    ending, again = encoded(video, "gif", "video", Encoding(again=True))
    assert ending == "mp4" and numbers(decode_clip(again, 5, 10)) == [0, 1, 1, 2, 3]


def test_a_picture_that_changes_its_size_is_named_by_all():
    one, other = (moving(8, container="mpegts", height=height, options={"bf": "0"}) for height in (32, 48))
    assert all("change from (32, 64) to (48, 64)" in reason for reason in everyone(one + other).values())


def test_fields_are_woven_as_they_come():
    """An interlaced picture keeps its rows, and everyone reads the same."""
    video = moving(8, "mpeg2video", "mpegts", options={"flags": "+ildct+ilme", "top": "1", "bf": "0"})
    with av.open(io.BytesIO(video)) as file:
        assert next(file.decode(video=0)).interlaced_frame
    ((_, clip),) = clips(io.BytesIO(video), Input(frames=8, size=[48, 64], fps=FPS), 0.8)
    assert torch.equal(clip, decode_clip(video, 8, FPS))
    assert set(everyone(video).values()) == {None}
