"""Arms trained once: those of one model, data and seed train in one run, and no arm that is there trains again.

A token cache would not pay: 300 steps of 32 see each of 4,000 videos 2.4 times, so that a cache of three views takes
more passes of the trunk than a run, where all arms share one, and few other runs would read it.
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
from scaleup.training.run import run
from scaleup.training.run_directory import StoppedRun, is_complete

SAVE_EVERY = 200  # steps: what a run that is killed loses at most


def identity(recipe: Recipe) -> str:
    """A name for all of a recipe that its arms have in common."""
    return _digest(_told(replace(recipe, out="", arm=Arm(), arms={}, grid={})))


def arm_name(arm: Arm) -> str:
    """A name for what an arm is, whichever row of whichever table asks for it."""
    return _digest(_told(arm))


def _told(settings: Any) -> Any:
    """Settings without those at their default, so that a new setting leaves the names of old runs as they are."""
    if is_dataclass(settings):
        given = {item.name: (getattr(settings, item.name), item) for item in fields(settings)}
        return {name: _told(value) for name, (value, item) in given.items() if value != _default(item)}
    return {name: _told(value) for name, value in settings.items()} if isinstance(settings, dict) else settings


def _default(item: Field) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def trained(recipe: Recipe, arms: Mapping[str, Arm], root: Path) -> dict[str, Path | None]:
    """Train what is not there of ``arms``, together, in a run below ``root``; the directory of each, None where it
    diverged.

    Raises:
        KeyboardInterrupt: the run was stopped; the same call goes on with it.
    """
    home, names = root / identity(recipe), {row: arm_name(arm) for row, arm in arms.items()}
    missing = {names[row]: arm for row, arm in sorted(arms.items()) if _run_of(names[row], home) is None}
    if missing:
        out = home / _digest(list(missing))
        together: dict[str, dict[str, Any]] = {name: asdict(arm) for name, arm in missing.items()}
        result = run(_settled(recipe, out, together), missing)
        gc.collect()  # engines refer to themselves
        if isinstance(result, StoppedRun):
            raise KeyboardInterrupt
    made = {row: place(recipe, arm, root) for row, arm in arms.items()}
    return {row: path if path is not None and path.is_dir() else None for row, path in made.items()}


def _settled(recipe: Recipe, out: Path, arms: dict[str, dict[str, Any]]) -> Recipe:
    train = replace(recipe.train, save_every=SAVE_EVERY, keep=1)
    return replace(recipe, out=str(out), train=train, arm=Arm(), arms=arms, grid={})


def _run_of(name: str, home: Path) -> Path | None:
    """The complete run that trained an arm."""
    runs = (directory for directory in home.glob("*") if is_complete(directory))
    return next((run for run in runs if f'"{name}"' in (run / "result.json").read_text()), None)


def place(recipe: Recipe, arm: Arm, root: Path) -> Path | None:
    """Where a complete run below ``root`` has left an arm, unless it diverged; None where none has trained it."""
    name = arm_name(arm)
    run = _run_of(name, root / identity(recipe))
    return None if run is None else run / name


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
