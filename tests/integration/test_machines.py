"""A sweep on several machines ends as one run on one machine would."""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from support.marks import at_length
from support.runs import bits
from support.tools import AT_ONCE, SECONDS, left, start, tool
from support.warm import warm_python

from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Recipe
from scaleup.sweeps import costs, jobs, machines
from scaleup.sweeps.machines import spread
from scaleup.sweeps.parts import split_arms, sweep
from scaleup.training.run import train

TWO = ["arms.full=null"]  # arms are left, a job each
SLOWLY = f"""{AT_ONCE}
import time
from scaleup.training.log import Metrics
log = Metrics.log
Metrics.log = lambda *args: (time.sleep(0.3), log(*args))
"""


def taken(out: Path) -> list[int]:
    return [path.read_text().count("\n") for path in out.glob("parts/*/metrics.jsonl")]


def whole(path: Path, out: Path, *changes: str) -> dict[str, bytes]:
    """The weights of all arms, trained in one run."""
    read = recipe.load(path, [*TWO, *changes, f"out={out}"])
    train(read, sweep_arms(read))
    return bits(out)


@pytest.fixture
def warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The Python that jobs are started with: they are forked."""
    with warm_python(tmp_path / "warm", AT_ONCE) as python:
        monkeypatch.setattr(sys, "executable", str(python))
        yield python


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Path]:
    """The same, of jobs that wait at each step, so that none is over when they are interrupted."""
    with warm_python(tmp_path / "slow", SLOWLY) as python:
        yield python


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes on here is not planned again."""
    monkeypatch.setattr(costs, "waves", lambda _, arms, *__: [arms])


@pytest.mark.parametrize("where", ["here", *at_length("on both")])
def test_two_machines_are_interrupted_and_go_on_to_the_same_bytes(
    slow: Path,
    at_once: None,
    tiny: Callable[..., Recipe],
    tiny_path: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    where: str,
) -> None:
    """With Ctrl-C in a terminal, which every process of the group hears; they go on there, or on one machine."""
    out, changes = tmp_path / "out", [*TWO, "train.steps=30", "train.save_every=0"]
    command = ["sweep", tiny_path, *changes, f"out={out}", "--where=local", "--machines=2"]
    running, end = start(*command, before=f"import sys; sys.executable = {str(slow)!r}"), time.monotonic() + SECONDS
    while len(taken(out)) < 2 or min(taken(out)) < 2:
        assert running.alive and time.monotonic() < end, running.wait().stderr
        time.sleep(0.05)
    running.send(signal.SIGINT)
    asked = running.wait()
    assert asked.returncode == 130, asked.stderr
    assert "the same command goes on" in asked.stdout and not list(Path(f"{out}.jobs").glob("*.pkl"))
    saved = [int(path.name[-8:]) for path in out.glob("parts/*/checkpoints/step-*")]
    assert len(saved) == 2 and sorted(saved) == sorted(taken(out)) and max(saved) < 30

    if where == "here":
        read = tiny(*changes)
        result, said = asdict(sweep(read, sweep_arms(read))), capfd.readouterr().err
    else:
        done = tool(*command, "--json")
        assert done.returncode == 0, done.stderr
        result, said = json.loads(done.stdout), "".join(p.read_text() for p in Path(f"{out}.jobs").glob("*.err"))
    assert all(f"resuming at step {step} of 30" in said for step in saved)
    depths = [[result["arms"][name]["frozen_depth"] for name in part] for part in result["parts"]]
    assert len(depths) == 2 and sum(depths, []) == sorted(sum(depths, []))
    assert bits(out) == whole(tiny_path, tmp_path / "whole", "train.steps=30")


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm for each machine, without a plan of what they take."""
    monkeypatch.setattr(machines, "group_arms", lambda _, arms, __: [{name: arm} for name, arm in arms.items()])


def test_a_job_that_fails_is_named_and_the_others_stay(
    warm: Path, at_once: None, apart: None, tiny: Callable[..., Recipe], tiny_path: Path, tmp_path: Path
) -> None:
    read, out = tiny(*TWO, "train.steps=2"), tmp_path / "out"
    arms = sweep_arms(read)
    _, second = split_arms(read, arms, False, lambda: machines.group_arms(read, arms, 2), least=1)
    (second.out / "checkpoints" / "step-00000001").mkdir(parents=True)
    result = spread(read, arms, "local", 2)
    (failed,) = result.failed
    assert result.exit == 1 and failed.part == str(out / "parts" / "02")
    assert "none of the checkpoints" in failed.error and Path(failed.log).is_file()
    others = set(arms) - set(failed.arms)
    assert {path.parent.name for path in out.glob("*/config.json")} == others and len(others) == 1
    shutil.rmtree(second.out / "checkpoints")
    assert sweep(read, arms).arms.keys() == arms.keys()  # here, one after another, it goes on too
    assert bits(out) == whole(tiny_path, tmp_path / "whole", "train.steps=2")


FAKE = {
    "sbatch": """#!/bin/bash
number=$$
script=$(mktemp)
sed "s/%A/$number/g; s/%a/0/g; s/%j/$number/g; s/%t/0/g" "$1" > $script
tasks=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' "$1")
export SLURM_JOB_ID=$number SLURM_NTASKS=${tasks:-1} SLURM_JOB_NUM_NODES=1 SLURM_PROCID=0 SLURM_LOCALID=0
nohup bash $script > /dev/null 2>&1 &
echo "Submitted batch job $number"
""",
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do
    case $1 in --output) output=$2; shift 2;; --error) error=$2; shift 2;; *) strict+=$1; shift;; esac
done
[[ $SLURM_NTASKS == 1 ]] && exec "$@" >> $output 2>> $error
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" >> $output 2>> $error &
done
while wait -n; do :; done
[[ $strict == *--kill-on-bad-exit=1* ]] && kill -9 $(jobs -p)
wait
""",
    "sacct": """#!/bin/bash
echo "JobID|State|NodeList"
""",
    "scontrol": """#!/bin/bash
echo "$@" >> $(dirname $0)/said
""",
}


TASK = {
    **{"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "16", "SLURM_JOB_NUM_NODES": "2"},
    **{"SLURM_NODEID": "1", "SLURM_PROCID": "11", "SLURM_LOCALID": "3"},
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands in PATH that do on this machine what those of SLURM would do on others."""
    for name, script in FAKE.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


def test_jobs_of_slurm(
    warm: Path, apart: None, slurm: Path, tiny: Callable[..., Recipe], tiny_path: Path, tmp_path: Path
) -> None:
    read = tiny(*TWO, "train.steps=2")
    options = {"time": "180", "gpus_per_node": "8", "reservation": "mine"}
    result = spread(read, sweep_arms(read), "slurm", 2, options)
    assert len(result.parts) == 2 and bits(tmp_path / "out") == whole(tiny_path, tmp_path / "whole", "train.steps=2")
    scripts = [path.read_text() for path in tmp_path.glob("out.jobs/*_submission.sh")]
    assert len(scripts) == 2
    assert all("srun " in script and " --kill-on-bad-exit=1 " in script for script in scripts)
    for option in ("time=180", "gpus-per-node=8", "reservation=mine", "job-name=scaleup", "signal=USR2@90"):
        assert all(f"#SBATCH --{option}\n" in script for script in scripts)


RANKS = """
import os, time
if os.environ.get("SLURM_PROCID") == "0":
    time.sleep(3600)  # as in a collective operation
if os.environ.get("SLURM_PROCID") == "1":
    from scaleup.common.errors import UserError
    from scaleup.sweeps import jobs
    def sweep(*_):
        raise UserError("the shards of this rank are away")
    jobs.sweep = sweep
"""


def test_a_rank_that_fails_ends_its_job(
    slurm: Path, tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(RANKS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setattr(machines, "group_arms", lambda _, arms, __: [arms])
    read = tiny(*TWO)
    result = spread(read, sweep_arms(read), "slurm", 1, {"time": "180", "ntasks_per_node": "2"})
    (failed,) = result.failed
    assert failed.error == "the shards of this rank are away" and failed.error in Path(failed.log).read_text()
    assert not left(None, f"{tmp_path / 'out'}.jobs")


def test_a_cause_is_told_before_what_it_caused(tmp_path: Path) -> None:
    def task(number: int) -> Any:
        told = ("rank 0 stops, because another of the 2 ranks no longer answers", "the disk is full")[number]
        return SimpleNamespace(
            paths=SimpleNamespace(result_pickle=tmp_path), exception=lambda: None, result=lambda: told
        )

    assert jobs.failure(SimpleNamespace(num_tasks=2, task=task)) == "the disk is full"


@pytest.mark.parametrize(("visible", "local"), [(1, "0"), (8, "3")])
def test_a_task_that_sees_one_gpu_uses_it(visible: int, local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: visible)
    with mock.patch.dict(os.environ, TASK):
        jobs.export_rank()
        assert (os.environ["LOCAL_RANK"], os.environ["RANK"], os.environ["WORLD_SIZE"]) == (local, "11", "16")


def test_a_job_whose_time_is_up_saves_and_is_queued_again(
    warm: Path, slurm: Path, tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, out = tiny(*TWO, "train.steps=4000", "train.save_every=0"), tmp_path / "out"
    made = jobs.Launcher("slurm", tmp_path / "jobs", {"time": "180"})
    job = made.submit(jobs.Job(read, sweep_arms(read), None, None, None))
    end = time.monotonic() + SECONDS
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < 2:
        assert time.monotonic() < end, job.stderr()
        time.sleep(0.05)
    (process,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if path.stat().st_uid == os.getuid()
        and f"SLURM_JOB_ID={job.job_id}".encode() in _read(path).split(b"\0")
        and b"submitit.core._submit" in _read(path.with_name("cmdline"))
    ]
    os.kill(process, signal.SIGUSR2)
    while not (slurm / "said").exists():
        assert time.monotonic() < end, job.stderr()
        time.sleep(0.05)
    assert (slurm / "said").read_text() == f"requeue {job.job_id}\n"
    (saved,) = (out / "checkpoints").iterdir()
    assert int(saved.name[-8:]) == (out / "metrics.jsonl").read_text().count("\n")
    again = job.submission().function
    assert again.recipe == read and again.arms == sweep_arms(read)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended in the meantime
        return b""


@pytest.mark.parametrize(
    ("where", "options", "said"),
    [
        ("slurm", {}, "--slurm time= is no time; a job needs one in whole minutes"),
        ("slurm", {"time": "2:00"}, "--slurm time=2:00 is no time"),
        ("slurm", {"time": "120"}, "--where slurm finds no srun here"),
    ],
)
def test_what_submits_no_job_is_said(
    tiny: Callable[..., Recipe], tmp_path: Path, where: str, options: dict[str, str], said: str
) -> None:
    read = tiny(*TWO)
    with pytest.raises(UserError, match=said):
        spread(read, sweep_arms(read), where, 2, options)
    assert not (tmp_path / "out").exists()


def test_a_refusal_of_slurm_is_its_own_sentence(slurm: Path, apart: None, tiny: Callable[..., Recipe]) -> None:
    (slurm / "sbatch").write_text("#!/bin/bash\necho \"sbatch: error: invalid partition: 'gold'\" >&2\nexit 1\n")
    read = tiny(*TWO)
    with pytest.raises(UserError, match="slurm takes no job: sbatch: error: invalid partition: 'gold'"):
        spread(read, sweep_arms(read), "slurm", 2, {"time": "10", "partition": "gold"})


def test_submitit_that_is_missing_is_said(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    read = tiny(*TWO)
    with pytest.raises(UserError, match=r"--where needs submitit; install it with: pip install 'scaleup\[cluster\]'"):
        spread(read, sweep_arms(read), "local", 2)


def test_jobs_are_not_started_by_every_rank(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    read = tiny(*TWO)
    with pytest.raises(UserError, match="start it without torchrun"):
        spread(read, sweep_arms(read), "local", 2)
