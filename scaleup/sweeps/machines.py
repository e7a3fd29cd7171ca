"""A sweep on several machines at once: each part of it a job, with a trunk as shallow as its arms allow."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.common.processes import explain
from scaleup.common.timing import progress
from scaleup.config.schema import Arm, Recipe
from scaleup.sweeps.costs import own_memory
from scaleup.sweeps.parts import PARTS, Part, collect, group_arms, is_begun, split_arms, summary, sweep
from scaleup.training import run_directory
from scaleup.training.run import Stop, exit_code
from scaleup.training.run_directory import RunResult, StoppedRun, is_complete


@dataclass
class FailedPart:
    """A part of a sweep whose job failed."""

    part: str  # its directory
    arms: list[str]  # their names
    error: str  # why, in a sentence
    log: str  # what the job printed


@dataclass
class FailedSweep:
    """A sweep some of whose jobs failed. What the others trained stays, and the same call goes on."""

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

    Parts that were begun go on as they are, ``machines`` of them at a time. Logs, and the pickles by which submitit
    hands over jobs, are in a directory beside the output: ``OUT.jobs``.

    Args:
        where: ``"local"``: processes of this machine, one for each GPU if it has some; ``"slurm"``: jobs of SLURM.
        slurm: see :class:`scaleup.sweeps.machines.Launcher`.

    Raises:
        UserError: as :func:`scaleup.sweeps.parts.sweep` and :class:`scaleup.sweeps.machines.Launcher`, or jobs cannot
            be submitted.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"--where {where} starts jobs of its own; start it without torchrun or deepspeed")
    run_directory.check_resumable(recipe, overwrite)  # what is wrong with the output is said before a job is thought of
    out = Path(recipe.out)
    launcher = Launcher(where, out.with_name(out.name + ".jobs"), slurm or {})
    parts = split_arms(recipe, arms, overwrite, lambda: group_arms(recipe, arms, machines), least=1)
    if not parts:
        raise UserError(f"{recipe.out!r} holds a run that was begun on one machine; go on with it without --where")
    with run_directory.lock_run(out):
        fleet = Fleet(launcher, recipe, min(machines, len(parts)), stop_after, memory)
        reason = fleet.train([part for part in parts if not is_complete(part.out)])
        for part in parts:
            if is_complete(part.out):
                collect(part, out)
        if all(is_complete(part.out) for part in parts):
            return summary(recipe, arms, parts)
    return _incomplete(recipe, fleet, reason)


class Fleet:
    """Jobs that train parts of a sweep, at most so many at a time; ``results`` are of those that ended without fault,
    ``failed`` the others."""

    def __init__(
        self, launcher: Launcher, recipe: Recipe, machines: int, stop_after: float | None, memory: int | None
    ) -> None:
        self.launcher, self.recipe, self.machines, self.stop_after = launcher, recipe, machines, stop_after
        self.devices, self.memory = list[str](), memory
        if launcher.where == "local":  # jobs share what this machine has
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
            self.devices = visible.split(",") if visible else []
            self.memory = memory or own_memory() // math.ceil(machines / max(1, len(self.devices)))
        self.results: list[RunResult | StoppedRun] = []
        self.failed: list[FailedPart] = []

    def train(self, parts: list[Part]) -> int:
        """Train parts until they have ended; returns for which signal they were asked to end, if for one."""
        waiting, running, reason = list(parts), dict[int, tuple[Part, Any]](), 0
        total = self.recipe.train.steps * sum(len(part.arms) for part in parts)
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
                    for slot in [slot for slot, (_, job) in running.items() if job.done()]:
                        self._note(*running.pop(slot))
                    before, steps = steps, max(steps, sum(_count_steps(part.out) for part in parts))
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
        """What a job that has ended came to."""
        result = self.launcher.result(job)
        if isinstance(result, str):
            self.failed.append(FailedPart(str(part.out), list(part.arms), result, str(job.paths.stderr)))
        else:
            self.results.append(result)

    def _end(self, running: Mapping[int, tuple[Part, Any]]) -> None:
        for _, job in running.values():
            self.launcher.end(job)


def _incomplete(recipe: Recipe, fleet: Fleet, reason: int) -> StoppedRun | FailedSweep:
    """What came of a sweep that is not complete; a job that was asked to end before it trained has no result."""
    if fleet.failed and not reason:
        return FailedSweep(recipe.out, recipe.train.steps, fleet.failed)
    stopped = min((result.stopped for result in fleet.results if isinstance(result, StoppedRun)), default=0)
    code = exit_code(reason) if reason else max(result.exit for result in fleet.results)
    return StoppedRun(recipe.out, recipe.train.steps, stopped, code)


TAIL = 1 << 20  # bytes at the end of metrics in which their last line is looked for


def _count_steps(out: Path) -> int:
    """Steps that the arms of a part have taken so far, or of its own parts."""
    try:
        entries = [_last_line(path) for path in (*out.glob("metrics.jsonl"), *out.glob(f"{PARTS}/*/metrics.jsonl"))]
        return sum((entry["step"] + 1) * len(entry["arms"]) for entry in entries if entry)
    except OSError:  # a job puts its directory there at this moment
        return 0


def _last_line(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b"\n")  # the last is empty, or being written
    return json.loads(lines[-2]) if len(lines) > 1 else {}


@dataclass
class Job:
    """A sweep, called where it runs; its tasks, if there are several, are the ranks of one run."""

    recipe: Recipe
    arms: dict[str, Arm]
    stop_after: float | None  # seconds
    memory: int | None  # bytes of a device
    device: str | None  # the one to use, of several that the jobs of one machine share

    def __call__(self) -> RunResult | StoppedRun | str:
        """The result of the sweep, or a sentence that says why it failed."""
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device  # submitit hides all
        if JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        try:
            anew = not is_begun(Path(self.recipe.out))
            result = sweep(self.recipe, self.arms, anew, self.stop_after, self.memory)
        except Exception as error:
            if (sentence := explain(error)) is None:
                raise
            return sentence
        if result.exit == 128 + signal.SIGUSR2:
            signal.raise_signal(signal.SIGUSR2)  # all is saved: submitit queues the job again
        return result

    def checkpoint(self) -> Any:
        """What submitit queues again when time is up: the same, which goes on from what it saved."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


YEAR = 365 * 24 * 60  # minutes; local jobs end after two of them where submitit is not told otherwise
AGAIN = 1000  # times that a job whose time is up is queued again


class Launcher:
    """Submits jobs, whose logs and pickles are in ``folder``; no job reads a pickle that was there before.

    Args:
        slurm: options of ``sbatch`` with '_' for '-'; ``time`` must be there, in minutes.

    Raises:
        UserError: submitit is not installed, SLURM is not here, or it has no time.
    """

    def __init__(self, where: str, folder: Path, slurm: Mapping[str, str]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("--where needs submitit; install it with: pip install 'scaleup[cluster]'") from error
        self.where = where
        for old in folder.glob("*.pkl"):
            old.unlink()
        if where == "local":
            self.executor = submitit.LocalExecutor(folder)
            self.executor.update_parameters(timeout_min=YEAR)
        else:
            self.executor = _slurm_executor(submitit, folder, slurm)

    def submit(self, job: Job) -> Any:
        """Returns submitit's job. A local one does not hear the terminal's Ctrl-C until it trains, and can save.

        Raises:
            UserError: it is refused.
        """
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
        try:
            return self.executor.submit(job)
        except (OSError, RuntimeError) as error:  # submitit's own are RuntimeErrors
            raise UserError(f"{self.where} takes no job: {' '.join(str(error).split())}") from error
        finally:
            signal.signal(signal.SIGINT, handler)

    def result(self, job: Any) -> RunResult | StoppedRun | str:
        """What a job that is done returned (see :meth:`Job.__call__`); its pickles go."""
        result = "it ended without a result" if job.exception() else job.results()[0]
        for pickle in job.paths.folder.glob(f"{job.job_id}_*.pkl"):
            pickle.unlink()
        return result

    def end(self, job: Any) -> None:
        """Ask a job to save and end."""
        if self.where == "slurm":
            job.cancel(check=False)
        else:
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's own way leaves a second, too little to save


def _slurm_executor(submitit: ModuleType, folder: Path, options: Mapping[str, str]) -> Any:
    time = options.get("time", "")
    if not time.isdigit():
        raise UserError(f"--slurm time={time} is no time; a job needs one in whole minutes, such as time=180")
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=AGAIN)
    except RuntimeError as error:
        raise UserError("--where slurm finds no srun here; start it on a machine from which jobs are sent") from error
    typed = {key: int(value) if value.isdigit() else value for key, value in options.items()}
    own = {key: typed.pop(key) for key in list(typed) if key in executor._valid_parameters()}
    executor.update_parameters(**{"job_name": "scaleup"} | own, additional_parameters=typed)
    return executor
