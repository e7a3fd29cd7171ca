"""What a run costs before anything of it is built: tokens, parameters, FLOPs, memory and time."""

from __future__ import annotations

from typing import Any

from scaleup.recipe import Arm, Recipe


def plan(recipe: Recipe, arms: dict[str, Arm], ranks: int = 1, **options: Any) -> dict[str, Any]:
    """All that is known of a run before it begins, fit for JSON."""
    raise NotImplementedError


def memory(recipe: Recipe, arms: dict[str, Arm], ranks: int = 1) -> dict[str, int]:
    """Bytes on each device at the peak of a step, by part: trunk, arms, optimizer, gradients, activations, batch, and
    their ``total``."""
    raise NotImplementedError


def waves(recipe: Recipe, arms: dict[str, Arm], available: int, ranks: int = 1) -> list[dict[str, Arm]]:
    """Arms in as few groups as fit into ``available`` bytes of a device, in order of frozen depth, deepest first.

    Raises:
        UserError: an arm does not fit alone.
    """
    raise NotImplementedError
