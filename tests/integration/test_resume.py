"""A run that is killed and run again ends as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.killed import killed
from support.marks import at_length
from support.runs import bits, losses, steps
from support.tools import AT_ONCE, LAUNCHER, SECONDS, TOOLS, Running, start, tool

from scaleup.config.schema import Recipe
from scaleup.evaluation.accuracy import evaluate
from scaleup.model.build import load
from scaleup.training.run import train

FILES = ("recipe.yaml", "metrics.jsonl", "tensorboard", "result.json")
ARMS = {"sweep": ("full", "last", "gated"), "train": ("model",)}
ENDS = ["arms.gated.patience=3", "arms.gated.lr=1e-12", "arms.gated.gate_lr=1e-12"]


def ends_with_the_same_bytes(
    path: Path, tmp_path: Path, ranks: int, tool: str, stage: int, points: list[int | None]
) -> list[int]:
    """With dropout, drop path, mixup, and validation, after which arms end at different steps; of several ranks one is
    killed, and the others end by themselves. Returns the steps at which the run resumed."""
    count, every, last = (120, 9, 50) if len(points) > 5 else (18, 2, 6) if len(points) > 1 else (12, 2, 6)
    changes = [f"train.steps={count}", f"train.valid_every={every}", f"arms.last.steps={last}", "train.save_every=2"]
    changes += ["data.train.videos.sampling=full"]
    changes += [f"train.zero_stage={stage}", f"data.valid.shards={path.parent}/shapes/videos-train", *ENDS]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert killed([], ranks, whole, tool, path, *changes) == []
    resumed = killed(points, ranks, cut, tool, path, *changes)
    for each in (whole, cut):
        assert steps(each) == list(range(count))
        assert {path.name for path in each.iterdir()} == {*FILES, *ARMS[tool]}
    assert bits(cut, *ARMS[tool]) == bits(whole, *ARMS[tool]) and len(bits(cut, *ARMS[tool])) > 40
    ended = [json.loads((each / "result.json").read_text())["arms"] for each in (whole, cut)]
    for name in ARMS[tool]:
        for key in ("steps", "ended", "best_step", "valid_accuracy"):
            assert ended[1][name][key] == ended[0][name][key]
        assert ended[0][name]["steps"] == {"last": last, "gated": 4 * every}.get(name, count)
    return resumed


@pytest.mark.parametrize(
    ("ranks", "tool", "stage", "points"),
    [(2, "sweep", 2, [3]), *at_length((1, "sweep", 0, [0, 3, 9]), (2, "train", 2, [6]))],
)
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(
    tiny_path: Path, tmp_path: Path, ranks: int, tool: str, stage: int, points: list[int | None]
) -> None:
    resumed = ends_with_the_same_bytes(tiny_path, tmp_path, ranks, tool, stage, points)
    assert len(resumed) == len([point for point in points if point])


@pytest.mark.all
@pytest.mark.parametrize(("ranks", "tool", "stage"), [(1, "sweep", 0), (2, "train", 2)])
def test_a_run_killed_twenty_times_ends_with_the_same_bytes(
    tiny_path: Path, tmp_path: Path, ranks: int, tool: str, stage: int
) -> None:
    resumed = ends_with_the_same_bytes(tiny_path, tmp_path, ranks, tool, stage, [None] * 20)
    assert len(resumed) >= 12 and len(set(resumed)) >= 8, resumed


def begun(name: str, *args: object, out: Path, at_step: int, ranks: int = 1) -> Running:
    """A tool that has taken so many steps."""
    running, end = start(name, *args, f"out={out}", ranks=ranks), time.monotonic() + SECONDS
    while not (out / "metrics.jsonl").exists() or len(steps(out)) < at_step:
        assert running.alive and time.monotonic() < end, running.wait().stderr
        time.sleep(0.01)
    return running


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(
    tiny: Callable[..., Recipe], tiny_path: Path, tmp_path: Path
) -> None:
    whole, out = tiny("train.steps=40", "train.save_every=0", f"out={tmp_path / 'whole'}"), tmp_path / "cut"
    args = ["train", tiny_path, "train.steps=40", "train.save_every=0"]
    running = begun(*args, "data.workers=1", out=out, at_step=3)
    running.send(signal.SIGTERM)  # as schedulers do: the loader's processes get it too
    asked = running.wait()
    assert asked.returncode == 143, asked.stderr
    (saved,) = (out / "checkpoints").iterdir()
    done = int(saved.name[-8:])
    assert f"stopped after {done} of 40 steps; the same command goes on from there" in asked.stdout
    assert 3 <= done < 40 and steps(out) == list(range(done)) and not (out / "model").exists()

    late = tool(*args, "--stop-after", "0s", "--json", f"out={out}")
    assert late.returncode == 0 and f"resuming at step {done} of 40" in late.stderr, late.stderr
    assert json.loads(late.stdout) == {"out": str(out), "steps": 40, "stopped": done + 1, "exit": 0, "part": None}

    last = train(tiny("train.steps=40", "train.save_every=0", f"out={out}"), {"model": whole.arm})
    train(whole, {"model": whole.arm})
    assert bits(out, "model") == bits(tmp_path / "whole", "model")
    assert steps(out) == list(range(40)) and last.steps == 40


def test_two_ranks_stop_at_the_same_step_and_one_goes_on(
    tiny: Callable[..., Recipe], tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What two ranks saved is saved by name: one rank goes on with it, within rounding."""
    changes = ["train.mixup=0", "model.backbone.kwargs.proj_drop_rate=0", "model.backbone.kwargs.drop_path_rate=0"]
    changes += ["train.steps=40", "train.zero_stage=1"]
    out = tmp_path / "cut"
    running = begun("train", tiny_path, *changes, out=out, at_step=2, ranks=2)
    running.send(signal.SIGTERM)
    asked = running.wait()
    assert asked.stdout.count("the same command goes on") == 1, asked.stderr  # the first rank speaks for both
    (saved,) = (out / "checkpoints").iterdir()
    done = int(saved.name[-8:])
    whole = tiny(*changes, f"out={tmp_path / 'whole'}")
    train(whole, {"model": whole.arm})
    capsys.readouterr()
    train(tiny(*changes, f"out={out}"), {"model": whole.arm})
    said = f"resuming at step {done} of 40; ranks: 1 instead of 2, so within rounding, not bit for bit"
    assert said in capsys.readouterr().err
    assert steps(out) == list(range(40))
    soon = done + 6  # rounding grows
    assert losses(out)[:soon] == pytest.approx(losses(tmp_path / "whole")[:soon], rel=1e-3)


def test_a_rank_that_dies_ends_the_others_with_a_sentence(tiny_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = begun("train", tiny_path, "train.steps=4000", out=out, at_step=2, ranks=2)
    running.processes[1].kill()
    dead = running.wait()
    assert dead.returncode != 0
    assert "rank 0 stops, because another of the 2 ranks no longer answers" in dead.stderr, dead.stderr


def test_two_ranks_validate_every_sample_once_and_lose_the_same_arm(tiny_path: Path, tmp_path: Path) -> None:
    """Samples and patience are of all ranks: where the ranks did not agree on who has ended they would hang."""
    shards, out = tiny_path.parent / "shapes" / "videos-train", tmp_path / "out"
    changes = ["train.steps=6", "train.valid_every=1", f"data.valid.shards={shards}", "arms.full.lr=1e30", *ENDS]
    changes += ["arms.full.clip=0", "arms.last.steps=3"]
    done = tool("sweep", tiny_path, *changes, "--json", f"out={out}", ranks=2, before=AT_ONCE)
    assert done.returncode == 1, done.stderr
    arms = json.loads((out / "result.json").read_text())["arms"]
    assert done.stderr.count("arm 'full' diverged") == 1 and arms["full"]["diverged"] is not None
    assert (arms["last"]["steps"], arms["gated"]["steps"], arms["gated"]["ended"]) == (3, 4, "early")
    for line in (out / "metrics.jsonl").read_text().splitlines():
        assert all(arm["valid"]["samples"] == 12 for arm in json.loads(line)["arms"].values())
    scores = evaluate({"model": load(out / "gated")}, shards, "1x1")["model"].heads
    assert arms["gated"]["valid_accuracy"] == (scores["shape"].top1 + scores["motion"].top1) / 2


def test_a_time_that_is_none_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    done = tool("train", tiny_path, "--stop-after", "2 hours", f"out={tmp_path / 'out'}")
    assert done.returncode == 2 and "--stop-after '2 hours' is not a time; allowed are hours, minutes" in done.stderr


def launched(*command: object, out: Path, at_step: int) -> subprocess.Popen:
    """A command in a process group of its own, nothing forked, that has taken so many steps."""
    call = list(map(str, (sys.executable, *command, f"out={out}")))
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + SECONDS
    while at_step and (not (out / "metrics.jsonl").exists() or len(steps(out)) < at_step):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)
    return process


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "stage"), [((), 0), (LAUNCHER, 2)])
def test_twenty_real_kills(tiny_path: Path, tmp_path: Path, launcher: tuple[str, ...], stage: int) -> None:
    """As above, nothing forked: launcher, ranks and loaders get SIGKILL, all at once."""
    out, source = tmp_path / "cut", random.Random(stage)
    args = [tiny_path, "train.steps=400", "train.save_every=2", f"train.zero_stage={stage}"]
    for _ in range(20):
        before = len(steps(out)) if (out / "metrics.jsonl").exists() else 0
        command = (*launcher, TOOLS / "train.py", *args, "data.workers=1")
        process = launched(*command, out=out, at_step=before + source.randint(1, 3))
        time.sleep(source.uniform(0, 0.1))
        for victim in [process.pid, *(children(process) if launcher else ())]:
            os.killpg(victim, signal.SIGKILL)
        process.communicate(timeout=120)
    last = launched(*launcher, TOOLS / "train.py", *args, out=out, at_step=0)
    said = last.communicate(timeout=240)[1]
    assert last.returncode == 0 and "resuming at step" in said, said
    killed([], 2 if launcher else 1, tmp_path / "whole", "train", *args)
    assert steps(out) == list(range(400))
    assert bits(out, "model") == bits(tmp_path / "whole", "model")
