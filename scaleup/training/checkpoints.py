"""The checkpoints of a run: ``checkpoints/step-00000120``, whole or not there; the newest is found by name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from scaleup.common.files import new_directory, sync
from scaleup.data.shards import file_sha256
from scaleup.errors import UserError

MANIFEST, STATE = "manifest.json", "state.json"


class Checkpoint(NamedTuple):
    """A checkpoint that was found whole: steps done, and what is not a tensor."""

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
        """Write the checkpoint of ``step`` beside its place, read it back, and only then put it there.

        Raises:
            UserError: the disk refuses it; what was there before is as it was.
        """
        with new_directory(self.directory / f"step-{step:08d}", overwrite=True) as half:
            written = [_write(_arm_file(half, name), to_bytes(dict(tensors))) for name, tensors in arms.items()]
            written.append(_write(half / STATE, json.dumps(state).encode()))
            _write(half / MANIFEST, json.dumps(dict(written)).encode())
            _sync(half)
        _sync(self.directory)
        for old in self._found()[self.keep :]:
            shutil.rmtree(old)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; every damaged one that is newer is named on stderr.

        Raises:
            UserError: there are checkpoints, and none of them is whole.
        """
        found = self._found()
        for directory in found:
            fault = _fault(directory)
            if fault is None:
                step = int(directory.name.removeprefix("step-"))
                return Checkpoint(directory, step, json.loads((directory / STATE).read_text()))
            print(f"checkpoint '{directory}' is left out, {fault}", file=sys.stderr)
        if found:
            raise UserError(f"none of the checkpoints in '{self.directory}' is whole; begin anew with --overwrite")
        return None

    def clear(self, after: int) -> None:
        """Remove what a killed run left half written, and checkpoints after step ``after``, which are damaged."""
        halves = self.directory.glob(".step-*")
        later = [directory for directory in self._found() if directory.name > f"step-{after:08d}"]
        for directory in [*halves, *later]:
            shutil.rmtree(directory)

    def _found(self) -> list[Path]:
        return sorted(self.directory.glob("step-????????"), reverse=True)


def _arm_file(directory: Path, arm: str) -> Path:
    return directory / f"{arm}.safetensors"


def _write(path: Path, content: bytes) -> tuple[str, str]:
    """Write to the disk and read back; returns the entry of the manifest."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        sync(file.fileno())
    digest = hashlib.sha256(content).hexdigest()
    if file_sha256(path) != digest:
        raise UserError(f"'{path}' cannot be written: the disk gives back something else")
    return path.name, digest


def _sync(directory: Path) -> None:
    """Put the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def _fault(directory: Path) -> str | None:
    """What is wrong with a checkpoint, in words."""
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
