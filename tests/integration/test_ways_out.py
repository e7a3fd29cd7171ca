"""Every way out of a tool ends it and the processes that it began, with a sentence where the cause is known."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.marks import at_length
from support.tools import AT_ONCE, LAUNCHER, SECONDS, TOOLS, left, start

from scaleup.config.schema import Recipe
from scaleup.data.shapes import CLASSES
from scaleup.model.build import fresh


class End(NamedTuple):
    code: int | None  # None: it did not end
    said: str
    left: list[int]  # processes that it left behind


def broken(failure: str, name: str, *args: object) -> End:
    """A tool in which ``failure``, a line of Python, comes to pass before it begins."""
    running = start(name, *args, before=f"{failure}; {AT_ONCE}")
    (code,) = running.codes(SECONDS)
    (pid,) = running.pids
    return End(code, "".join(file.read_text() for file in running.files[1:] if file.exists()), left(pid))


def fails(error: BaseException) -> Callable[..., Any]:
    """A function that raises."""

    def failing(*_: Any, **__: Any) -> Any:
        raise error

    return failing


def signals(number: int, loader: bool) -> Callable[..., Any]:
    """A function that sends a signal to this process, or to the loader processes, and waits."""

    def sending(*_: Any, **__: Any) -> Any:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        assert children, "no loader lives"
        for pid in map(int, children if loader else [os.getpid()]):
            os.kill(pid, number)
        time.sleep(SECONDS)

    return sending


@pytest.fixture
def args(tiny: Callable[..., Recipe], tiny_path: Path, tmp_path: Path) -> dict[str, list[Any]]:
    """Of each tool."""
    recipe = tiny()
    shards, model = recipe.data.train["videos"].shards, tmp_path / "model"
    fresh(recipe.model, CLASSES["video"], seed=1).save_pretrained(model)
    trained = [tiny_path, "data.workers=2", f"out={tmp_path / 'out'}"]
    return {
        "evaluate": [model, shards, "--views", "1x1", "--batch", 2],
        "probe": [model, shards, shards, "--batch", 2],
        "cache": [*trained[:2], "train.mixup=0", "--depths", 1, "--out", tmp_path / "cache"],
        "train": [*trained, "train.steps=40"],
        "sweep": [*trained, "train.steps=40"],
    }


MACHINE, DEVICE = "the machine has no memory left", "the device has no memory left"
HERE = (
    "import signal; from test_ways_out import fails, signals; from scaleup.evaluation import accuracy; "
    "from scaleup.cli import tool; from scaleup.data import batches, loader; "
    "from scaleup.evaluation import depth_profile as probe; from scaleup.training import token_cache; "
)
IN_TRAINING = "from scaleup.training import log; log.Metrics.log = "
WAYS = {
    "device": ("evaluate", "accuracy.arm_inputs = fails(RuntimeError('CUDA out of memory (put in)'))", 2, DEVICE),
    "host": ("probe", "probe.Reader.__call__ = fails(MemoryError())", 2, MACHINE),
    "unknown": ("cache", "token_cache.named = fails(KeyError('put in'))", 1, "KeyError"),
    "disk": ("train", IN_TRAINING + "fails(OSError(28, 'put in'))", 2, "the disk is full"),
    "killed": ("sweep", IN_TRAINING + "signals(signal.SIGKILL, True)", 2, "was killed, most likely because"),
    "no bus": ("train", IN_TRAINING + "signals(signal.SIGBUS, True)", 2, "shared memory (/dev/shm) is too small"),
    "Ctrl-C": ("evaluate", "accuracy.arm_inputs = signals(signal.SIGINT, False)", 130, "interrupted"),
    "SIGTERM": ("evaluate", "accuracy.arm_inputs = signals(signal.SIGTERM, False)", -signal.SIGTERM, ""),
    "SIGKILL": ("probe", "probe.Reader.__call__ = signals(signal.SIGKILL, False)", -signal.SIGKILL, ""),
    "loader": ("evaluate", "loader.eval_views = fails(KeyError('put in'))", 1, "KeyError: 'put in'"),
    "loader, known": ("evaluate", "loader.eval_views = fails(PermissionError(13, 'no', 'a.tar'))", 2, "'a.tar': Per"),
    "not sent": (
        "evaluate",
        "batches.Batch.__reduce__ = fails(OSError(24, ''))",
        2,
        "cannot send a batch: Too many open",
    ),
    "while printing": ("evaluate", "tool._explain = accuracy.arm_inputs = fails(ValueError())", 1, ""),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_ends_and_so_do_its_processes(way: str, args: dict[str, list[Any]]) -> None:
    tool, failure, code, told = WAYS[way]
    end = broken(HERE + failure, tool, *args[tool])
    assert end.code == code and not end.left, end
    assert told in end.said, end.said
    assert ("Traceback" in end.said) == (code == 1 and bool(told)), end.said


SCRIPT = """
import multiprocessing, os, signal, torch
from scaleup.data.workers import in_workers

class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, number):
        return torch.tensor(number)

held = in_workers(Numbers(), range(1000), 2)
next(held)
{}
raise KeyError("put in")
"""


@pytest.mark.parametrize(
    "before", ["os.kill(multiprocessing.active_children()[0].pid, signal.SIGSTOP)", *at_length("")]
)
def test_a_script_that_fails_ends(before: str, tmp_path: Path) -> None:
    """Without a tool that kills what it began; a process that no longer does anything is no different."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(before)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        stderr = process.communicate(timeout=SECONDS)[1]
    finally:
        remaining = left(process.pid)
    assert process.returncode == 1 and "KeyError: 'put in'" in stderr and not remaining
    assert stderr.count("Traceback") == 1, stderr


RANK_1 = (
    "import os; from scaleup.training.arm_trainer import ArmTrainer\n"
    "if os.environ['RANK'] == '1':\n"
    "    accuracy.arm_inputs = ArmTrainer.step = fails(RuntimeError('CUDA out of memory (put in)'))\n"
)


@pytest.mark.parametrize("tool", ["train", *at_length("evaluate")])
def test_where_a_rank_fails_all_end(tool: str, args: dict[str, list[Any]]) -> None:
    running = start(tool, *args[tool], ranks=2, before=HERE + RANK_1)
    codes = running.codes(SECONDS)
    said = "".join(file.read_text() for file in running.files[1:])
    assert codes[1] == 2 and codes[0] not in (None, 0) and not any(map(left, running.pids)), (codes, said)
    assert DEVICE in said, said


RANKS = """
import os, runpy, sys
from scaleup.evaluation import accuracy
from scaleup.training import arm_trainer

def failing(*_, **__):
    raise RuntimeError("CUDA out of memory (put in)")

if os.environ["RANK"] == "1":
    accuracy.arm_inputs = arm_trainer.ArmTrainer.step = failing
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.all
@pytest.mark.parametrize("tool", ["train", "evaluate"])
def test_where_a_rank_of_a_launcher_fails_all_end(tool: str, args: dict[str, list[Any]], tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, *LAUNCHER, tmp_path / "ranks.py", TOOLS / f"{tool}.py", *args[tool]]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)
        try:
            process.wait(SECONDS)
        finally:
            remaining = left(process.pid, str(tmp_path / "ranks.py"))  # each has a session of its own
    said = (tmp_path / "log").read_text()
    assert process.returncode == 1 and not remaining, said  # the launcher's own code
    assert DEVICE in said, said
