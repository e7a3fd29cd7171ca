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
from safetensors.torch import load_file

from scaleup.config.schema import Recipe
from scaleup.evaluate import evaluate
from scaleup.model.build import load
from scaleup.training.run import run

TOOLS = Path(__file__).parents[2] / "tools"
KILLED = Path(__file__).with_name("killed.py")


def bits(run: Path, *arms: str) -> dict[str, bytes]:
    files = [(arm, load_file(file)) for arm in arms for file in sorted((run / arm).rglob("*.safetensors"))]
    return {f"{arm}/{name}": tensor.numpy().tobytes() for arm, file in files for name, tensor in file.items()}


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["arms"]["model"]["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def killed(out: Path, kills: int, ranks: int, *tool: object) -> dict:
    command = [sys.executable, KILLED, out, f"--kills={kills}", f"--ranks={ranks}", *tool, f"out={out}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=280)
    log = out.with_suffix(".log")
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    return json.loads(done.stdout)


FILES = ("recipe.yaml", "metrics.jsonl", "tensorboard", "result.json")
ARMS = {"sweep.py": ("full", "last", "gated"), "train.py": ("model",)}
ENDS = ["arms.last.steps=50", "arms.gated.patience=3", "arms.gated.lr=1e-12", "arms.gated.gate_lr=1e-12"]


@pytest.mark.parametrize(("ranks", "tool", "stage"), [(1, "sweep.py", 0), (2, "train.py", 2)])
def test_a_run_killed_twenty_times_ends_with_the_same_bytes(
    tiny: Callable[..., Recipe], tiny_path: Path, tmp_path: Path, ranks: int, tool: str, stage: int
) -> None:
    """With dropout, drop path, mixup, and validation, after which arms end at different steps; of several ranks one is
    killed, and the others end by themselves."""
    command = [TOOLS / tool, tiny_path, "train.steps=120", "train.save_every=2", f"train.zero_stage={stage}", *ENDS]
    command += ["train.valid_every=9", f"data.valid.shards={tiny().data.train['videos'].shards}"]
    whole = killed(tmp_path / "whole", 0, ranks, *command)
    cut = killed(tmp_path / "cut", 20, ranks, *command)
    assert whole == {"resumed": []}
    assert len(cut["resumed"]) >= 12 and len(set(cut["resumed"])) >= 8, cut
    for each in (tmp_path / "whole", tmp_path / "cut"):
        assert steps(each) == list(range(120))
        assert {path.name for path in each.iterdir()} == {*FILES, *ARMS[tool]}
    assert bits(tmp_path / "cut", *ARMS[tool]) == bits(tmp_path / "whole", *ARMS[tool])
    assert len(bits(tmp_path / "cut", *ARMS[tool])) > 40
    ended = [json.loads((tmp_path / each / "result.json").read_text())["arms"] for each in ("whole", "cut")]
    for name in ARMS[tool]:
        for key in ("steps", "ended", "best_step", "valid_accuracy"):
            assert ended[1][name][key] == ended[0][name][key]
        assert ended[0][name]["steps"] == {"last": 50, "gated": 36}.get(name, 120)


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def started(*command: object, out: Path, at_step: int = 0) -> subprocess.Popen:
    """A tool that runs in a process group of its own and has taken so many steps."""
    call = list(map(str, (sys.executable, *command, f"out={out}")))
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 60
    while at_step and (not (out / "metrics.jsonl").exists() or len(steps(out)) < at_step):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)
    return process


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def ended(process: subprocess.Popen) -> subprocess.CompletedProcess:
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(
    tiny: Callable[..., Recipe], tiny_path: Path, tmp_path: Path
) -> None:
    whole, out = tiny("train.steps=400", "train.save_every=0", f"out={tmp_path / 'whole'}"), tmp_path / "cut"
    tool = [TOOLS / "train.py", tiny_path, "train.steps=400", "train.save_every=0"]
    process = started(*tool, "data.workers=1", out=out, at_step=3)
    os.killpg(process.pid, signal.SIGTERM)  # as schedulers do: the loader's processes get it too
    asked = ended(process)
    assert asked.returncode == 143, asked.stderr
    (saved,) = (out / "checkpoints").iterdir()
    done = int(saved.name[-8:])
    assert f"stopped after {done} of 400 steps; the same command goes on from there" in asked.stdout
    assert 3 <= done < 400 and steps(out) == list(range(done)) and not (out / "model").exists()

    late = ended(started(*tool, "--stop-after", "0s", "--json", out=out))
    assert late.returncode == 0 and f"resuming at step {done} of 400" in late.stderr, late.stderr
    assert json.loads(late.stdout) == {"out": str(out), "steps": 400, "stopped": done + 1, "exit": 0}

    last, expected = run(tiny("train.steps=400", "train.save_every=0", f"out={out}"), {"model": whole.arm}), 400
    run(whole, {"model": whole.arm})
    assert bits(out, "model") == bits(tmp_path / "whole", "model")
    assert steps(out) == list(range(expected)) and last["steps"] == expected


def test_two_ranks_stop_at_the_same_step_and_one_goes_on(
    tiny: Callable[..., Recipe], tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What two ranks saved is saved by name: one rank goes on with it, within rounding."""
    changes = ["train.mixup=0", "model.backbone.kwargs.proj_drop_rate=0", "model.backbone.kwargs.drop_path_rate=0"]
    changes += ["train.steps=60", "train.zero_stage=1"]
    out = tmp_path / "cut"
    process = started(*TWO, TOOLS / "train.py", tiny_path, *changes, out=out, at_step=2)
    process.terminate()
    asked = ended(process)
    assert asked.stdout.count("the same command goes on") == 1, asked.stderr  # the first rank speaks for both
    (saved,) = (out / "checkpoints").iterdir()
    done = int(saved.name[-8:])
    whole = tiny(*changes, f"out={tmp_path / 'whole'}")
    run(whole, {"model": whole.arm})
    capsys.readouterr()
    run(tiny(*changes, f"out={out}"), {"model": whole.arm})
    said = f"resuming at step {done} of 60; ranks: 1 instead of 2, so within rounding, not bit for bit"
    assert said in capsys.readouterr().err
    assert steps(out) == list(range(60))
    soon = done + 6  # rounding grows
    assert losses(out)[:soon] == pytest.approx(losses(tmp_path / "whole")[:soon], rel=1e-3)


def test_a_rank_that_dies_ends_the_others_with_a_sentence(tiny_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = started(*TWO, TOOLS / "train.py", tiny_path, "train.steps=4000", out=out, at_step=2)
    _, second = children(process)
    os.kill(second, signal.SIGKILL)
    dead = ended(process)
    assert dead.returncode != 0
    assert "rank 0 stops: another of the 2 ranks no longer answers" in dead.stderr, dead.stderr


def test_two_ranks_validate_every_sample_once_and_lose_the_same_arm(tiny_path: Path, tmp_path: Path) -> None:
    """Samples and patience are of all ranks: where the ranks did not agree on who has ended they would hang."""
    shards, out = tiny_path.parent / "shapes" / "videos-train", tmp_path / "out"
    changes = ["train.steps=6", "train.valid_every=1", f"data.valid.shards={shards}", "arms.full.lr=1e30", *ENDS]
    changes += ["arms.full.clip=0", "arms.last.steps=3"]
    done = ended(started(*TWO, TOOLS / "sweep.py", tiny_path, *changes, "--json", out=out))
    assert done.returncode == 1, done.stderr
    arms = json.loads((out / "result.json").read_text())["arms"]
    assert done.stderr.count("arm 'full' diverged") == 1 and arms["full"]["diverged"] is not None
    assert (arms["last"]["steps"], arms["gated"]["steps"], arms["gated"]["ended"]) == (3, 4, "early")
    for line in (out / "metrics.jsonl").read_text().splitlines():
        assert all(arm["valid"]["samples"] == 12 for arm in json.loads(line)["arms"].values())
    scores = evaluate({"model": load(out / "gated")}, shards, "1x1")["model"]["heads"]
    assert arms["gated"]["valid_accuracy"] == (scores["shape"]["top1"] + scores["motion"]["top1"]) / 2


def test_a_time_that_is_none_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    done = ended(started(TOOLS / "train.py", tiny_path, "--stop-after", "2 hours", out=tmp_path / "out"))
    assert done.returncode == 2 and "--stop-after '2 hours' is no time; allowed are hours, minutes" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "stage"), [((), 0), (TWO, 2)])
def test_twenty_real_kills(tiny_path: Path, tmp_path: Path, launcher: tuple[str, ...], stage: int) -> None:
    """As above, nothing forked: launcher, ranks and loaders get SIGKILL, all at once."""
    out, source = tmp_path / "cut", random.Random(stage)
    tool = [TOOLS / "train.py", tiny_path, "train.steps=400", "train.save_every=2", f"train.zero_stage={stage}"]
    for _ in range(20):
        before = len(steps(out)) if (out / "metrics.jsonl").exists() else 0
        process = started(*launcher, *tool, "data.workers=1", out=out, at_step=before + source.randint(1, 3))
        time.sleep(source.uniform(0, 0.1))
        for victim in [process.pid, *(children(process) if launcher else ())]:
            os.killpg(victim, signal.SIGKILL)
        ended(process)
    last = ended(started(*launcher, *tool, out=out))
    assert last.returncode == 0 and "resuming at step" in last.stderr, last.stderr
    killed(tmp_path / "whole", 0, 2 if launcher else 1, *tool)
    assert steps(out) == list(range(400))
    assert bits(out, "model") == bits(tmp_path / "whole", "model")
