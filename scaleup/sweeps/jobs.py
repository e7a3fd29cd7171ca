"""Jobs of submitit: a sweep each, on this machine or by SLURM, whose tasks are the ranks of a run."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from scaleup.common.distributed import LOST
from scaleup.common.errors import UserError
from scaleup.common.processes import end_all, explain
from scaleup.config.schema import Arm, Recipe
from scaleup.sweeps.parts import is_begun, sweep
from scaleup.training.run_directory import RunResult, StoppedRun


@dataclass
class Job:
    """A sweep as a job, which submitit calls. If the job has several tasks, they are the ranks of one run."""

    recipe: Recipe
    arms: dict[str, Arm]
    stop_after: float | None  # seconds
    memory: int | None  # bytes of a device
    device: str | None  # the job's GPU, if jobs on one machine share several

    def __call__(self) -> RunResult | StoppedRun | str:
        """The result of the sweep, or a sentence that says why it failed."""
        from submitit import JobEnvironment

        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device  # submitit hides all
        if (ranks := JobEnvironment().num_tasks) > 1:
            export_rank()
        try:
            anew = not is_begun(Path(self.recipe.out))
            result = sweep(self.recipe, self.arms, anew, self.stop_after, self.memory)
        except Exception as error:
            if ranks > 1:  # the others wait for this one, until SLURM sees it fail
                atexit.register(end_all, 1)
            if (sentence := explain(error)) is None:
                raise
            print(sentence, file=sys.stderr)
            return sentence
        if result.exit == 128 + signal.SIGUSR2:
            signal.raise_signal(signal.SIGUSR2)  # everything is saved: submitit queues the job again
        return result

    def checkpoint(self) -> Any:
        """The job that submitit queues when the time is over: the same one, which resumes from its checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def export_rank() -> None:
    """Tell torch which rank this task of SLURM is."""
    from submitit.helpers import TorchDistributedEnvironment

    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if torch.accelerator.device_count() == 1:  # SLURM shows each task one of its own (gpus_per_task=1)
        os.environ["LOCAL_RANK"] = "0"


NO_RESULT = "it ended without a result"


def failure(job: Any) -> str | None:
    """Why a task of submitit's job failed, if one has; the others may not have ended yet, or were killed for it."""
    tasks = [each for each in map(job.task, range(job.num_tasks)) if each.paths.result_pickle.exists()]
    told = [NO_RESULT if task.exception() else task.result() for task in tasks]
    sentences = [each for each in told if isinstance(each, str)]
    return min(sentences, key=lambda each: each == NO_RESULT or LOST in each, default=None)


YEAR = 365 * 24 * 60  # minutes; by default submitit ends local jobs after two minutes
AGAIN = 1000  # how often a job is queued again when its time is over


class Launcher:
    """Submits jobs. Their logs and pickles are in ``folder``.

    Args:
        slurm: options of ``sbatch`` with '_' for '-'; ``time`` (minutes) is required.

    Raises:
        UserError: submitit or SLURM is not installed, or ``time`` is missing.
    """

    def __init__(self, where: str, folder: Path, slurm: Mapping[str, str]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("--where needs submitit; install it with: pip install 'scaleup[cluster]'") from error
        self.where, self.folder = where, folder
        if where == "local":
            self.executor = submitit.LocalExecutor(folder)
            self.executor.update_parameters(timeout_min=YEAR)
        else:
            self.executor = _slurm_executor(submitit, folder, slurm)

    def tidy(self) -> None:
        """Delete the pickles of earlier jobs. Those that still wait in a queue fail without them."""
        for old in self.folder.glob("*.pkl"):
            old.unlink()

    def submit(self, job: Job) -> Any:
        """Submit a job; returns submitit's job. A local one ignores the terminal's Ctrl-C until it can save.

        Raises:
            UserError: the job is refused.
        """
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the job inherits this
        try:
            return self.executor.submit(job)
        except (OSError, RuntimeError) as error:  # errors of submitit are RuntimeErrors
            raise UserError(f"{self.where} takes no job: {' '.join(str(error).split())}") from error
        finally:
            signal.signal(signal.SIGINT, handler)

    def result(self, job: Any) -> RunResult | StoppedRun | str:
        """The result of a job that has ended (see :meth:`Job.__call__`). Its pickles are deleted."""
        result = failure(job) or (NO_RESULT if job.exception() else job.results()[0])
        for pickle in job.paths.folder.glob(f"{job.job_id}_*.pkl"):
            pickle.unlink()
        return result

    def end(self, job: Any) -> None:
        """Ask a job to save and end."""
        if self.where == "slurm":
            job.cancel(check=False)
        else:
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit would leave it one second, too little to save


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
    common = {"job_name": "scaleup", "srun_args": ["--kill-on-bad-exit=1"]}  # a rank that fails ends the others
    executor.update_parameters(**common | own, additional_parameters=typed)
    return executor
