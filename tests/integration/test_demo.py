"""The demo from end to end, with few samples and few steps: every stage runs, and the report is whole."""

import json
import math
from dataclasses import asdict

import pytest

import demo
import scaleup
from scaleup.common.errors import UserError
from scaleup.outputs import run_records
from scaleup.training.run_directory import StoppedRun

ARMS = ("head", "attentive", "last1", "last2", "last2_gate")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "VIDEOS", {"train": 20, "val": 5, "test": 7})
        patch.setattr(demo, "IMAGES", {"train": 20, "val": 5})
        patch.setattr(
            demo.costs, "step_flops", lambda _, arms: {n: 1e9 * (9 - a.frozen_depth) for n, a in arms.items()}
        )
        report = demo.demo(out, seed=1, changes=["train.steps=3", "train.warmup=1", "data.batch=4", "data.workers=0"])
    return out, asdict(report)


def test_report_has_every_row_with_real_values(run):
    out, report = run
    assert json.loads((out / "report.json").read_text()) == report
    rows = {(row["name"], row["tubes"]): row for row in report["rows"]}
    assert ("small joint model", "trained") in rows and ("2D patches only", "none") in rows
    swept = {name for name, tubes in rows if tubes == "transplanted"}
    assert swept == {name for name, tubes in rows if tubes == "random"} == set(ARMS)
    assert rows["full", "trained"]["frozen_depth"] == 0
    assert rows["last2_gate", "transplanted"]["alpha"] != 0
    assert all(row["alpha"] is None for row in report["rows"] if not row["gate"])
    # 7 test videos: every accuracy is a number of sevenths
    assert all(math.isclose(row["motion"] * 7, round(row["motion"] * 7), abs_tol=1e-9) for row in report["rows"])
    assert all(0 < row["seconds_share"] <= 1 for row in report["rows"])
    assert report["chance"] == {"shape": 1 / 8, "motion": 1 / 6}


def test_the_cost_of_a_step_is_that_of_the_plan_and_not_of_the_hour(run):
    _, report = run
    cost = {(row["name"], row["tubes"]): row["step_gflop"] for row in report["rows"]}
    for name in ARMS:
        assert cost[name, "transplanted"] == cost[name, "random"]
    assert 0 < cost["last1", "random"] < cost["last2", "random"] < cost["full", "trained"]


def test_the_demo_proves_what_it_claims(run):
    _, report = run
    assert report["image_max_abs_diff"] == 0
    assert report["reload_max_abs_diff"] == 0
    assert max(report["transplant"].values()) < 1e-4
    assert report["best"]["views"] == "4x1" and report["best"]["samples"] == 7


def test_the_run_directory_is_for_people(run):
    out, report = run
    page = (out / "README.md").read_text()
    assert report["best"]["arm"] in page and page.count("\n| ") >= len(report["rows"])
    assert (out / "plot.png").stat().st_size > 10_000
    assert scaleup.load(out / "exported").config.heads.keys() == {"shape", "motion"}


def test_a_report_on_a_sweep_of_the_demo_shows_its_accuracy(run):
    out, report = run
    scores = run_records.read(out / "sweep").scores
    rows = {row["name"]: row for row in report["rows"] if row["tubes"] == "transplanted"}
    assert "videos-test, 1x1 views" in scores.words
    assert all(scores.arms[name] == {head: row[head] for head in ("shape", "motion")} for name, row in rows.items())


def test_the_control_has_tubes_of_the_same_scale_but_other_kernels(run):
    out, _ = run
    reports = [json.loads((out / name / "report.json").read_text()) for name in ("adapted", "control")]
    kernels = [scaleup.load(out / name).tokenizer.tubes["short"].kernel for name in ("adapted", "control")]
    for name, tube in reports[0]["tubes"].items():
        assert math.isclose(tube["rms_adapted"], reports[1]["tubes"][name]["rms_adapted"], rel_tol=1e-3)
    assert (kernels[0] - kernels[1]).abs().max() > 0.01


def test_a_demo_whose_run_is_stopped_ends(tmp_path, monkeypatch):
    """It went on to the next stage, and then said that there were no trained arms."""
    monkeypatch.setattr(demo.costs, "step_flops", lambda *_: {})
    monkeypatch.setattr(demo, "train", lambda *_: StoppedRun("run", steps=3, stopped=2, exit=143))
    monkeypatch.setattr(demo, "VIDEOS", {"train": 4, "val": 2, "test": 2})
    monkeypatch.setattr(demo, "IMAGES", {"train": 4, "val": 2})
    with pytest.raises(KeyboardInterrupt):
        demo.demo(tmp_path / "run")


SETS = ("videos-train", "videos-val", "videos-test", "images-train", "images-val")
REPLACED = [["data/" + name for name in SETS], [], [".data-x1y2.half/videos-train"]]  # whole, and cut off in the first
KEPT = [["data"], ["data/photos", "paper"], ["paper"], ["data/" + name for name in (*SETS, "images-test")]]


@pytest.mark.parametrize("names", [*REPLACED, *KEPT])
def test_only_a_demo_is_replaced(names, tmp_path, monkeypatch):
    def began(_):
        raise ZeroDivisionError

    monkeypatch.setattr(demo.Demo, "run", began)
    out = tmp_path / "out"
    for name in ("", *names):
        (out / name).mkdir(parents=True, exist_ok=True)
    with pytest.raises(ZeroDivisionError if names in REPLACED else UserError):
        demo.demo(out, overwrite=True)
    assert out.exists() == (names in KEPT)
