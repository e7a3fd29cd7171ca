"""Stamps that cannot be true are not believed, those that can are, and everyone goes by the same rule."""

import io
import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from videos import numbered, numbers

from scaleup.config.schema import Input
from scaleup.data.decode import check, decode_clip
from scaleup.data.encode import Encoding, encoded
from scaleup.data.playback import DEFAULT_RATE, MAX_GAP, Clock, Stamps, period
from scaleup.data.stream import clips, frames

FPS = 10
DAYS = 10_000_000  # frames; 11 days


def seconds(stamps, period=1.0):
    clock = Clock(period)
    return [clock(stamp) for stamp in stamps]


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([5, 6, 7.5, 8], [5, 6, 7.5, 8]),
        ([-2, -1, 0, 655, 656], [-2, -1, 0, 655, 656]),
        ([0, 1e9, 1e9 + 1, 1e9 + 3], [0, 1, 2, 4]),
        ([1e9, 0, 1, 3], [1e9, 1e9 + 1, 1e9 + 2, 1e9 + 4]),
        ([0, 1, 1e9, 3, 4.5], [0, 1, 2, 3, 4.5]),
        ([0, 1, 2, -1e9, 4], [0, 1, 2, 3, 4]),
        ([7, 7, 7, 7], [7, 8, 9, 10]),
        ([0, 1, 1, 1, 4, 5], [0, 1, 2, 3, 4, 5]),
        ([0, 1, 2, 0, 1, 2.5], [0, 1, 2, 3, 4, 5.5]),
        ([None, None, None], [0, 1, 2]),
        ([0, 1, None, None, 4], [0, 1, 2, 3, 4]),
        ([0, 1e-5, 2e-5, 3e-5], [0, 1, 2, 3]),
        ([0, 1, None, 2, 3], [0, 1, 2, 2, 3]),  # it never runs ahead of the stamps for long
    ],
)
def test_a_clock(stamps, expected):
    assert seconds(stamps) == expected


def test_a_stamp_that_goes_back_is_replaced_by_the_time_of_decoding():
    stamps = Stamps()
    assert [stamps(*pair) for pair in [(1, 1), (2, 2), (5, 3), (4, 5), (6, 6), (8, 7), (7, 8)]] == [1, 2, 5, 5, 6, 7, 8]
    stamps = Stamps()  # without such times there is no choice
    assert [stamps(*pair) for pair in [(1, None), (0, None), (None, 3)]] == [1, 0, 3]


def test_a_rate_that_cannot_be_true_is_not_used():
    class Stream:
        guessed_rate, average_rate = Fraction(90000), Fraction(24)

    assert period(Stream) == 1 / 24
    Stream.guessed_rate = Fraction(3, 4)  # FFmpeg 8.0, of stamps that are days apart
    assert period(Stream) == 1 / 24
    Stream.guessed_rate, Stream.average_rate = Fraction(90000), None
    assert period(Stream) == 1 / 25
    Stream.guessed_rate = Fraction(0)
    assert period(Stream) == 1 / 25


def remuxed(data, stamp, container="matroska", early=False):
    """The same packets; packet i of stamp s has ``stamp(i, s)``, in frames, and with ``early`` is decoded at i."""
    file, options = io.BytesIO(), {"avoid_negative_ts": "disabled"}
    with av.open(io.BytesIO(data)) as given, av.open(file, "w", format=container, options=options) as made:
        source = given.streams.video[0]
        stream = made.add_stream_from_template(source)
        tick = 1 / (FPS * source.time_base)
        for number, packet in enumerate(p for p in given.demux(source) if p.size):
            packet.pts = round(stamp(number, round(packet.pts / tick)) * tick)
            packet.dts = round(number * tick) if early else packet.pts
            packet.stream = stream
            made.mux(packet)
    return file.getvalue()


def film(count=16, **settings):
    return numbered(count, FPS, container="matroska", options={"bf": "0", "g": "6", "crf": "4"}, **settings)


def joined(container, codec, **options):
    def piece(first):
        return numbered(
            8, FPS, container=container, codec=codec, options={"g": "5", "crf": "4", **options}, first=first
        )

    return piece(0) + piece(8)


UNTRUE = {
    "the first far before": lambda: remuxed(film(), lambda i, s: s + DAYS * (i > 0)),
    "a leap in the middle": lambda: remuxed(film(), lambda i, s: s + DAYS * (i > 7)),
    "the last far behind": lambda: remuxed(film(), lambda i, s: s + DAYS * (i == 15)),
    "one astray": lambda: remuxed(film(), lambda i, s: 20 + s + DAYS * (i == 7), early=True),
    "all at once": lambda: remuxed(film(), lambda i, s: 0),
    "some at once": lambda: remuxed(film(), lambda i, s: 4 if 4 < i < 8 else s),
    "days apart": lambda: remuxed(film(), lambda i, s: DAYS * s),
    "begins anew": lambda: remuxed(film(), lambda i, s: 20 + s % 8, early=True),
    "goes back a little": lambda: remuxed(film(), lambda i, s: 20 + s - 3 * (i > 7), early=True),
    "joined, MPEG": lambda: joined("mpeg", "mpeg2video", bf="0"),
    "joined, MPEG, B-frames": lambda: joined("mpeg", "mpeg2video", bf="2"),
    "joined, TS": lambda: joined("mpegts", "libx264", bf="0"),
    "joined, TS, B-frames": lambda: joined("mpegts", "libx264", bf="2"),
}


@pytest.mark.parametrize("case", UNTRUE)
def test_times_that_cannot_be_true(case):
    """Every picture is shown once, in order, in training, in prediction and re-encoded, and it is said."""
    video, notes = UNTRUE[case](), []
    assert numbers(decode_clip(video, 16, FPS)) == list(range(16))
    assert numbers(decode_clip(video, 4, FPS, 1)) == [12, 13, 14, 15]
    found = list(itertools.islice(clips(io.BytesIO(video), Input(frames=4, size=[32, 32], fps=FPS), 0.4), 9))
    assert [numbers(clip) for _, clip in found] == [[k, k + 1, k + 2, k + 3] for k in (0, 4, 8, 12)]
    check(video, "video", notes.append)
    assert any("not plausible" in note for note in notes)
    again = encoded(video, "mkv", "video", Encoding(again=True))[1]
    assert numbers(decode_clip(again, 16, FPS)) == list(range(16))


def test_frames_that_are_all_shown_within_a_moment():
    """An MP4 whose ticks are far too short: its rate is out of bounds as well."""
    video, notes = bytearray(numbered(16, FPS, options={"bf": "0", "crf": "4"})), []
    place = video.index(b"mdhd") + 16
    video[place : place + 4] = (2**31 - 1).to_bytes(4, "big")
    check(bytes(video), "video", notes.append)
    assert notes == ["the times of 15 of 16 frames are not plausible; the frame rate is used instead"]
    assert numbers(decode_clip(bytes(video), 16, DEFAULT_RATE)) == list(range(16))
    found = clips(io.BytesIO(video), Input(frames=16, size=[32, 32], fps=DEFAULT_RATE), 1.0)
    assert [numbers(clip) for _, clip in found] == [list(range(16))]


@pytest.mark.parametrize("delay", [0.3, 10, 120, 600])
def test_pictures_that_stand_long_are_believed(delay):
    """Slides, recordings of screens: what is on screen stays there."""
    video, notes = remuxed(film(4), lambda i, s: s * delay * FPS), []
    check(video, "video", notes.append)
    assert not notes
    assert numbers(decode_clip(video, 7, 2 / delay)) == [0, 0, 1, 1, 2, 2, 3]
    found = clips(io.BytesIO(video), Input(frames=7, size=[32, 32], fps=2 / delay), 3.5 * delay)
    assert [numbers(clip) for _, clip in found] == [[0, 0, 1, 1, 2, 2, 3]]


def test_what_a_leap_is_filled_with_is_bounded():
    video = remuxed(film(3), lambda i, s: s + (MAX_GAP + 1) * FPS * (i > 1))
    assert [round(second, 3) for second, _ in frames(io.BytesIO(video))] == [0, 0.1, 0.2]


def test_packets_without_stamps():
    video = numbered(16, FPS, container="h264", options={"bf": "2", "g": "6", "crf": "4"})
    with av.open(io.BytesIO(video)) as file:
        assert all(packet.pts is None for packet in file.demux(video=0))
    assert numbers(decode_clip(video, 16, FPS)) == list(range(16))
    found = clips(io.BytesIO(video), Input(frames=4, size=[32, 32], fps=FPS), 0.4)
    assert [numbers(clip) for _, clip in found] == [[k, k + 1, k + 2, k + 3] for k in (0, 4, 8, 12)]


def test_an_edit_list_hides_the_first_frames():
    """Three frames before second 0, which are decoded for others' sake."""
    video = remuxed(film(16), lambda i, s: s - 3, "mp4")
    assert numbers(decode_clip(video, 13, FPS)) == list(range(3, 16))
    assert [round(second, 3) for second, _ in frames(io.BytesIO(video))] == pytest.approx(np.arange(13) / FPS)
    again = encoded(video, "mp4", "video", Encoding(again=True))[1]
    assert numbers(decode_clip(again, 13, FPS)) == list(range(3, 16))
