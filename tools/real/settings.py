"""Settings of ``make real``: what is wrong with them is said before anything is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from real.stages import RECIPES
from scaleup.common.errors import UserError
from scaleup.common.files import read_json, write_json
from scaleup.config import recipe as recipes

SETS = ("data.train.scenes", "data.train.films")
SHARDS = {"small": (*SETS, "data.train.images", "data.valid"), "sweep": SETS}  # of a recipe, which are written later
UNCHANGED = {"material", "shards"}  # stages whose figures do not depend on the settings


def check_settings(out: Path, seeds: Sequence[int], changes: Sequence[str]) -> None:
    """Note the settings in ``out/settings.json``, for the calls that go on.

    Raises:
        UserError: a seed occurs twice, a recipe has a mistake with the changes, ``out`` cannot be written, or an
            earlier call there had other changes or another first seed, whose figures would stay.
    """
    if repeated := [seed for number, seed in enumerate(seeds) if seed in seeds[:number]]:
        raise UserError(f"--seeds names {repeated[0]} twice")
    for name, keys in SHARDS.items():
        recipes.load(RECIPES / f"{name}.yaml", [*(f"{key}.shards={RECIPES}" for key in keys), *changes])
    file, settings = out / "settings.json", {"first seed": seeds[0], "changes": list(changes)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        done = {path.stem for path in (out / "stages").glob("*.json")} - UNCHANGED
        before = read_json(file) if done and file.exists() else settings
        write_json(file, settings | before)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}") from error
    for name, value in settings.items():
        if before[name] != value:
            raise UserError(f"'{out}' has figures with {name} {before[name]}, not {value}; name another --out")
