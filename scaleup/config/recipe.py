"""Reads and writes recipes: YAML files that describe one run, or a sweep of several arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scaleup.common.errors import UserError, nearest
from scaleup.common.files import write_text
from scaleup.config.compose import compose
from scaleup.config.contradictions import contradictions
from scaleup.config.rules import check, is_text
from scaleup.config.schema import Arm, Input, Recipe, expand

PACKAGE = Path(__file__).parents[1]
HOMES = (PACKAGE / "recipes", PACKAGE.parent / "recipes")  # in the wheel, in a checkout
OWN = next((path for path in HOMES if path.is_dir()), PACKAGE)
__all__ = ["Input", "Recipe", "all_arms", "load", "load_saved", "resolved", "save", "settle", "sweep_arms", "to_yaml"]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check it.

    Args:
        path: a YAML file, or the name of one of scaleup's own recipes (``demo/small``).
        overrides: changes such as ``arm.frozen_depth=24``, or choices of variants such as ``scale=desk``
            (:mod:`scaleup.config.compose`).

    Raises:
        UserError: lists every mistake of the recipe and of the overrides, one per line.
    """
    path = _located(Path(path))
    mistakes: list[str] = []
    content = compose(path, overrides, [item.name for item in fields(Recipe)], mistakes, partial(is_text, Recipe))
    recipe, wrong = check(Recipe, content)
    assert recipe is not None, "every setting of a recipe has a default"
    mistakes += [*wrong, *contradictions(recipe, content)]
    if mistakes:
        count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        raise UserError("\n  - ".join([f"the recipe {str(path)!r} has {count}:", *mistakes]))
    return recipe


def _located(path: Path) -> Path:
    """The file at ``path``. If no such file exists and the name has no suffix, one of scaleup's own recipes."""
    if path.suffix or path.exists():
        return path
    own = {str(file.relative_to(OWN).with_suffix("")): file for file in sorted(OWN.glob("*/*.yaml"))}
    if str(path) not in own:
        allowed = f"allowed are a YAML file and {', '.join(own)}{nearest(str(path), own)}"
        raise UserError(f"there is no recipe {str(path)!r}; {allowed}")
    return own[str(path)]


def save(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe to ``path``; :func:`load` and :func:`load_saved` read it back."""
    write_text(Path(path), to_yaml(recipe))


def load_saved(path: Path) -> Recipe:
    """Read the recipe of a run. The data and the cache that it names need not exist any more.

    Raises:
        UserError: it cannot be read, or has settings that this version does not know.
    """
    try:
        recipe, mistakes = check(Recipe, OmegaConf.to_container(OmegaConf.load(path)))
    except (YAMLError, OmegaConfBaseException, OSError, TypeError, ValueError) as error:
        recipe, mistakes = None, [" ".join(str(error).split())]
    if recipe is None or mistakes:
        raise UserError(f"'{path}' cannot be read ({'; '.join(mistakes)})")
    return recipe


def to_yaml(recipe: Recipe) -> str:
    return OmegaConf.to_yaml(resolved(recipe))


def resolved(recipe: Recipe) -> dict[str, Any]:
    """All settings of a recipe as a dict. Of a loaded model only its directory: its settings are in that directory."""
    content = asdict(recipe)
    return content if recipe.model.load is None else content | {"model": {"load": recipe.model.load}}


def default_precision(device: str) -> Literal["float32", "bfloat16"]:
    """The precision in which a kind of device (cpu, cuda) computes where a recipe names none."""
    from scaleup.common.distributed import has_bfloat16  # torch takes seconds

    return "bfloat16" if has_bfloat16(device) else "float32"


def refuse_emulated(key: str, precision: str | None, device: str) -> None:
    """Refuse a stated precision that a GPU would emulate, many times slower than float32.

    Raises:
        UserError: the GPU has no bfloat16, in which int8 weights compute too.
    """
    if precision in ("bfloat16", "int8") and device != "cpu" and default_precision(device) == "float32":
        allowed = "float32, float16 and auto" if key == "trunk.precision" else "float32 and auto"
        raise UserError(f"{key} is {precision}, but this GPU does not compute in bfloat16; allowed are {allowed}")


def settle(recipe: Recipe, arms: Mapping[str, Arm], device: str) -> tuple[Recipe, dict[str, Arm]]:
    """A recipe and its arms with the precisions in which they run on a kind of device. A GPU takes a token cache of any
    precision (``auto``).

    Raises:
        UserError: the device does not compute in a precision that is stated.
    """
    own = default_precision(device)
    refuse_emulated("trunk.precision", recipe.trunk.precision, device)
    for each in (recipe.arm, *arms.values()):
        refuse_emulated("arm.precision", each.precision, device)
    trunk = replace(recipe.trunk, precision=recipe.trunk.precision or own)
    if recipe.trunk.precision is None and recipe.trunk.cache and device != "cpu":
        trunk.precision = "auto"
    arm = replace(recipe.arm, precision=recipe.arm.precision or own)
    unsettled = {name for name, changes in recipe.arms.items() if changes.get("precision", own) is None}
    changes = {name: each | ({"precision": own} if name in unsettled else {}) for name, each in recipe.arms.items()}
    settled = {name: replace(each, precision=each.precision or own) for name, each in arms.items()}
    return replace(recipe, trunk=trunk, arm=arm, arms=changes), settled


def sweep_arms(recipe: Recipe) -> dict[str, Arm]:
    """The arms of a sweep, by name.

    Each arm is ``recipe.arm`` with the changes under its name in ``recipe.arms``, or with one combination of the values
    in ``recipe.grid``.

    Raises:
        UserError: the recipe has neither.
    """
    arms = recipe.arms | expand(recipe.grid)
    if not arms:
        raise UserError(
            "the recipe has no arms to sweep; add arms under arms, or lists of values under grid, or train its only "
            "arm (tools/train.py)"
        )
    return {name: replace(recipe.arm, **changes) for name, changes in arms.items()}


def all_arms(recipe: Recipe) -> dict[str, Arm]:
    """The arms of a sweep; for a recipe of one model its arm, named ``model``."""
    return sweep_arms(recipe) if recipe.arms or recipe.grid else {"model": recipe.arm}
