"""The demo's work alone, and beside processes that never rest: what a busy machine costs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.measure import Figures, alternated, compared, goal, machine, measured, python
from scaleup.errors import UserError

ROOT = Path(__file__).parents[2]
MOST = 2.5  # times as long, beside two processes on two cores


def busy(directory: str, others: int = 2, repeats: int = 3) -> Figures:
    """Seconds of whole processes, their start included.

    Args:
        directory: of the demo (``make demo``), whose shards and models are used.
        others: processes that never rest.

    Raises:
        UserError: the directory is not the demo's, or a process fails.
    """
    demo, before = Path(directory), machine()
    rows: list[Figures] = []
    if not (demo / "adapted").is_dir():
        raise UserError(f"'{directory}' is not the directory of a demo; make it with: make demo")
    with tempfile.TemporaryDirectory() as out:
        for work, (verb, *arguments) in _works(demo, out).items():
            alone = partial(_seconds, ROOT / "tools" / f"{verb}.py", *arguments)
            rows.append({"work": work, **compared(alternated(_beside(others, alone), alone, repeats, what=work))})
    goals = [goal(f"{row['work']}, beside {others} busy processes / alone", row["ratio"], MOST) for row in rows]
    return measured(before, rows, goals)


def _works(demo: Path, out: str) -> dict[str, list[str]]:
    """Verbs of the toolkit and their arguments."""
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
    return python(*arguments).seconds


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
