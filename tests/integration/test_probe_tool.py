"""tools/probe.py as people and programs call it."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image
from support.tools import tool

from scaleup.config.schema import Recipe
from scaleup.data.shapes import CLASSES
from scaleup.evaluation.depth_profile import probe
from scaleup.model.build import fresh, load


@pytest.fixture
def given(tiny: Callable[..., Recipe], tmp_path: Path) -> tuple[Path, str, str]:
    """A model directory, and shards to fit and to score on."""
    recipe = tiny()
    model = fresh(recipe.model, CLASSES["video"], seed=1).save_pretrained(tmp_path / "model")
    shards = recipe.data.train["videos"].shards
    return model, shards, shards


def test_the_profile_is_printed_and_written(given: tuple[Path, str, str], tmp_path: Path) -> None:
    out = tmp_path / "profile"
    done = tool("probe", *given, "--head", "motion", "--depths", 3, 1, "--out", out, "--workers", 0, "--batch", 5)
    assert done.returncode == 0, done.stderr
    assert "12 samples, 0 failures, 1x1 views" in done.stdout and "a heuristic" in done.stdout
    assert "█" in done.stdout and "reading videos-train: 12/12" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["probe.json", "probe.png"]
    found = json.loads((out / "probe.json").read_text())
    assert [row["depth"] for row in found["labels"]["motion"]["rows"]] == [1, 3]
    assert found["train"]["list_sha256"] in done.stdout and found["labels"].keys() == {"motion"}
    assert Image.open(out / "probe.png").size[0] > 300
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_ranks_share_the_samples_and_agree(given: tuple[Path, str, str]) -> None:
    done = tool("probe", *given, "--json", "--workers", 0, "--batch", 5, ranks=2)
    assert done.returncode == 0, done.stderr
    ours, theirs = probe(load(given[0]), *given[1:], workers=0), json.loads(done.stdout)
    assert theirs["test"]["samples"] == theirs["train_scored"] == 12
    for label, curve in ours.labels.items():
        for one, two in zip(curve.rows, theirs["labels"][label]["rows"], strict=True):
            assert asdict(one) == pytest.approx(two), label


def test_a_mistake_is_a_sentence_and_exit_code_2(given: tuple[Path, str, str], tmp_path: Path) -> None:
    done = tool("probe", *given, "--out", tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "--overwrite" in done.stderr
    assert len(done.stderr.splitlines()) == 1
