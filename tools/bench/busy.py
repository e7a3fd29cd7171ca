"""The demo's work alone, and beside processes that never rest: what a busy machine costs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.turns import alternated, compared, goal, machine, python
from scaleup.errors import UserError

ROOT = Path(__file__).parents[2]
MOST = 2.5  # times as long, beside two processes on two cores


def busy(directory: str, others: int = 2, repeats: int = 3) -> dict[str, Any]:
    """Seconds of whole processes, their start included.

    Args:
        directory: of the demo (``make demo``), whose shards and models are used.
        others: processes that never rest.

    Raises:
        UserError: the directory is not the demo's, or a process fails.
    """
    demo, began_on = Path(directory), machine()
    if not (demo / "adapted").is_dir():
        raise UserError(f"'{directory}' is not the directory of a demo; make it with: make demo")
    rows, goals = [], []
    with tempfile.TemporaryDirectory() as out:
        for name, arguments in _works(demo, out).items():

            def alone(arguments: list[str] = arguments) -> float:
                return python(*arguments).seconds

            turns = alternated(_beside(others, alone), alone, repeats, what=name)
            measured = compared(turns)
            rows.append({"work": name, **measured})
            goals.append(goal(f"{name}, beside {others} busy processes / alone", measured["ratio"], MOST))
    return {"machine": began_on, "rows": rows, "goals": goals}


def _works(demo: Path, out: str) -> dict[str, list[str]]:
    videos = f"data.train.videos.shards={demo}/data/videos-train"
    images = f"data.train.images.shards={demo}/data/images-train"
    short = ["train.warmup=5", f"out={out}/run", "--overwrite"]
    train = [*_tool("train"), f"{ROOT}/recipes/demo/small.yaml", "train.steps=40", videos, images, *short]
    model = f"model.load={demo}/adapted"
    sweep = [*_tool("sweep"), f"{ROOT}/recipes/demo/sweep.yaml", "train.steps=20", model, videos, *short]
    evaluate = [
        *_tool("evaluate"),
        f"{demo}/small/model",
        f"{demo}/data/videos-test",
        "--views",
        "1x1",
        "--batch",
        "64",
    ]
    return {"40 steps of a small model": train, "20 steps of a sweep": sweep, "1,000 clips evaluated": evaluate}


def _tool(verb: str) -> list[str]:
    return [f"{ROOT}/tools/{verb}.py"]


def _beside(others: int, work: Callable[[], float]) -> Callable[[], float]:
    def beside() -> float:
        with _processes(others):
            return work()

    return beside


@contextmanager
def _processes(count: int) -> Iterator[None]:
    """So many that never rest."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
