"""Which arms of a sweep share a machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise

from scaleup.config.schema import Arm, Recipe
from scaleup.sweeps.sketch import Sketch


def groups(recipe: Recipe, arms: dict[str, Arm], machines: int) -> list[dict[str, Arm]]:
    """Arms of neighbouring depths for each machine, so that the busiest has as few FLOPs a step as it can."""
    sketch = Sketch(recipe, arms)
    names = sorted(arms, key=lambda name: arms[name].frozen_depth)
    trunk = [sketch.trunk([name], "video", 1).flops for name in names]
    ends = balanced(trunk, [sketch.arm(name, "video", 1).flops for name in names], min(machines, len(names)))
    return [{name: arms[name] for name in names[begin:end]} for begin, end in pairwise((0, *ends))]


def balanced(trunk: Sequence[float], arms: Sequence[float], count: int) -> tuple[int, ...]:
    """Where each of ``count`` groups of neighbours ends, so that the dearest is as cheap as it can be.

    Args:
        trunk: what a pass down to each arm costs, in rising order; a group pays for its last.
        arms: what a step of each costs beside that.
    """
    before = [0, *accumulate(arms)]

    @cache
    def best(begin: int, count: int) -> tuple[float, tuple[int, ...]]:
        """The cost of the dearest of so many groups from ``begin`` on, and their ends."""
        if count == 0:
            return 0.0, ()
        lasts = range(begin + 1, len(arms) - count + 2) if count > 1 else [len(arms)]
        rests = {end: best(end, count - 1) for end in lasts}
        own = {end: trunk[end - 1] + before[end] - before[begin] for end in lasts}
        return min((max(own[end], dearest), (end, *ends)) for end, (dearest, ends) in rests.items())

    return best(0, count)[1]
