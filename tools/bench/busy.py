"""The demo's work on an idle machine, and on one where other processes keep the processors busy."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.measure import Figures, alternate, compare, goal, machine, measured, run_python
from scaleup.common.errors import UserError

ROOT = Path(__file__).parents[2]
LIMIT = 2.5  # busy seconds / idle seconds, with two busy processes on two cores


def busy(directory: str, others: int = 2, repeats: int = 3) -> Figures:
    """Seconds of whole processes, from start to end.

    Args:
        directory: the output of ``make demo``, whose shards and models are used.
        others: number of processes that keep the processors busy.

    Raises:
        UserError: ``directory`` is not a demo's, or a process fails.
    """
    demo, before = Path(directory), machine()
    rows: list[Figures] = []
    if not (demo / "adapted").is_dir():
        raise UserError(f"'{directory}' is not the directory of a demo; make it with: make demo")
    with tempfile.TemporaryDirectory() as out:
        for work, (verb, *arguments) in _works(demo, out).items():
            idle = partial(_seconds, ROOT / "tools" / f"{verb}.py", *arguments)
            rows.append({"work": work, **compare(alternate(_busy(others, idle), idle, repeats, label=work))})
    goals = [goal(f"{row['work']}, beside {others} busy processes / alone", row["ratio"], LIMIT) for row in rows]
    return measured(before, rows, goals)


def _works(demo: Path, out: str) -> dict[str, list[str]]:
    """Title -> a verb of the toolkit and its arguments."""
    recipes, data = ROOT / "recipes" / "demo", demo / "data"
    videos = f"data.train.videos.shards={data}/videos-train"
    images = f"data.train.images.shards={data}/images-train"
    short = ["train.warmup=5", f"out={out}/run", "--overwrite"]
    model, small = f"model.load={demo}/adapted", f"{demo}/small/model"
    return {
        "40 steps of a small model": ["train", f"{recipes}/small.yaml", "train.steps=40", videos, images, *short],
        "20 steps of a sweep": ["sweep", f"{recipes}/sweep.yaml", "train.steps=20", model, videos, *short],
        "1,000 clips evaluated": ["evaluate", small, f"{data}/videos-test", "--views", "1x1", "--batch", "64"],
    }


def _seconds(*arguments: object) -> float:
    return run_python(*arguments).seconds


def _busy(others: int, work: Callable[[], float]) -> Callable[[], float]:
    def run() -> float:
        with busy_processes(others):
            return work()

    return run


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes keep processors busy until the end of the context."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
