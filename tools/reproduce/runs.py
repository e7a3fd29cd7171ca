"""Trains each arm once. Arms with the same model, data and seed train in one run. Arms that exist are not trained
again.

A token cache would not save time: 300 steps of 32 read each of 4,000 videos 2.4 times, so a cache of three views needs
more passes of the trunk than a run, in which all arms share one. Few other runs would read the cache.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from scaleup.config.schema import Arm, Recipe
from scaleup.training.run import train
from scaleup.training.run_directory import StoppedRun, is_complete

SAVE_EVERY = 200  # steps; a run that is killed loses at most these


def identity(recipe: Recipe) -> str:
    """A name for the settings of a recipe that its arms share."""
    return _digest(_without_defaults(replace(recipe, out="", arm=Arm(), arms={}, grid={})))


def arm_name(arm: Arm) -> str:
    """A name for an arm's settings, the same for all rows and tables."""
    return _digest(_without_defaults(arm))


def _without_defaults(settings: Any) -> Any:
    """The settings that are not at their default. So the names of old runs stay when a new setting is added."""
    if is_dataclass(settings):
        values = {item.name: (getattr(settings, item.name), item) for item in fields(settings)}
        return {name: _without_defaults(value) for name, (value, item) in values.items() if value != _default(item)}
    if isinstance(settings, dict):
        return {name: _without_defaults(value) for name, value in settings.items()}
    return settings


def _default(item: Field) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def trained(recipe: Recipe, arms: Mapping[str, Arm], root: Path) -> dict[str, Path | None]:
    """Train those of ``arms`` that no run below ``root`` has trained, together in a new run.

    Returns:
        The directory of each arm, or None for an arm that diverged.

    Raises:
        KeyboardInterrupt: a signal stopped the run; the same call goes on with it.
    """
    home, names = root / identity(recipe), {row: arm_name(arm) for row, arm in arms.items()}
    missing = {names[row]: arm for row, arm in sorted(arms.items()) if _run_of(names[row], home) is None}
    if missing:
        out = home / _digest(list(missing))
        together: dict[str, dict[str, Any]] = {name: asdict(arm) for name, arm in missing.items()}
        result = train(_settled(recipe, out, together), missing)
        gc.collect()  # training engines are in reference cycles
        if isinstance(result, StoppedRun):
            raise KeyboardInterrupt
    paths = {row: find_arm(recipe, arm, root) for row, arm in arms.items()}
    return {row: path if path is not None and path.is_dir() else None for row, path in paths.items()}


def _settled(recipe: Recipe, out: Path, arms: dict[str, dict[str, Any]]) -> Recipe:
    train = replace(recipe.train, save_every=SAVE_EVERY, keep=1)
    return replace(recipe, out=str(out), train=train, arm=Arm(), arms=arms, grid={})


def _run_of(name: str, home: Path) -> Path | None:
    """The complete run that trained an arm."""
    runs = (directory for directory in home.glob("*") if is_complete(directory))
    return next((run for run in runs if f'"{name}"' in (run / "result.json").read_text()), None)


def find_arm(recipe: Recipe, arm: Arm, root: Path) -> Path | None:
    """The directory of an arm in a complete run below ``root``; None if no run has trained it.

    The directory does not exist if the arm diverged.
    """
    name = arm_name(arm)
    run = _run_of(name, root / identity(recipe))
    return None if run is None else run / name


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
