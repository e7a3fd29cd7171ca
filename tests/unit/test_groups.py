from itertools import combinations

import numpy as np
import pytest

from scaleup.sweeps.parts import balance


def dearest(trunk: list[int], arms: list[int], ends: tuple[int, ...]) -> int:
    return max(trunk[end - 1] + sum(arms[begin:end]) for begin, end in zip((0, *ends), ends, strict=False))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_no_other_groups_of_neighbours_are_better(count: int) -> None:
    """Against all of them."""
    source = np.random.default_rng(count)
    for _ in range(20):
        trunk, arms = sorted(source.integers(0, 50, 7).tolist()), source.integers(1, 30, 7).tolist()
        every = [(*cuts, 7) for cuts in combinations(range(1, 7), count - 1)]
        ends = balance(trunk, arms, count)
        assert ends in every
        assert dearest(trunk, arms, ends) == min(dearest(trunk, arms, each) for each in every)


def test_the_deep_trunk_is_one_machine_s() -> None:
    assert balance([0, 0, 8, 8], [9, 9, 4, 4], 2) == (2, 4)
