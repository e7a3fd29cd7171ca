"""Tables from end to end, with few samples and steps: cut off and gone on with, and rows beside their controls."""

import json
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest
from support.tools import SECONDS, start, tool

from reproduce import page, prepare, publish, reproduce, tasks, work
from reproduce.desk import Desk
from reproduce.tables import RANDOM, Row, Source, Table
from reproduce.tasks import Speed

ROOT = Path(__file__).parent.parent.parent
SHORT = ["train.steps=2", "train.warmup=1", "data.batch=4", "data.workers=0"]


def command(out, *more):
    return ["tools/reproduce.py", "table7f", *SHORT, "--out", str(out), "--samples", "8", "--seeds", "3", *more]


def finished_runs(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/result.json")}


def test_a_table_is_run_through_the_tool_killed_and_gone_on_with(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    first, end = start("reproduce", *command(tmp_path / "out")[1:]), time.monotonic() + SECONDS
    while not finished_runs(tmp_path / "out") and first.alive and time.monotonic() < end:
        time.sleep(0.02)
    first.send(signal.SIGKILL)
    said = first.wait().stderr
    assert "rehearsal 1/1: table7a row=cosine\n" in said
    assert "left: 6 steps of arms in 1 runs, about" in said  # three learning rates
    runs = finished_runs(tmp_path / "out")
    assert runs and not (tmp_path / "out" / "table7f.json").exists(), "killed between training and evaluation"
    monkeypatch.setattr(sys, "argv", command(tmp_path / "out", "--json"))
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path("tools/reproduce.py", run_name="__main__")
    stdout, stderr = capfd.readouterr()
    assert finished_runs(tmp_path / "out") == runs  # nothing was trained again
    result = json.loads((tmp_path / "out" / "table7f.json").read_text())
    assert json.loads(stdout)["tables"]["table7f"] == result
    assert list(result["rows"]) == ["1x1", "4x1", "1x3", "4x3", "10x10"]
    for name, row in result["rows"].items():
        assert row["views"] == name
        assert set(row["seeds"]["3"]) == {"shape", "motion", "place_motion"}
    assert "## Table 7f: views\n" in (tmp_path / "out" / "reproduction.md").read_text()
    assert "left: 0 steps of arms in 0 runs, about" in stderr  # evaluations
    assert "left]" in stderr


def test_seeds_train_side_by_side(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    both = [*command(tmp_path / "out")[:-1], "3", "4"]
    monkeypatch.setattr(sys, "argv", [*both, "--published-rates", "--side-by-side", "--json"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path("tools/reproduce.py", run_name="__main__")
    stdout, stderr = capfd.readouterr()
    assert "all models are trained\n" in stderr  # when both processes have ended
    rows = json.loads(stdout)["tables"]["table7f"]["rows"]
    assert all(row["seeds"].keys() == {"3", "4"} for row in rows.values())
    assert len(finished_runs(tmp_path / "out")) == 2  # the best rate alone, of each seed


def test_side_by_side_is_at_published_rates(tmp_path):
    ended = tool("reproduce", *command(tmp_path / "out", "--side-by-side")[1:])
    assert ended.returncode == 2 and "--side-by-side trains seeds at --published-rates" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_rows_of_a_transplant_train_together_beside_their_controls(tmp_path, monkeypatch, capfd):
    rows = (*(Row(name, 80.0, Source("table9", arm=name)) for name in ("last1", "fc")), Row("before", None))
    table = Table("Table 0", rows, (), images=True)
    monkeypatch.setattr("reproduce.TABLES", {"table0": table})
    monkeypatch.setattr(work, "FACTORS", (1.0,))
    monkeypatch.setattr(tasks, "rehearse", lambda _, sources: {s: Speed(s.recipe, s.arm, 0.1, 0.1) for s in sources})
    found = reproduce(prepare(["table0"], tmp_path / "out", [0], SHORT, samples=32))["table0"]
    assert "left: 12 steps of arms in 4 runs" in capfd.readouterr().err  # small and large among them
    assert list(found["rows"]) == ["last1", "last1" + RANDOM, "fc", "fc" + RANDOM, "before"]
    linear = {f"image {label}, linear" for label in ("shape", "position", "size")}
    assert {name: set(row["seeds"]["0"]) for name, row in found["rows"].items() if RANDOM not in name} == {
        "last1": {"shape", "motion", "place_motion", "image shape"} | linear,
        "fc": {"shape", "motion", "place_motion", "image shape"} | linear,
        "before": linear,
    }
    results = [json.loads(path.read_text()) for path in finished_runs(tmp_path / "out")]
    assert sorted(len(each["arms"]) for each in results) == [1, 1, 2, 2]  # small, large; both rows, both controls
    desk = Desk(tmp_path / "out", SHORT, samples=32)
    for tubes in ("folded", "random"):
        begun = desk.read(Source("table9", arm="fc"), 0, tubes)[0].model.load
        assert json.loads((Path(begun) / "report.json").read_text())["random_tubes"] is (tubes == "random")
    publish(tmp_path / "out", tmp_path / "docs")
    kept = tmp_path / "docs/reproduction/table0.json"
    assert json.loads(kept.read_text()) == found
    assert page.section("table0", table, kept) in (tmp_path / "docs/reproduction.md").read_text()
