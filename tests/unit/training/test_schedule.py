import math

import pytest

from scaleup.training.arm_trainer import lr_factor


def slow_schedule(steps: int, warmup: int) -> list[float]:
    """Walk along the curve step by step."""
    factors = []
    for number in range(warmup):
        factors.append((number + 1) * (1 / warmup))
    angle = 0.0
    while len(factors) < steps:
        factors.append((math.cos(angle) + 1) / 2)
        angle += math.pi / (steps - warmup)
    return factors


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (10, 0), (10, 3), (10, 9), (10, 10), (500, 20)])
def test_every_step_is_on_the_curve(steps: int, warmup: int) -> None:
    found = [lr_factor(step, steps, warmup) for step in range(steps)]
    assert found == pytest.approx(slow_schedule(steps, warmup))
    assert all(0 < factor <= 1 for factor in found)


def test_the_peak_follows_the_warmup_without_a_gap() -> None:
    assert [lr_factor(step, 100, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
