"""The remaining work, and how long it takes on this machine.

A rehearsal measures the time: each kind of run takes a few steps on a few samples, in a temporary directory.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from reproduce.desk import Desk
from reproduce.runs import arm_name, find_arm, identity, trained
from reproduce.tables import Source
from scaleup.config.schema import Arm, Recipe
from scaleup.training.run_directory import read_result


@dataclass(frozen=True)
class Task:
    """An arm to train with a seed, or a trained arm to evaluate in another way.

    Args:
        factors: factors of the learning rate. The task is done when the arm of one of them is. (The best factor of a
            row is not known before it is tuned.)
        steps: training steps; for an evaluation, the number of training steps that take as long.
        scores: for an evaluation, the file that it writes into the model's directory.
    """

    source: Source
    seed: int
    tubes: str
    factors: tuple[float, ...]
    steps: float
    scores: str = ""

    def is_done(self, desk: Desk) -> bool:
        if not desk.has(self.source, self.seed, self.tubes):
            return False
        recipe, arm = desk.read(self.source, self.seed, self.tubes)
        places = (find_arm(recipe, replace(arm, lr=arm.lr * factor), desk.runs) for factor in self.factors)
        return any(at is not None and (not self.scores or (at / self.scores).exists()) for at in places)


@dataclass(frozen=True)
class Remaining:
    """The remaining work: training runs, training steps of all arms, and seconds of everything."""

    runs: int
    arm_steps: int
    seconds: float


class Plan:
    """The tasks to do, those of start models included.

    It counts what takes most of the time: training steps, each as long as in the rehearsal, and evaluations with many
    views. It does not count making data, transplants and evaluations with one view.
    """

    def __init__(self, desk: Desk, tasks: Iterable[Task]) -> None:
        self.desk = desk
        self.tasks = [task for task in dict.fromkeys(tasks) if not task.is_done(desk)]
        stages = {(source, task.seed) for task in self.tasks for source in desk.stages(task.source)}
        start_tasks = [Task(source, seed, "folded", (1.0,), desk.steps(source)) for source, seed in stages]
        self.tasks += [task for task in start_tasks if not task.is_done(desk)]
        self.speeds = rehearse(desk, dict.fromkeys(task.source for task in self.tasks)) if self.tasks else {}

        self.total, self.began = self.remaining(), time.perf_counter()

    def progress(self) -> str:
        """In words: the share that is done, and the time that is left at the speed so far."""
        elapsed, seconds = time.perf_counter() - self.began, self.remaining().seconds
        done = self.total.seconds - seconds
        share, pace = (done / self.total.seconds, elapsed / done) if done else (float(not seconds), 1.0)
        return f"{share:.0%} after {elapsed:.0f} s, about {seconds * pace:.0f} s left"

    def remaining(self) -> Remaining:
        """The work that is not done yet. Finished tasks are dropped."""
        self.tasks = [task for task in self.tasks if not task.is_done(self.desk)]
        unique = {
            (self._run(task), self.speeds[task.source].arm, task.factors, task.scores): task for task in self.tasks
        }
        runs = {self._run(task): task for task in unique.values() if not task.scores}
        shared = sum(task.steps * self.speeds[task.source].trunk for task in runs.values())
        own = sum(task.steps * self._seconds(task) for task in unique.values())
        trained = sum(task.steps for task in unique.values() if not task.scores)
        return Remaining(len(runs), int(trained), shared + own)

    def _run(self, task: Task) -> tuple[str, float, int, str]:
        """A key for tasks that train in one run. (The steps are in it, because the rehearsal changes them to one
        number.)"""
        return self.speeds[task.source].run, task.steps, task.seed, task.tubes

    def _seconds(self, task: Task) -> float:
        """Seconds of a step that the task shares with no other."""
        speed = self.speeds[task.source]
        return speed.seconds + (speed.trunk if task.scores else 0.0)


SAMPLES = 64
# The last eight steps are timed: see late_mean in scaleup.common.timing.
SHORT = ["train.steps=13", "train.warmup=1"]


class Speed(NamedTuple):
    """Seconds of a step. Sources with the same ``run`` share a pass of the trunk; with the same ``arm``, the arm
    too."""

    run: str
    arm: str
    trunk: float
    seconds: float  # those of the arm


def rehearse(desk: Desk, sources: Iterable[Source]) -> dict[Source, Speed]:
    """The speed of each source, measured in one run with the sources that it trains with."""
    speeds: dict[Source, Speed] = {}
    with TemporaryDirectory() as at:
        trial = Desk(Path(at), [*desk.changes, *SHORT], SAMPLES)
        with redirect_stderr(io.StringIO()):  # hides the progress bars of these runs
            runs = _grouped(trial, sources)
        for number, (recipe, arms) in enumerate(runs, 1):
            print(f"rehearsal {number}/{len(runs)}: {_named(arms)}", file=sys.stderr)
            with redirect_stderr(io.StringIO()):
                speeds |= _speeds(trial, recipe, arms)
    return speeds


def _grouped(trial: Desk, sources: Iterable[Source]) -> list[tuple[Recipe, dict[Source, Arm]]]:
    runs: dict[str, tuple[Recipe, dict[Source, Arm]]] = {}
    for source in sources:
        recipe, arm = trial.read(source, 0)
        runs.setdefault(identity(recipe), (recipe, {}))[1][source] = arm
    return list(runs.values())


def _named(sources: Iterable[Source]) -> str:
    return ", ".join(" ".join([source.recipe, source.arm or " ".join(source.choices)]).strip() for source in sources)


def _speeds(trial: Desk, recipe: Recipe, arms: Mapping[Source, Arm]) -> dict[Source, Speed]:
    names = {source: arm_name(arm) for source, arm in arms.items()}
    trained(recipe, {names[source]: arm for source, arm in arms.items()}, trial.runs)
    speeds = {}
    for source, name in names.items():
        model = find_arm(recipe, arms[source], trial.runs)
        assert model is not None
        result = read_result(model.parent)
        assert result is not None and (seconds := result.arms[name].arm_seconds) is not None
        speeds[source] = Speed(identity(recipe), name, result.trunk_seconds, seconds)
    return speeds
