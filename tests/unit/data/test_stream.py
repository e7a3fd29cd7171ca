"""Clips of a video that is read as it comes: against what the decoder of whole files gives."""

import io

import numpy as np
import pytest
import torch
from videos import moving, numbered, numbers

from scaleup.config.schema import Input
from scaleup.data.augment import eval_views
from scaleup.data.decode import decode_clip
from scaleup.data.pictures import BadSample
from scaleup.data.stream import clips, frames

INPUT = Input(frames=4, size=[32, 32], fps=10)


def found(media: bytes, input: Input, hop: float) -> list[tuple[float, list[int]]]:
    return [(round(second, 6), numbers(clip)) for second, clip in clips(io.BytesIO(media), input, hop)]


def test_clips_follow_one_another_and_the_last_ends_with_the_video() -> None:
    media = numbered(11)
    assert found(media, INPUT, 0.4) == [(0.0, [0, 1, 2, 3]), (0.4, [4, 5, 6, 7]), (0.7, [7, 8, 9, 10])]
    assert found(media, INPUT, 0.3) == [
        (0.0, [0, 1, 2, 3]),
        (0.3, [3, 4, 5, 6]),
        (0.6, [6, 7, 8, 9]),
        (0.7, [7, 8, 9, 10]),
    ]
    assert found(numbered(8), INPUT, 0.4) == [(0.0, [0, 1, 2, 3]), (0.4, [4, 5, 6, 7])]
    assert found(numbered(12), INPUT, 0.8) == [(0.0, [0, 1, 2, 3]), (0.8, [8, 9, 10, 11])]


def test_a_short_video_repeats_its_last_frame() -> None:
    assert found(numbered(2), INPUT, 0.4) == [(0.0, [0, 1, 1, 1])]
    assert found(numbered(1), INPUT, 0.4) == [(0.0, [0, 0, 0, 0])]


@pytest.mark.parametrize(("rate", "stamps"), [(5, None), (30, None), (10, [0, 1, 2, 7, 8, 9, 13, 14, 15])])
def test_time_counts_not_frames(rate: int, stamps: list[int] | None) -> None:
    """As decode_clip, which reads the whole file, says of a clip that begins with the video."""
    media = numbered(9, fps=rate, stamps=stamps)
    first = next(clips(io.BytesIO(media), INPUT, 0.4))[1]
    assert numbers(first) == numbers(decode_clip(media, 4, 10, 0.0))


def test_one_clip_of_a_wide_video_is_the_view_that_evaluation_takes() -> None:
    media = moving(frames=4)
    ((_, clip),) = clips(io.BytesIO(media), INPUT, 0.4)
    assert torch.equal(clip, eval_views(media, "video", INPUT, 1, 1)[0])


def test_a_stream_is_answered_before_it_ends() -> None:
    media, read = moving(frames=400, container="matroska", options={"g": "10", "tune": "zerolatency"}), []

    class Camera(io.RawIOBase):
        def __init__(self) -> None:
            self.rest = io.BytesIO(media)

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:  # no seek, no tell: a pipe
            read.append(size)
            return self.rest.read(size)

    next(clips(Camera(), INPUT, 0.4))
    assert sum(read) < len(media)


def test_what_is_no_video_is_named() -> None:
    with pytest.raises(BadSample, match="not a readable video: Invalid data"):
        list(frames(io.BytesIO(np.random.default_rng(0).bytes(4000))))
    with pytest.raises(BadSample, match="not a readable video: No such file"):
        list(frames("/nowhere/film.mp4"))
