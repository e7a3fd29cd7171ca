"""tools/probe.py as people and programs call it."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image
from support.runs import metrics, weights
from support.tools import tool

from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.config.schema import Recipe
from scaleup.data.shapes import CLASSES
from scaleup.data.shards import Shards
from scaleup.evaluation.depth_profile import probe
from scaleup.model.build import fresh, load
from scaleup.training.attentive_probe import AttentiveProbe, probe_attentive


@pytest.fixture
def given(tiny: Callable[..., Recipe], tmp_path: Path) -> tuple[Path, str, str]:
    """A model directory, and shards to fit and to score on."""
    settings = tiny()
    model = fresh(settings.model, CLASSES["video"], seed=1).save_pretrained(tmp_path / "model")
    shards = settings.data.train["videos"].shards
    return model, shards, shards


def test_the_profile_is_printed_and_written(given: tuple[Path, str, str], tmp_path: Path) -> None:
    out = tmp_path / "profile"
    done = tool("probe", *given, "--label", "motion", "--depths", 3, 1, "--out", out, "--workers", 0, "--batch", 5)
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


def test_the_attentive_head_is_an_arm_that_other_tools_take(given: tuple[Path, str, str], tmp_path: Path) -> None:
    model, shards, _ = given
    out, clip = tmp_path / "read", tmp_path / "clip.mp4"
    how = ("--views", "2x1", "--batch", 4, "--workers", 0, "--json")
    done = tool("probe", *given, "--read", "attentive", "--steps", 3, "--save", out, *how, ranks=2)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert len(metrics(out)) == read["arm"]["steps"] == 3 and read["arm"]["directory"] == str(out / "model")
    assert read["test"]["views"] == "2x1" and read["test"]["samples"] == 12
    recipe.load(out / "recipe.yaml")

    arm = load(out / "model")
    assert arm.frozen_depth == arm.depth == 3 and arm.config.pool is not None and arm.config.pool.kind == "attentive"
    before, after = weights(model), weights(out / "model")
    assert all(after[name] == before[name] for name in before if name.startswith(("blocks", "tubes")))

    evaluated = tool("evaluate", out, shards, *how)
    scores = json.loads(evaluated.stdout)["arms"]["model"]["heads"]
    assert all(scores[head] == pytest.approx(score) for head, score in read["test"]["heads"].items())
    clip.write_bytes(Shards.open(shards).read(0).media)
    predicted = tool("predict", out / "model", clip, "--head", "motion", "--json")
    assert json.loads(predicted.stdout)["files"][0]["top"], predicted.stderr
    exported = tool("export", out / "model", "--to", "full", "--out", tmp_path / "full")
    assert exported.returncode == 0 and load(tmp_path / "full").config.pool == arm.config.pool, exported.stderr


@pytest.fixture
def read(given: tuple[Path, str, str]) -> Callable[..., AttentiveProbe]:
    """``read(depths=[3], ...)``: an attentive probe of two steps, with these settings."""
    settings = {"steps": 2, "batch": 4, "workers": 0}

    def attentive(**changes: object) -> AttentiveProbe:
        result = probe_attentive(*given, **settings | changes)  # type: ignore[arg-type]
        assert isinstance(result, AttentiveProbe)
        return result

    return attentive


def test_nothing_is_kept_that_was_not_to_be_saved(
    read: Callable[..., AttentiveProbe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    result = read(labels=["motion"], depths=[3])
    assert result.arm.directory is None and list((tmp_path / "temporary").iterdir()) == []
    assert result.test.heads.keys() == {"motion"} and result.arm.frozen_depth == 3


def test_what_does_not_fit_an_attentive_head_is_refused_before_it_trains(
    given: tuple[Path, str, str], read: Callable[..., AttentiveProbe], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"the last depth alone, .*--depths 3$"):
        read(depths=[1, 3])
    with pytest.raises(UserError, match="train.steps: 0.*; data.batch: 0|data.batch: 0.*; train.steps: 0"):
        read(steps=0, batch=0)
    with pytest.raises(UserError, match="views '2' is not CLIPSxCROPS"):
        read(views="2", save=tmp_path / "saved")
    with pytest.raises(UserError, match="exists and is not the directory of a run"):
        read(save=given[0], overwrite=True)
    gated = load(given[0]).with_arm(2, gate=True, heads={})
    gated.arm.gate.alpha.data.fill_(0.25)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"the gate of this model is open \(alpha 0.25\)"):
        probe_attentive(gated.save_pretrained(tmp_path / "gated"), *given[1:], save=tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_saved_run_is_replaced_only_if_asked(read: Callable[..., AttentiveProbe], tmp_path: Path) -> None:
    first, saved = read(save=tmp_path / "saved"), weights(tmp_path / "saved/model")
    with pytest.raises(UserError, match="its run is complete; name another directory .*--overwrite"):
        read(save=tmp_path / "saved")
    assert weights(tmp_path / "saved/model") == saved
    again = read(save=tmp_path / "saved", overwrite=True, steps=3)
    assert (first.arm.steps, again.arm.steps) == (2, 3) and weights(tmp_path / "saved/model") != saved
