"""A sweep of any number of arms: one run if memory holds them all, else several parts, each of which is a run."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple, cast

import torch

from scaleup.common.distributed import join
from scaleup.common.files import move, new_directory
from scaleup.config import recipe as recipes
from scaleup.config.schema import Arm, Recipe
from scaleup.sweeps import costs
from scaleup.sweeps.out_of_memory import train
from scaleup.sweeps.sketch import Sketch
from scaleup.training import run_directory
from scaleup.training.run_directory import RESULT, RunResult, StoppedRun, is_complete, read_result

PARTS = "parts"
Groups = list[dict[str, Arm]]


class Part(NamedTuple):
    """Arms that train together, in a run directory of their own until they are complete."""

    out: Path
    arms: dict[str, Arm]

    def recipe(self, sweep: Recipe) -> Recipe:
        return replace(sweep, out=str(self.out), arms={name: asdict(arm) for name, arm in self.arms.items()}, grid={})


def sweep(
    recipe: Recipe,
    arms: dict[str, Arm] | None = None,
    overwrite: bool = False,
    stop_after: float | None = None,
    memory: int | None = None,
) -> RunResult | StoppedRun:
    """Train arms as :func:`scaleup.training.run.train` does, in as few parts as fit, one after another.

    A part is the run ``recipe.out/parts/01``. When it is complete, its models are moved to ``recipe.out``. When a sweep
    is resumed, parts that were begun keep their arms; if nothing was saved, the parts are planned again.

    Args:
        arms: by name; by default all arms of the recipe.
        overwrite, stop_after: see :func:`scaleup.training.run.train`.
        memory: bytes that a run may use on each device; by default all memory of the device.

    Returns:
        The result as of :func:`scaleup.training.run.train`; several parts give one result, with ``parts``.

    Raises:
        UserError: as :func:`scaleup.training.run.train`, or an arm does not fit alone.
    """
    end = None if stop_after is None else time.monotonic() + stop_after
    arms = arms or recipes.sweep_arms(recipe)
    world, out = join(), Path(recipe.out)
    leads = world.rank == 0
    with world.together(), ExitStack() as stack:
        parts = world.first(split_arms(recipe, arms, overwrite, lambda: waves(recipe, arms, memory)) if leads else [])
        if not parts:
            return train(recipe, arms, overwrite, stop_after)
        if leads:
            stack.enter_context(run_directory.lock_run(out))
        for number, part in enumerate(parts, 1):
            if not world.first(is_complete(part.out)):
                if leads:
                    print(f"part {number} of {len(parts)}: {', '.join(part.arms)}", file=sys.stderr)
                left = None if end is None else end - time.monotonic()
                result = sweep(part.recipe(recipe), part.arms, not is_begun(part.out), left, memory)
                _free()
                if isinstance(result, StoppedRun):
                    return replace(result, out=recipe.out, part=f"{number} of {len(parts)}")
            if leads:
                collect(part, out)
        return cast(RunResult, world.first(summary(recipe, arms, parts) if leads else None))


def waves(recipe: Recipe, arms: dict[str, Arm], memory: int | None) -> Groups:
    """Groups of arms that fit together, for this number of ranks."""
    return costs.waves(recipe, arms, costs.own_memory() if memory is None else memory, join().size)


def split_arms(
    recipe: Recipe, arms: dict[str, Arm], overwrite: bool, split: Callable[[], Groups], least: int = 2
) -> list[Part]:
    """The parts of a sweep that is resumed, or of a new one that ``split`` divides into ``least`` groups or more.

    An empty list means that the sweep is a single run.

    Raises:
        UserError: the output exists and this recipe can neither replace nor resume it.
    """
    out = Path(recipe.out)
    with run_directory.lock_run(out):
        if run_directory.check_resumable(recipe, overwrite) and is_begun(out):
            paths = sorted((out / PARTS).glob("*/recipe.yaml"))
            return [Part(path.parent, {name: arms[name] for name in recipes.load_saved(path).arms}) for path in paths]
        arms_of_parts = split()
        if len(arms_of_parts) < least:
            return []
        run_directory.begin(recipe, overwrite=True)
        return _begin(recipe, arms_of_parts)


def group_arms(recipe: Recipe, arms: dict[str, Arm], machines: int) -> list[dict[str, Arm]]:
    """A group of arms of similar depths for each machine; the largest FLOPs a step of a group are minimised."""
    sketch = Sketch(recipe, arms)
    names = sorted(arms, key=lambda name: arms[name].frozen_depth)
    trunk = [sketch.trunk([name], "video", 1).flops for name in names]
    ends = balance(trunk, [sketch.arm(name, "video", 1).flops for name in names], min(machines, len(names)))
    return [{name: arms[name] for name in names[begin:end]} for begin, end in pairwise((0, *ends))]


def balance(trunk: Sequence[float], arms: Sequence[float], count: int) -> tuple[int, ...]:
    """Split arms, in their order, into ``count`` groups whose largest cost is smallest; returns the end of each group.

    Args:
        trunk: the cost of a trunk pass to the depth of each arm, in rising order; a group pays for its deepest.
        arms: the cost of a step of each arm alone.
    """
    before = [0, *accumulate(arms)]

    @cache
    def best(begin: int, count: int) -> tuple[float, tuple[int, ...]]:
        """The largest cost of ``count`` groups of the arms from ``begin`` on, and the ends of the groups."""
        if count == 0:
            return 0.0, ()
        lasts = range(begin + 1, len(arms) - count + 2) if count > 1 else [len(arms)]
        rests = {end: best(end, count - 1) for end in lasts}
        own = {end: trunk[end - 1] + before[end] - before[begin] for end in lasts}
        return min((max(own[end], dearest), (end, *ends)) for end, (dearest, ends) in rests.items())

    return best(0, count)[1]


def is_begun(out: Path) -> bool:
    """Whether the run in ``out`` has anything that a new start would lose."""
    return any((out / name).exists() for name in ("checkpoints", PARTS, RESULT))


def _begin(recipe: Recipe, arms_of_parts: Groups) -> list[Part]:
    """Make the directories of all parts, or none."""
    place = Path(recipe.out) / PARTS
    parts = [Part(place / f"{number:02d}", arms) for number, arms in enumerate(arms_of_parts, 1)]
    with new_directory(place) as half:
        for part in parts:
            (half / part.out.name).mkdir()
            recipes.save(run_directory.with_absolute_paths(part.recipe(recipe)), half / part.out.name / "recipe.yaml")
    return parts


def collect(part: Part, out: Path) -> None:
    """Move the models of a complete part to the directory of the sweep."""
    for name in part.arms:
        if (part.out / name).exists():
            move(part.out / name, out / name)


def summary(recipe: Recipe, arms: dict[str, Arm], parts: list[Part]) -> RunResult:
    """Combine the results of all parts and write them as the result of the sweep, which is then complete."""
    results = [result for part in parts if (result := read_result(part.out)) is not None]
    by_arm = {name: arm for result in results for name, arm in result.arms.items()}
    for name, arm in by_arm.items():
        arm.directory = arm.directory and str(Path(recipe.out) / name)  # None if it diverged
    trunks = [result.trunk for result in results if result.trunk]
    drift = {depth: moved for trunk in trunks for depth, moved in trunk.get("drift", {}).items()}
    combined = replace(
        results[0],
        out=recipe.out,
        steps=max(result.steps for result in results),
        trunk_seconds=sum(result.trunk_seconds for result in results),
        trunk=trunks[0] | {"drift": drift} if trunks else {},
        arms={name: by_arm[name] for name in arms},
        exit=max(result.exit for result in results),
        parts=[list(part.arms) for part in parts],
    )
    combined.write()
    return combined


def _free() -> None:
    """Free the memory of a part on the device. Engines refer to themselves, so the garbage collector must run."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
