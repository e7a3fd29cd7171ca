"""A rehearsal: each kind of run takes a few steps on a few samples, in a directory that goes away afterwards, to find
how fast it is on this machine."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from reproduce.desk import Desk
from reproduce.runs import arm_name, identity, place, trained
from reproduce.table import Source
from scaleup.config.schema import Arm, Recipe
from scaleup.training.run_directory import read_result

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
    found: dict[Source, Speed] = {}
    with TemporaryDirectory() as at:
        trial = Desk(Path(at), [*desk.changes, *SHORT], SAMPLES)
        with redirect_stderr(io.StringIO()):  # bars of runs that nobody asked for
            groups = _grouped(trial, sources)
        for number, (recipe, arms) in enumerate(groups, 1):
            print(f"rehearsal {number}/{len(groups)}: {_said(arms)}", file=sys.stderr)
            with redirect_stderr(io.StringIO()):
                found |= _speeds(trial, recipe, arms)
    return found


def _grouped(trial: Desk, sources: Iterable[Source]) -> list[tuple[Recipe, dict[Source, Arm]]]:
    groups: dict[str, tuple[Recipe, dict[Source, Arm]]] = {}
    for source in sources:
        recipe, arm = trial.read(source, 0)
        groups.setdefault(identity(recipe), (recipe, {}))[1][source] = arm
    return list(groups.values())


def _said(sources: Iterable[Source]) -> str:
    return ", ".join(" ".join([source.recipe, source.arm or " ".join(source.choices)]).strip() for source in sources)


def _speeds(trial: Desk, recipe: Recipe, arms: Mapping[Source, Arm]) -> dict[Source, Speed]:
    names = {source: arm_name(arm) for source, arm in arms.items()}
    trained(recipe, {names[source]: arm for source, arm in arms.items()}, trial.runs)
    found = {}
    for source, name in names.items():
        made = place(recipe, arms[source], trial.runs)
        assert made is not None
        result = read_result(made.parent)
        assert result is not None and (seconds := result.arms[name].arm_seconds) is not None
        found[source] = Speed(identity(recipe), name, result.trunk_seconds, seconds)
    return found
