"""The directory of a run: created with a recipe, resumed with the same recipe, completed with the results."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from scaleup.common.distributed import device_type
from scaleup.common.errors import UserError
from scaleup.common.files import locked, new_directory, read_json, sync, write_json
from scaleup.config import recipe as recipes
from scaleup.config.schema import Recipe
from scaleup.data.index import file_sha256
from scaleup.model.tubevit import TubeViT
from scaleup.training.arm_trainer import ArmResult
from scaleup.training.log import AtChance, Gap
from scaleup.training.run_inputs import flatten_keys

RESULT = "result.json"


def is_complete(out: Path) -> bool:
    return (out / RESULT).is_file()


@dataclass
class RunResult:
    """The result of a complete run or sweep, the content of result.json."""

    out: str  # its directory
    steps: int  # of the arm with most steps
    trunk_seconds: float  # of the trunk in a step: the mean without the first few; for several parts their sum
    trunk: dict[str, Any]  # see scaleup.model.build.PreparedTrunk; "cache" if a token cache was used
    kernels: dict[str, str]  # of the trunk and of the arms, see scaleup.model.kernels
    arms: dict[str, ArmResult]
    environment: dict[str, Any]  # see scaleup.common.processes.environment
    exit: int = 0  # the exit code: 1 if an arm diverged
    compile: str = "off"  # blocks, if they were compiled
    cuda_graphs: str = "off"  # trunk, if its pass was recorded
    parts: list[list[str]] | None = None  # for a sweep in several parts: the arms of each part

    def write(self) -> None:
        """Write ``result.json``. A run that has this file is complete."""
        write_json(Path(self.out) / RESULT, asdict(self))


@dataclass
class StoppedRun:
    """A run or sweep that ended before its last step, after a signal or a limit of time. The same call resumes it."""

    out: str  # its directory
    steps: int
    stopped: int  # steps so far
    exit: int  # the exit code, see scaleup.training.stop.exit_code
    part: str | None = None  # for a sweep in several parts: the part that was stopped, "2 of 3"


def read_result(out: Path) -> RunResult | None:
    """The result of the run in ``out``; None if it is not complete.

    Raises:
        UserError: it cannot be read.
    """
    path = out / RESULT
    if not path.is_file():
        return None
    try:
        result = RunResult(**read_json(path))
        result.arms = {name: ArmResult(**arm) for name, arm in cast(dict[str, dict], result.arms).items()}
        for arm in result.arms.values():
            arm.gaps = {head: Gap(**each) for head, each in cast(dict[str, dict], arm.gaps).items()}
            arm.at_chance = {head: AtChance(**each) for head, each in cast(dict[str, dict], arm.at_chance).items()}
    except (TypeError, AttributeError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error
    return result


def write(result: RunResult, models: Mapping[str, TubeViT], data: Mapping[str, Any]) -> None:
    """Write the models of arms that did not diverge, and then the result.

    Args:
        data: the training sets, see :func:`scaleup.training.run_inputs.list_inputs`.
    """
    trunk = {"seconds": result.trunk_seconds, **result.trunk}
    for name, arm in result.arms.items():
        if arm.directory is not None:
            began = models[name].report
            models[name].report = {"training": asdict(arm), "data": data, "trunk": trunk, "began_from": began}
            models[name].save_pretrained(arm.directory, overwrite=True)
    result.write()


# Settings that may differ when a run is resumed, because they do not change the weights.
FREE = {
    *("out", "data.workers", "trunk.placement", "train.cuda_graphs"),
    *("train.log", "train.log_every", "train.save_every", "train.keep"),
}
OTHERWISE = "name another directory (out=...) or replace the run in it (--overwrite)"


def check_resumable(recipe: Recipe, overwrite: bool) -> bool:
    """Whether ``recipe.out`` has an unfinished run of this recipe. False: a new run can begin there.

    Raises:
        UserError: the recipe names no output, or the output exists and this recipe can neither replace nor resume it.
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
    """Inside, no other process resumes or replaces the run.

    Raises:
        UserError: another process still works on the run after ``patience`` seconds.
    """
    with ExitStack() as stack:
        place = out / "recipe.yaml"
        if place.is_file() and not locked(stack.enter_context(place.open("r+")), patience):
            raise UserError(f"another process is at work on the run in '{out}'; wait for it or end it")
        yield


def begin(recipe: Recipe, overwrite: bool) -> None:
    """Make the directory with its recipe; an existing one is replaced."""
    with new_directory(recipe.out, overwrite) as directory:
        recipes.save(with_absolute_paths(recipe), directory / "recipe.yaml")


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that it can be used in another directory."""
    model, data, trunk = recipe.model, recipe.data, recipe.trunk
    if model.load and Path(model.load).is_dir():  # else it is a hub id
        model = replace(model, load=_absolute(model.load))
    train = {name: replace(dataset, shards=_absolute(dataset.shards)) for name, dataset in data.train.items()}
    valid = data.valid and replace(data.valid, shards=_absolute(data.valid.shards))
    trunk = replace(trunk, cache=trunk.cache and _absolute(trunk.cache))
    return replace(recipe, model=model, data=replace(data, train=train, valid=valid), trunk=trunk)


def _absolute(place: str) -> str:
    """A path, but not an address, as an absolute one."""
    return place if "://" in place else str(Path(place).resolve())


def _differing(path: Path, recipe: Recipe) -> str:
    """The settings that differ from the recipe at ``path``, as text."""
    try:
        both = recipes.load_saved(path), recipe
    except UserError as error:
        return str(error)
    settled = (recipes.settle(with_absolute_paths(each), {}, device_type())[0] for each in both)
    there, here = (flatten_keys(recipes.resolved(each)) for each in settled)
    keys = [key for key in here | there if key not in FREE and here.get(key) != there.get(key)]
    return ", ".join(f"{key} is {there.get(key)!r} there and {here.get(key)!r} here" for key in keys)


MANIFEST, STATE = "manifest.json", "state.json"


class Checkpoint(NamedTuple):
    """A complete checkpoint: its steps, and its content except tensors."""

    directory: Path
    step: int
    state: dict[str, Any]

    def tensors(self, arm: str) -> dict[str, Tensor]:
        return load_file(_arm_file(self.directory, arm))


class Checkpoints:
    """The newest ``keep`` checkpoints in a directory.

    Each holds a safetensors file for every arm, state.json, and manifest.json with the sha256 of the others.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def save(self, step: int, state: dict[str, Any], arms: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the checkpoint of ``step`` under another name, read it back, and then rename it.

        Raises:
            UserError: the disk refuses it. Earlier checkpoints are unchanged.
        """
        with new_directory(self.directory / f"step-{step:08d}", overwrite=True) as half:
            written = [_write(_arm_file(half, name), to_bytes(dict(tensors))) for name, tensors in arms.items()]
            written.append(_write(half / STATE, json.dumps(state).encode()))
            _write(half / MANIFEST, json.dumps(dict(written)).encode())
            _sync(half)
        _sync(self.directory)
        for old in self._directories()[self.keep :]:
            shutil.rmtree(old)

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint. Newer ones that are damaged are named on stderr.

        Raises:
            UserError: there are checkpoints, but all are damaged.
        """
        directories = self._directories()
        for directory in directories:
            fault = _fault(directory)
            if fault is None:
                step = int(directory.name.removeprefix("step-"))
                return Checkpoint(directory, step, json.loads((directory / STATE).read_text()))
            print(f"checkpoint '{directory}' is left out, {fault}", file=sys.stderr)
        if directories:
            raise UserError(f"none of the checkpoints in '{self.directory}' is whole; begin anew with --overwrite")
        return None

    def clear(self, after: int) -> None:
        """Remove incomplete files of a killed run, and the damaged checkpoints after step ``after``."""
        halves = self.directory.glob(".step-*")
        later = [directory for directory in self._directories() if directory.name > f"step-{after:08d}"]
        for directory in [*halves, *later]:
            shutil.rmtree(directory)

    def _directories(self) -> list[Path]:
        return sorted(self.directory.glob("step-????????"), reverse=True)


def _arm_file(directory: Path, arm: str) -> Path:
    return directory / f"{arm}.safetensors"


def _write(path: Path, content: bytes) -> tuple[str, str]:
    """Write a file to the disk and read it back; returns its entry in the manifest."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        sync(file.fileno())
    digest = hashlib.sha256(content).hexdigest()
    if file_sha256(path) != digest:
        raise UserError(f"'{path}' cannot be written: the disk gives back something else")
    return path.name, digest


def _sync(directory: Path) -> None:
    """Write the names in a directory to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def _fault(directory: Path) -> str | None:
    """What is wrong with a checkpoint, as text; None if nothing."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        for name, digest in manifest.items():
            if file_sha256(directory / name) != digest:
                return f"its {name} is not what was written"
    except FileNotFoundError as error:
        return f"it has no {Path(error.filename).name}"
    except (OSError, ValueError, AttributeError) as error:
        return f"its manifest cannot be read ({error})"
    return None
