"""One part of a sweep as a job of submitit; what takes seconds to import, or asks for its rank, is imported there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from scaleup.common.causes import sentence
from scaleup.config.schema import Arm, Recipe


class Job:
    """Called where it runs; its tasks, if there are several, are the ranks of one run.

    Args:
        device: the one to use, of several that the jobs of one machine share.
    """

    def __init__(
        self, recipe: Recipe, arms: dict[str, Arm], stop_after: float | None, memory: int | None, device: str | None
    ) -> None:
        self.recipe, self.arms, self.stop_after, self.memory, self.device = recipe, arms, stop_after, memory, device

    def __call__(self) -> dict[str, Any]:
        """The result of the sweep, or ``{"error": sentence}``."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device  # submitit hides all
        _join()
        from scaleup.sweeps.sweep import begun, sweep

        try:
            anew = not begun(Path(self.recipe.out))
            result = sweep(self.recipe, self.arms, anew, self.stop_after, self.memory)
        except Exception as error:
            if (said := sentence(error)) is None:
                raise
            return {"error": said}
        if result.get("exit") == 128 + signal.SIGUSR2:
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
