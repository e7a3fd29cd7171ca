"""The directory of a run: begun with its recipe, continued with the same recipe, completed with its results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from yaml import YAMLError

from scaleup import recipe as recipes
from scaleup.common.files import locked, new_directory, write_text
from scaleup.config.rules import check
from scaleup.config.schema import Recipe
from scaleup.errors import UserError
from scaleup.model.tubevit import TubeViT
from scaleup.training.arm_trainer import ArmResult
from scaleup.training.log import AtChance

RESULT = "result.json"


def is_complete(out: Path) -> bool:
    return (out / RESULT).is_file()


@dataclass
class RunResult:
    """What came of a run, or of a sweep, that is complete; result.json holds it."""

    out: str  # its directory
    steps: int  # of the arm that takes most
    trunk_seconds: float  # a step's pass of the trunk: the mean without the first few; of several parts their sum
    trunk: dict[str, Any]  # see scaleup.model.build.prepare_trunks; with "cache" where there was one
    kernels: str  # how products were computed, see scaleup.model.kernels
    arms: dict[str, ArmResult]
    environment: dict[str, Any]  # see scaleup.common.machine.environment
    exit: int = 0  # the exit code: 1 where an arm diverged
    parts: list[list[str]] | None = None  # of a sweep in several parts, the names of the arms of each

    def write(self) -> None:
        """Write ``result.json``, which says that the run is complete."""
        write_text(Path(self.out) / RESULT, json.dumps(asdict(self), indent=2))


@dataclass
class StoppedRun:
    """A run, or a sweep, that ended before its last step, since a signal or a limit of time asked for it. All of it is
    saved, and the same call goes on."""

    out: str  # its directory
    steps: int
    stopped: int  # steps that were done
    exit: int  # the exit code, see scaleup.training.run.exit_code
    part: str | None = None  # of a sweep in several parts, the one that was stopped: "2 of 3"


def read_result(out: Path) -> RunResult | None:
    """The result of the run in ``out``; None where it is not complete.

    Raises:
        UserError: it cannot be read.
    """
    path = out / RESULT
    if not path.is_file():
        return None
    try:
        result = RunResult(**json.loads(path.read_text()))
        result.arms = {name: ArmResult(**arm) for name, arm in cast(dict[str, dict], result.arms).items()}
        for arm in result.arms.values():
            arm.at_chance = {head: AtChance(**each) for head, each in cast(dict[str, dict], arm.at_chance).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error
    return result


def write(result: RunResult, models: Mapping[str, TubeViT], data: Mapping[str, Any]) -> None:
    """Write the models of arms that did not diverge, and then the result, which says that the run is complete.

    Args:
        data: what they were trained on, see :func:`scaleup.training.run_inputs.list_inputs`.
    """
    trunk = {"seconds": result.trunk_seconds, **result.trunk}
    for name, arm in result.arms.items():
        if arm.directory is not None:
            began = models[name].report
            models[name].report = {"training": asdict(arm), "data": data, "trunk": trunk, "began_from": began}
            models[name].save_pretrained(arm.directory, overwrite=True)
    result.write()


# What may differ when a run goes on, since it changes no weight.
FREE = {"out", "data.workers", "train.log_every", "train.save_every", "train.keep"}
OTHERWISE = "name another directory (out=...) or replace the run in it (--overwrite)"


def check_resumable(recipe: Recipe, overwrite: bool) -> bool:
    """Whether an unfinished run of this recipe stands in ``recipe.out``; False where a new one begins there.

    Raises:
        UserError: no directory is named, or what stands there is not for this recipe to replace or to go on with.
    """
    if not recipe.out:
        raise UserError("the recipe names no directory to write to; set out, for example out=runs/first")
    out = Path(recipe.out)
    if not out.exists():
        return False
    if not (out / "recipe.yaml").is_file():
        raise UserError(f"{recipe.out!r} exists and is not the directory of a run, it has no recipe.yaml")
    if overwrite:
        return False
    if differing := _differing(out / "recipe.yaml", recipe):
        raise UserError(f"{recipe.out!r} exists and holds a run of another recipe: {differing}; {OTHERWISE}")
    if is_complete(out):
        raise UserError(f"{recipe.out!r} exists, and its run is complete; {OTHERWISE}")
    return True


@contextmanager
def lock_run(out: Path, patience: float = 15.0) -> Iterator[None]:
    """Inside, no other process goes on with the run or replaces it.

    Raises:
        UserError: after ``patience`` seconds another process still holds it.
    """
    with ExitStack() as stack:
        place = out / "recipe.yaml"
        if place.is_file() and not locked(stack.enter_context(place.open("r+")), patience):
            raise UserError(f"another process is at work on the run in '{out}'; wait for it or end it")
        yield


def begin(recipe: Recipe, overwrite: bool) -> None:
    """Make the directory with its recipe, in the place of what stands there."""
    with new_directory(recipe.out, overwrite) as directory:
        recipes.save(with_absolute_paths(recipe), directory / "recipe.yaml")


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe, fit to be read from another directory."""
    if recipe.model.load and Path(recipe.model.load).is_dir():
        return replace(recipe, model=replace(recipe.model, load=str(Path(recipe.model.load).resolve())))
    return recipe


def _differing(path: Path, recipe: Recipe) -> str:
    """The settings in which the recipe at ``path`` is another one, in words."""
    try:
        stored, mistakes = check(Recipe, OmegaConf.to_container(OmegaConf.load(path)))
    except (YAMLError, OSError, ValueError) as error:
        stored, mistakes = None, [" ".join(str(error).split())]
    if stored is None or mistakes:
        return f"its recipe.yaml cannot be read ({'; '.join(mistakes)})"
    there, here = (flatten_keys(recipes.resolved(each)) for each in (stored, with_absolute_paths(recipe)))
    keys = [key for key in here | there if key not in FREE and here.get(key) != there.get(key)]
    return ", ".join(f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in keys)


def flatten_keys(value: Any, at: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by key path."""
    if not isinstance(value, dict) or not value:
        return {at: value}
    return {
        key: leaf for name, each in value.items() for key, leaf in flatten_keys(each, f"{at}.{name}".strip(".")).items()
    }
