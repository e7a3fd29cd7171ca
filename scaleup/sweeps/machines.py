"""A sweep on several machines: each part is a job, whose trunk is only as deep as its arms need."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.common.timing import progress
from scaleup.config.schema import Arm, Recipe, Train, run_steps, schedule
from scaleup.sweeps.costs import own_memory
from scaleup.sweeps.jobs import Job, Launcher, failure
from scaleup.sweeps.parts import PARTS, Part, collect, group_arms, split_arms, summary
from scaleup.training import run_directory
from scaleup.training.run_directory import RunResult, StoppedRun, is_complete
from scaleup.training.stop import Stop, exit_code


@dataclass
class FailedPart:
    """A part of a sweep whose job failed."""

    part: str  # its directory
    arms: list[str]  # their names
    error: str  # the reason, a sentence
    log: str  # the file with the job's output


@dataclass
class FailedSweep:
    """A sweep with jobs that failed. The models of the other jobs stay, and the same call resumes the sweep."""

    out: str  # its directory
    steps: int
    failed: list[FailedPart]
    exit: int = 1  # the exit code


def spread(
    recipe: Recipe,
    arms: dict[str, Arm],
    where: str,
    machines: int,
    slurm: Mapping[str, str] | None = None,
    overwrite: bool = False,
    stop_after: float | None = None,
    memory: int | None = None,
) -> RunResult | StoppedRun | FailedSweep:
    """Train ``arms`` as :func:`scaleup.sweeps.parts.sweep` does, in a part for each of ``machines``.

    All machines see the output.

    Parts that were begun are resumed unchanged, ``machines`` of them at a time. Logs of the jobs, and submitit's
    pickles, are in a directory beside the output: ``OUT.jobs``.

    Args:
        where: ``"local"``: processes of this machine, one for each GPU if it has some; ``"slurm"``: jobs of SLURM.
        slurm: see :class:`scaleup.sweeps.jobs.Launcher`.

    Raises:
        UserError: as :func:`scaleup.sweeps.parts.sweep` and :class:`scaleup.sweeps.jobs.Launcher`, or jobs cannot
            be submitted.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"--where {where} starts jobs of its own; start it without torchrun or deepspeed")
    run_directory.check_resumable(recipe, overwrite)  # check the output before a job is submitted
    out = Path(recipe.out)
    launcher = Launcher(where, out.with_name(out.name + ".jobs"), slurm or {})
    parts = split_arms(recipe, arms, overwrite, lambda: group_arms(recipe, arms, machines), least=1)
    if not parts:
        raise UserError(f"{recipe.out!r} holds a run that was begun on one machine; go on with it without --where")
    with run_directory.lock_run(out):
        launcher.tidy()
        fleet = Fleet(launcher, recipe, min(machines, len(parts)), stop_after, memory)
        reason = fleet.train([part for part in parts if not is_complete(part.out)])
        for part in parts:
            if is_complete(part.out):
                collect(part, out)
        if all(is_complete(part.out) for part in parts):
            return summary(recipe, arms, parts)
    return _incomplete(recipe.out, run_steps(arms.values(), recipe.train), fleet, reason)


class Fleet:
    """Jobs that train parts of a sweep, a limited number at a time; ``results`` are those of jobs that ended well,
    ``failed`` the other jobs."""

    def __init__(
        self, launcher: Launcher, recipe: Recipe, machines: int, stop_after: float | None, memory: int | None
    ) -> None:
        self.launcher, self.recipe, self.machines, self.stop_after = launcher, recipe, machines, stop_after
        self.devices, self.memory = list[str](), memory
        if launcher.where == "local":  # jobs share this machine's GPUs
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
            self.devices = visible.split(",") if visible else []
            if memory is None:
                self.memory = own_memory() // math.ceil(machines / max(1, len(self.devices)))
        self.results: list[RunResult | StoppedRun] = []
        self.failed: list[FailedPart] = []

    def train(self, parts: list[Part]) -> int:
        """Train parts until all have ended. Returns the signal that ended them early, or 0."""
        waiting, running, reason = list(parts), dict[int, tuple[Part, Any]](), 0
        total = sum(schedule(arm, self.recipe.train)[0] for part in parts for arm in part.arms.values())
        with Stop(World(0, 1, torch.device("cpu")), None) as stop, progress("steps of arms", total) as advance:
            steps = 0
            try:
                while waiting or running:
                    for slot in range(self.machines):
                        if waiting and slot not in running:
                            running[slot] = waiting[0], self._submit(waiting.pop(0), slot)
                    time.sleep(1)
                    if not reason and (reason := stop.reason()):
                        waiting.clear()
                        self._end(running)
                    for slot in [slot for slot, (_, job) in running.items() if job.done() or failure(job)]:
                        self._note(*running.pop(slot))
                    before, steps = steps, max(steps, sum(_count_steps(part, self.recipe.train) for part in parts))
                    advance(steps - before, f"{len(running)} jobs, {len(waiting)} to come")
            finally:
                self._end(running)
        return reason

    def _submit(self, part: Part, slot: int) -> Any:
        device = self.devices[slot % len(self.devices)] if self.devices else None
        job = self.launcher.submit(Job(part.recipe(self.recipe), part.arms, self.stop_after, self.memory, device))
        print(f"{part.out}: {', '.join(part.arms)}; log: {job.paths.stderr}", file=sys.stderr)
        return job

    def _note(self, part: Part, job: Any) -> None:
        """Store the result of a job that has ended."""
        result = self.launcher.result(job)
        if isinstance(result, str):
            self.failed.append(FailedPart(str(part.out), list(part.arms), result, str(job.paths.stderr)))
        else:
            self.results.append(result)

    def _end(self, running: Mapping[int, tuple[Part, Any]]) -> None:
        for _, job in running.values():
            self.launcher.end(job)


def _incomplete(out: str, steps: int, fleet: Fleet, reason: int) -> StoppedRun | FailedSweep:
    """The result of a sweep that is not complete. A job that was ended before it trained has no result."""
    if fleet.failed and not reason:
        return FailedSweep(out, steps, fleet.failed)
    stopped = min((result.stopped for result in fleet.results if isinstance(result, StoppedRun)), default=0)
    code = exit_code(reason) if reason else max(result.exit for result in fleet.results)
    return StoppedRun(out, steps, stopped, code)


TAIL = 1 << 20  # bytes at the end of metrics.jsonl, which contain its last line


def _count_steps(part: Part, train: Train) -> int:
    """Steps of the arms of a part, in one run or in several, so far. An arm that has ended has taken all of its own."""
    own = {name: schedule(arm, train)[0] for name, arm in part.arms.items()}
    try:
        runs = [_ends(path) for path in (*part.out.glob("metrics.jsonl"), *part.out.glob(f"{PARTS}/*/metrics.jsonl"))]
        return sum(min(last["step"] + 1, own[name]) for first, last in filter(None, runs) for name in first["arms"])
    except OSError:  # a job creates its directory at this moment
        return 0


def _ends(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The first and the last line of metrics.jsonl, if there is one."""
    with path.open("rb") as file:
        first = file.readline()
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b"\n")  # the last one is empty or incomplete
    return (json.loads(first), json.loads(lines[-2])) if len(lines) > 1 else None
