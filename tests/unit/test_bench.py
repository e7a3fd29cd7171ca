import json
import os
import signal
import sys
import threading
import time

import pytest
import torch
from support.marks import at_length
from support.tools import TOOLS, script, tool

from bench.measure import alternate, compare, goal, run_in_process, run_python
from bench.tokenizer import FOLDED, SIZE, UNFOLDED, tokenizer
from scaleup.common.errors import UserError


def test_turns_alternate_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def side(name: str) -> str:
        order.append(name)
        return f"{name}{order.count(name)}"

    turns = alternate(lambda: side("ours"), lambda: side("other"), repeats=2)
    assert turns == [("ours2", "other2"), ("ours3", "other3")]
    assert order == ["ours", "other", "other", "ours", "ours", "other"]


def test_the_ratio_is_taken_turn_by_turn() -> None:
    slowing = [(1.0, 2.0), (10.0, 20.0), (30.0, 40.0)]  # a machine that others use more and more
    assert compare(slowing) == {"seconds": 10.0, "other_seconds": 20.0, "ratio": 0.5}


def test_a_goal_is_met_up_to_its_limit() -> None:
    assert goal("seconds", 1.5, 1.5)["met"] and not goal("seconds", 1.6, 1.5)["met"]


def test_a_process_is_measured_by_itself_and_not_by_who_started_it() -> None:
    held = torch.ones(100 * 2**20 // 4)  # 100 MiB of this process
    small, large = (
        run_python("-c", "pass"),
        run_python("-c", "held = bytearray(200 * 2**20); import time; time.sleep(0.3)"),
    )
    assert small.peak_bytes < held.nbytes
    assert 200 * 2**20 < large.peak_bytes < 300 * 2**20
    assert large.seconds >= 0.3


def test_a_process_that_fails_is_no_figure() -> None:
    with pytest.raises(UserError, match="exit code 3"):
        run_python("-c", "raise SystemExit(3)")
    assert run_python("-c", f"import sys; assert sys.prefix == {sys.prefix!r}").seconds > 0  # the same environment


def test_both_sides_of_the_tokenizer_give_the_same_tokens() -> None:
    rows = tokenizer(widths=(24,), batches=(1,), repeats=1)["rows"]
    assert [row["tube"] for row in rows] == [*(spec.name for spec in FOLDED), "all"] * 2
    assert all(row["max_abs_diff"] < 1e-4 and row["ratio"] > 0 for row in rows)


def test_the_main_tubes_give_the_tokens_of_the_paper() -> None:
    for specs in (FOLDED, UNFOLDED):
        assert [spec.tokens(SIZE) for spec in specs] == [98, 147, 98]


def test_the_tool_prints_a_figure() -> None:
    done = tool("bench", "tokenizer", "--widths", 12, "--batches", 1, "--repeats", 1, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["width"] for row in rows} == {12} and all(row["max_abs_diff"] < 1e-4 for row in rows)


STOPPED = """
import os, runpy, signal, sys
sys.path.insert(0, {tools!r})
import bench
from bench.measure import rotate
from scaleup.common.errors import UserError

def figure(**_):
    sides = dict(one=lambda: 1.0, two=lambda: dict(step_seconds=2.0, name="two"), three=lambda: {stop})
    rotate(sides, repeats=2, warmup=0, label="fake")

bench.tokenizer = figure
sys.argv = ["bench.py", "tokenizer", *sys.argv[1:]]
runpy.run_path({tool!r}, run_name="__main__")
"""
WAYS = {
    "Ctrl-C": ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted"),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", 143, "interrupted"),
    "a mistake": ("(_ for _ in ()).throw(UserError('no such thing'))", 2, "no such thing"),
    "another error": ("1 / 0", 1, "division by zero"),
}


@pytest.mark.parametrize("way", ["Ctrl-C", *at_length("SIGTERM", "a mistake", "another error")])
def test_a_bench_that_is_stopped_prints_what_it_has_measured(way: str) -> None:
    stop, code, why = WAYS[way]
    done = script(STOPPED.format(tools=str(TOOLS), tool=str(TOOLS / "bench.py"), stop=stop), "--json")
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert found["partial"] == why and found["missing"] == ["fake: three"]
    assert found["rows"] == [
        {"side": "fake: one", "turns": 1, "seconds": 1.0},
        {"side": "fake: two", "turns": 1, "step_seconds": 2.0},
    ]


def test_a_process_that_measures_ends_with_an_interrupt() -> None:
    """``run_in_process`` would wait for it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_process(time.sleep, 600)
    finally:
        signal.signal(signal.SIGINT, before)
