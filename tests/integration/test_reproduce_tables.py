"""Tables from end to end, with few samples and steps: cut off and gone on with, and rows beside their controls."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from scaleup.reproduce import page, publish, reproduce, work
from scaleup.reproduce.desk import Desk
from scaleup.reproduce.table import RANDOM, Row, Source, Table

ROOT = Path(__file__).parent.parent.parent
SHORT = ["train.steps=2", "train.warmup=1", "data.batch=4", "data.workers=0"]


def tool(out, *more):
    command = [sys.executable, "tools/reproduce.py", "table7f", *SHORT, "--out", out, "--samples", "8", "--seeds", "3"]
    return subprocess.Popen([*command, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished_runs(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/result.json")}


def test_a_table_is_run_through_the_tool_killed_and_gone_on_with(tmp_path):
    first = tool(tmp_path / "out")
    end = time.monotonic() + 240
    while not finished_runs(tmp_path / "out") and first.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    runs = finished_runs(tmp_path / "out")
    assert runs and not (tmp_path / "out" / "table7f.json").exists(), "killed between training and evaluation"
    again = tool(tmp_path / "out", "--json")
    stdout, stderr = again.communicate()
    assert again.returncode == 0, stderr
    assert finished_runs(tmp_path / "out") == runs  # nothing was trained again
    result = json.loads((tmp_path / "out" / "table7f.json").read_text())
    assert json.loads(stdout)["tables"]["table7f"] == result
    assert list(result["rows"]) == ["1x1", "4x1", "1x3", "4x3", "10x10"]
    for name, row in result["rows"].items():
        assert row["views"] == name
        assert set(row["seeds"]["3"]) == {"shape", "motion", "place_motion"}
    assert "## Table 7f: views\n" in (tmp_path / "out" / "reproduction.md").read_text()
    assert "left]" in stderr  # an estimate


def test_rows_of_a_transplant_train_together_beside_their_controls(tmp_path, monkeypatch):
    rows = tuple(Row(name, 80.0, Source("table9", arm=name)) for name in ("last1", "fc"))
    table = Table("Table 0", rows, ())
    monkeypatch.setattr("scaleup.reproduce.TABLES", {"table0": table})
    monkeypatch.setattr(work, "FACTORS", (1.0,))
    found = reproduce(["table0"], tmp_path / "out", [0], SHORT, samples=8)["table0"]
    assert list(found["rows"]) == ["last1", "last1" + RANDOM, "fc", "fc" + RANDOM]
    results = [json.loads(path.read_text()) for path in finished_runs(tmp_path / "out")]
    assert sorted(len(each["arms"]) for each in results) == [1, 1, 2, 2]  # small, large; both rows, both controls
    desk = Desk(tmp_path / "out", SHORT, samples=8)
    for tubes in ("folded", "random"):
        begun = desk.read(Source("table9", arm="fc"), 0, tubes)[0].model.load
        assert json.loads((Path(begun) / "report.json").read_text())["random_tubes"] is (tubes == "random")
    publish(tmp_path / "out", tmp_path / "docs")
    kept = tmp_path / "docs/reproduction/table0.json"
    assert json.loads(kept.read_text()) == found
    assert page.section("table0", table, kept) in (tmp_path / "docs/reproduction.md").read_text()
