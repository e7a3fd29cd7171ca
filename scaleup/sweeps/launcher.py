"""submitit, and the only place that submits to it: jobs as processes of this machine, or of SLURM."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from scaleup.common.processes import explain
from scaleup.config.schema import Arm, Recipe
from scaleup.errors import UserError
from scaleup.training.run_directory import RunResult, StoppedRun


class Job:
    """Called where it runs; its tasks, if there are several, are the ranks of one run.

    Args:
        device: the one to use, of several that the jobs of one machine share.
    """

    def __init__(
        self, recipe: Recipe, arms: dict[str, Arm], stop_after: float | None, memory: int | None, device: str | None
    ) -> None:
        self.recipe, self.arms, self.stop_after, self.memory, self.device = recipe, arms, stop_after, memory, device

    def __call__(self) -> RunResult | StoppedRun | str:
        """The result of the sweep, or a sentence that says why it failed."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device  # submitit hides all
        _join()
        from scaleup.sweeps.parts import is_begun, sweep

        try:
            anew = not is_begun(Path(self.recipe.out))
            result = sweep(self.recipe, self.arms, anew, self.stop_after, self.memory)
        except Exception as error:
            if (said := explain(error)) is None:
                raise
            return said
        if result.exit == 128 + signal.SIGUSR2:
            signal.raise_signal(signal.SIGUSR2)  # all is saved: submitit queues the job again
        return result

    def checkpoint(self) -> Any:
        """What submitit queues again when time is up: the same, which goes on from what it saved."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _join() -> None:
    """Say to torch.distributed which of how many tasks this is."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


WHERE = ("local", "slurm")
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
        self.where, self.submitit = where, _submitit()
        for old in folder.glob("*.pkl"):
            old.unlink()
        if where == "local":
            self.executor = self.submitit.LocalExecutor(folder)
            self.executor.update_parameters(timeout_min=YEAR)
        else:
            self.executor = self._slurm(folder, slurm)

    def submit(self, job: Job) -> Any:
        """Returns submitit's job. A local one does not hear the terminal's Ctrl-C until it trains, and can save.

        Raises:
            UserError: it is refused.
        """
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
        try:
            return self.executor.submit(job)
        except (OSError, RuntimeError) as error:  # submitit's own are RuntimeErrors
            raise UserError(f"{self.where} takes no job: {' '.join(str(error).split())}") from error
        finally:
            signal.signal(signal.SIGINT, heard)

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

    def _slurm(self, folder: Path, options: Mapping[str, str]) -> Any:
        if not options.get("time", "").isdigit():
            raise UserError(
                f"--slurm time={options.get('time', '')} is no time; a job needs one in whole minutes, such as time=180"
            )
        try:
            executor = self.submitit.SlurmExecutor(folder, max_num_timeout=AGAIN)
        except RuntimeError as error:
            raise UserError(
                "--where slurm finds no srun here; start it on a machine from which jobs are sent"
            ) from error
        typed = {key: int(value) if value.isdigit() else value for key, value in options.items()}
        known = {key: typed.pop(key) for key in list(typed) if key in executor._valid_parameters()}
        executor.update_parameters(**{"job_name": "scaleup"} | known, additional_parameters=typed)
        return executor


def _submitit() -> ModuleType:
    try:
        import submitit
    except ImportError as error:
        raise UserError("--where needs submitit; install it with: pip install 'scaleup[cluster]'") from error
    return submitit
