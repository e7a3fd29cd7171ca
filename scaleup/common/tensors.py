"""Reads tensors of files without running code, and hashes their content."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scaleup.common import pickles
from scaleup.common.errors import UserError
from scaleup.common.files import read_json
from scaleup.common.model_choice import choose
from scaleup.common.text import join_words

T = TypeVar("T")
INDEX_ENDING = ".index.json"


def is_index(path: Path) -> bool:
    return path.suffix == ".json"  # no other weights are JSON


def read_index(path: Path) -> dict[str, Path]:
    """Tensor -> the file (part) that has it. The file may not exist.

    Raises:
        UserError: it is not an index, names a file of another folder, or names a tensor twice.
    """
    content = read_json(path)
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()) or not parts:
        raise UserError(
            f"{path} is JSON without weights; allowed is the index of weights in several files, whose 'weight_map' "
            "names the file of each tensor"
        )
    for part in parts.values():
        if Path(part).name != part or part in ("", "..") or "\\" in part or "\0" in part:
            raise UserError(f"{path} names the file {part!r}; allowed are files in the same folder")
    return {name: path.parent / part for name, part in parts.items()}


def _refuse_misplaced(index: Path, parts: Mapping[str, Path], contents: Mapping[Path, Iterable[str]]) -> None:
    """UserError if a tensor is not in the part that the index names."""
    places: dict[str, list[Path]] = {name: [] for name in parts}
    for part, names in contents.items():
        for name in names:
            places.setdefault(name, []).append(part)
    for name, holders in places.items():
        if name not in parts:
            raise UserError(f"{holders[0]} holds {name!r}, which {index.name} does not name")
        if holders != [parts[name]]:
            where = f"it is in {' and '.join(part.name for part in holders)}" if holders else "no file has it"
            raise UserError(f"{index} says that {name!r} is in {parts[name].name}, but {where}")


STRETCH = 2**26  # bytes to copy before a file is mapped again


class File:
    """Weights in a file: a ``.safetensors`` file, a torch checkpoint, or the index of several files. Tensors are
    memory- mapped, not read. ``FILE:teacher`` is one model of a file with several models.

    ``mapped`` are the tensors by name, without what trainers and wrappers put around a model; ``names`` are the same
    tensors' names in the file; ``beside`` is what is written beside them (metadata); ``said`` is what else the
    file holds, in words. In place, tensors are not aligned, on which the last bits of what is computed
    with them depend: compute with :meth:`copies`.

    Raises:
        UserError: the file does not exist, is not a checkpoint, is damaged, would run code, or has no such model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, model = split(path)
        _refuse_other_files(self.path)
        tensors, self.beside = self._map()
        if not tensors:
            raise UserError(f"{path} holds no tensors by name{_objects(self.path)}")
        self.names, self.said = choose(self.path, {name: tensor.numel() for name, tensor in tensors.items()}, model)
        self.mapped = {name: tensors[there] for name, there in self.names.items()}

    def copies(self, names: Iterable[str], dtype: torch.dtype | None = None) -> Iterator[Tensor]:
        """Copies of tensors in memory, one after the other.

        The pages of a mapped file count as used memory, so from time to time the file is mapped again.
        """
        mapped, copied = self.mapped, STRETCH
        for name in names:
            if copied >= STRETCH and self._maps:
                tensors, copied = self._map()[0], 0
                mapped = {name: tensors[there] for name, there in self.names.items()}
            copied += mapped[name].nbytes
            yield mapped[name].to(dtype or mapped[name].dtype, copy=True)

    @property
    def safe(self) -> bool:
        return self.path.name.removesuffix(INDEX_ENDING).endswith(".safetensors")

    @property
    def _maps(self) -> bool:  # old torch checkpoints cannot be mapped, and are in memory
        return self.safe or is_index(self.path) or is_zipfile(self.path)

    def _map(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return _map_parts(self.path) if is_index(self.path) else _map_one(self.path)


def split(place: str | Path) -> tuple[Path, str | None]:
    """``FILE:teacher`` -> (file or directory, model). If a file of the whole name exists, it is that file."""
    head, colon, model = str(place).rpartition(":")
    if colon and os.path.exists(head) and not os.path.exists(place):  # noqa: PTH110 - false for impossible names
        return Path(head), model
    return Path(place), None


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copies of the tensors of a :class:`File`, and its metadata."""
    file = File(path)
    return dict(zip(file.mapped, file.copies(file.mapped), strict=True)), file.beside


def read_tensor(path: str | Path, name: str) -> Tensor:
    """A copy of one tensor of a safetensors file, or of an index of several. The copy is aligned in memory."""
    path = Path(path)
    with safe_open(read_index(path)[name] if is_index(path) else path, framework="pt") as file:
        return file.get_tensor(name).clone()


def _refuse_other_files(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(64)
    if re.match(rb"\s*<[!?a-z]{2}", start, re.IGNORECASE):  # "<" alone may begin the length of a header
        raise UserError(f"{path} is a web page, not a checkpoint; download the file itself")
    if len(start) < 64 and not is_index(path):
        raise UserError(f"{path} has {len(start)} bytes, so it is not a checkpoint")


def _map_parts(index: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    parts, contents = read_index(index), {}
    for part in dict.fromkeys(parts.values()):
        if not part.is_file():
            raise UserError(f"{index} names the file {part.name!r}, which is not in its folder; download it too")
        _refuse_other_files(part)
        contents[part] = _map_one(part)[0]
    _refuse_misplaced(index, parts, contents)
    return {name: contents[part][name] for name, part in parts.items()}, {}


def _map_one(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return _map_safetensors(path) if path.suffix == ".safetensors" else _map_torch(path)


def _map_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a complete safetensors file ({error})") from error


def _map_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        content = pickles.load(path, maps=is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is not a plain checkpoint, and loading it could run code; nothing was run"
            f"{_objects(path)}"
        ) from error
    except Exception as error:  # torch raises many kinds of errors for damaged bytes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "TorchScript" in reason:
            raise UserError(f"{path} is a program (TorchScript), not a checkpoint; save only its state_dict") from error
        raise UserError(f"{path} is not a complete torch checkpoint ({reason}){_objects(path)}") from error
    beside = pickles.entries(content)
    if beside is None:
        raise UserError(f"{path} is a {type(content).__name__}, not a state dict{_objects(path)}")
    return _by_name(beside), beside


def _by_name(content: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors of nested mappings, named by their paths: ``state_dict/module.norm.weight``."""
    tensors, mappings, done = {}, [("", content)], set()
    for before, mapping in mappings:
        for name, value in mapping.items():
            if isinstance(value, Tensor):
                tensors[before + name] = value
            elif (inner := pickles.entries(value)) and id(value) not in done:
                done.add(id(value))  # a file may have a mapping twice, or inside itself
                mappings.append((f"{before}{name}/", inner))
    return tensors


def _objects(path: Path) -> str:
    """A clause about unknown objects in a torch checkpoint."""
    names = [] if path.suffix in (".safetensors", ".json") else pickles.foreign(path)
    if not names:
        return ""
    suspects = [name for name in names if pickles.is_suspect(name)]
    return (
        f"; besides tensors it has {join_words(suspects or names)}; save only the weights, with "
        "torch.save(model.state_dict(), FILE), on the machine where it was written"
    )


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """sha256 of each tensor's type, shape and bytes."""
    return _of_each(_hash, tensors)


def hashes_in(path: str | Path, names: Mapping[str, str], dtype: torch.dtype) -> dict[str, str]:
    """:func:`hashes` of tensors in a safetensors file, read one at a time as ``dtype``: name -> name in the file."""
    return _of_each(lambda name: _hash(read_tensor(path, name).to(dtype)), names)


def _of_each(function: Callable[[T], str], values: Mapping[str, T]) -> dict[str, str]:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashing releases the interpreter's lock
        return dict(zip(values, pool.map(function, values.values()), strict=True))


def _hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(digests: Mapping[str, str]) -> str:
    """One sha256 for a set of tensors: of their sorted names and hashes."""
    lines = "\n".join(f"{name} {digests[name]}" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


@lru_cache(maxsize=1024)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A tensor with these values on a device. It is made once, so that no step waits for its copy."""
    return torch.tensor(values, device=device)
