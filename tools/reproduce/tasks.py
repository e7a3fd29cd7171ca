"""What is left to do, and how long it takes on this machine.

That is found by a rehearsal: each kind of run takes a few steps on a few samples, in a directory that goes away.
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
from reproduce.runs import arm_name, identity, place, trained
from reproduce.tables import Source
from scaleup.config.schema import Arm, Recipe
from scaleup.training.run_directory import read_result


@dataclass(frozen=True)
class Task:
    """An arm to train with a seed, or a trained one to evaluate in another way.

    Args:
        factors: of its learning rate, one of which will do: that of a row is not known before it is tuned.
        steps: or as many as an evaluation takes the time of.
        scores: the file that an evaluation leaves beside the model.
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
        places = (place(recipe, replace(arm, lr=arm.lr * factor), desk.runs) for factor in self.factors)
        return any(at is not None and (not self.scores or (at / self.scores).exists()) for at in places)


@dataclass(frozen=True)
class Left:
    """What is left: runs and steps of arms in training, seconds of all."""

    runs: int
    arm_steps: int
    seconds: float


class Plan:
    """Tasks, and the models that they begin from. What costs most of the time is counted: steps, each as long as in a
    rehearsal, and evaluations with many views; not data, transplants and evaluations in passing."""

    def __init__(self, desk: Desk, tasks: Iterable[Task]) -> None:
        self.desk = desk
        self.tasks = [task for task in dict.fromkeys(tasks) if not task.is_done(desk)]
        stages = {(source, task.seed) for task in self.tasks for source in desk.stages(task.source)}
        begun = [Task(source, seed, "folded", (1.0,), desk.steps(source)) for source, seed in stages]
        self.tasks += [task for task in begun if not task.is_done(desk)]
        self.speeds = rehearse(desk, dict.fromkeys(task.source for task in self.tasks)) if self.tasks else {}

        self.total, self.began = self.left(), time.perf_counter()

    def progress(self) -> str:
        """The share that is done and the time that is left, at the pace so far."""
        elapsed, left = time.perf_counter() - self.began, self.left().seconds
        done = self.total.seconds - left
        share, pace = (done / self.total.seconds, elapsed / done) if done else (float(not left), 1.0)
        return f"{share:.0%} after {elapsed:.0f} s, about {left * pace:.0f} s left"

    def left(self) -> Left:
        """Of what was not done when this was made."""
        self.tasks = [task for task in self.tasks if not task.is_done(self.desk)]
        alike = {
            (self._run(task), self.speeds[task.source].arm, task.factors, task.scores): task for task in self.tasks
        }
        runs = {self._run(task): task for task in alike.values() if not task.scores}
        shared = sum(task.steps * self.speeds[task.source].trunk for task in runs.values())
        own = sum(task.steps * self._alone(task) for task in alike.values())
        trained = sum(task.steps for task in alike.values() if not task.scores)
        return Left(len(runs), int(trained), shared + own)

    def _run(self, task: Task) -> tuple[str, float, int, str]:
        """What the arms of a run have in common; in the rehearsal all take as many steps."""
        return self.speeds[task.source].run, task.steps, task.seed, task.tubes

    def _alone(self, task: Task) -> float:
        """Seconds of a step that are shared with no other task."""
        speed = self.speeds[task.source]
        return speed.seconds + (speed.trunk if task.scores else 0.0)


SAMPLES = 64
SHORT = ["train.steps=13", "train.warmup=1"]  # of which eight count: see settled_mean in scaleup.training.arm_trainer


class Speed(NamedTuple):
    """Seconds of a step; sources with the same ``run`` share a pass of the trunk, with the same ``arm`` an arm."""

    run: str
    arm: str
    trunk: float
    seconds: float  # of the arm


def rehearse(desk: Desk, sources: Iterable[Source]) -> dict[Source, Speed]:
    """The speed of each source, measured beside those that it trains with."""
    speeds: dict[Source, Speed] = {}
    with TemporaryDirectory() as at:
        trial = Desk(Path(at), [*desk.changes, *SHORT], SAMPLES)
        with redirect_stderr(io.StringIO()):  # bars of runs that nobody asked for
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
        model = place(recipe, arms[source], trial.runs)
        assert model is not None
        result = read_result(model.parent)
        assert result is not None and (seconds := result.arms[name].arm_seconds) is not None
        speeds[source] = Speed(identity(recipe), name, result.trunk_seconds, seconds)
    return speeds
