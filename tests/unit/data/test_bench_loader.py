import random
from importlib import import_module

import numpy as np
import pytest

from bench import videos
from scaleup.config import schema
from scaleup.data.decode import decode_clip

bench = import_module("bench.loader")  # the package has a function of that name


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(videos, "SECONDS", 2)
    monkeypatch.setattr(videos, "HEIGHT", 64)
    monkeypatch.setattr(videos, "WIDTH", 80)
    monkeypatch.setattr(bench, "INPUT", schema.Input(frames=8, size=[32, 32], fps=15.0))


def test_every_side_decodes_the_same_frames(small):
    video, begin = videos.video(0), 16 / videos.FPS
    plain = bench.sought_frames(video, begin)
    assert plain.shape == (8, 64, 80, 3)
    slack = 59 / videos.FPS - 7 / 15
    ours = decode_clip(video, 8, 15, begin / slack).permute(1, 2, 3, 0).numpy()
    wrong = bench.sought_frames(video, begin + 2 / videos.FPS)
    assert np.abs(ours.mean(-1) - plain.mean(-1)).mean() < 0.3 * np.abs(wrong.mean(-1) - plain.mean(-1)).mean()
    assert 0 <= bench._begin(random.Random(0)) < 2 - 9 / 15


@pytest.mark.all
def test_figures_of_every_side(small, tmp_path):
    result = bench.loader(str(tmp_path), count=4, clips=4, workers=1, repeats=1, samples=40)
    sides = {row["side"]: row for row in result["rows"]}
    assert {"pyav", "webdataset", "decode_only", "memory"} <= sides.keys()
    speeds = result["clips_per_second"]
    assert speeds.keys() == {"ours", "pyav", "decord", "torchcodec", "webdataset", "decode_only"} and speeds["ours"] > 0
    for name in ("pyav", "webdataset", "decode_only"):
        assert speeds[name] == pytest.approx(4 / sides[name]["other_seconds"]) and sides[name]["ratio"] > 0
        assert sides[name]["cpu_ratio"] > 0
    assert sides["memory"]["samples"] == 40 and sides["memory"]["early_bytes"] > 10**8
    assert abs(sides["memory"]["growth"]) < 0.3  # the same processes are counted both times
    assert [set(goal) for goal in result["goals"]] == [{"what", "measured", "at_most", "met"}] * 2


def test_copied_videos_are_those_that_are_re_encoded(small, tmp_path):
    again, copied = videos.videos_in(tmp_path / "again", 1), videos.videos_in(tmp_path / "copied", 1, copied=True)
    one, other = again.read(0).media, copied.read(0).media
    assert other == videos.video(0) != one
    assert bench._frames_needed(one, bench._begin(random.Random(3))) == 8
    difference = decode_clip(one, 8, 15).float() - decode_clip(other, 8, 15).float()
    assert difference.abs().mean() < 6
