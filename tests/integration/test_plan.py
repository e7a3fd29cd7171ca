"""The plan as users ask for it: by its own tool, and by --plan of the tools that train."""

import json
from pathlib import Path

import pytest
from support.tools import tool


def test_the_plan_of_a_sweep(tiny_path: Path, tmp_path: Path) -> None:
    less = ["arms.full=null", "data.train.images=null"]  # takes less time
    done = tool("plan", tiny_path, *less, "data.batch=64", "--memory", "4M", "--gflops", "1000", "--json")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert planned["arms"].keys() == {"last", "gated"}
    assert planned["time"]["gflops"] == 1000 and not planned["fits"] and len(planned["waves"]) != 1
    assert "the largest batch that fits is" in planned["warnings"][0]
    held = planned["memory"]
    assert held["total"] == sum(size for part, size in held.items() if part != "total") > planned["available"]
    lasting = held["trunk"] + held["arms"] + held["optimizer"]  # leaves no gaps
    assert planned["cpu_memory"] - lasting == pytest.approx(4 / 3 * (held["total"] - lasting), abs=1)


def test_the_plan_in_words(tiny_path: Path, tmp_path: Path) -> None:
    done = tool("sweep", tiny_path, "arms={gated: {frozen_depth: 1, gate: true}}", f"out={tmp_path / 'out'}", "--plan")
    assert done.returncode == 0, done.stderr
    for said in ("tokens: image 17, video 41 (prefix 1, frames 32, long 8)", "gated (frozen depth 1)", "an epoch"):
        assert said in done.stdout
    assert "activations" in done.stdout and "on a CPU " in done.stdout and "WARNING" not in done.stdout
    assert not (tmp_path / "out").exists()


def test_mistakes_are_sentences(tiny_path: Path) -> None:
    done = tool("plan", tiny_path, "--memory", "lots")
    assert done.returncode == 2 and "--memory 'lots' is not an amount" in done.stderr and "Traceback" not in done.stderr
