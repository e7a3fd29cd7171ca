"""Tensors in files: read without running code, told apart by hashes of their content."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scaleup.errors import UserError

WRAPPINGS = ("state_dict", "model_state_dict", "model", "module", "encoder")  # where trainers keep the tensors
PREFIXES = ("module.", "_orig_mod.", "model.")  # what wrappers put before every name
STRETCH = 2**26  # bytes that are copied before a file is mapped anew


class File:
    """A ``.safetensors`` file or a torch checkpoint whose tensors are mapped, not read.

    ``mapped`` are the tensors by name, wrappings of the state dict and of the names (``module.``, ``_orig_mod.``,
    ``model.``) taken off; ``names`` are the same tensors' names in the file; ``beside`` is what is written beside them
    (metadata). In place, tensors are not aligned, on which the last bits of what is computed with them depend: compute
    with :meth:`copies`.

    Raises:
        UserError: the file is not there, is no checkpoint, is damaged, or would run code.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _refuse_other_files(self.path)
        found, self.beside = self._map()
        if not found:
            raise UserError(f"{path} holds no tensors")
        self.names = {_unwrapped(name): name for name in found}
        self.mapped = {name: found[wrapped] for name, wrapped in self.names.items()}
        if len(self.names) < len(found):
            allowed = f"told apart by {', '.join(PREFIXES)} alone; give just one"
            raise UserError(f"{path} holds tensors of two models, {allowed}")

    def copies(self, names: Iterable[str], dtype: torch.dtype | None = None) -> Iterator[Tensor]:
        """Tensors in memory of their own, one after the other.

        Pages of a mapped file count as memory while it is mapped: it is mapped anew from time to time.
        """
        mapped, taken = self.mapped, STRETCH
        for name in names:
            if taken >= STRETCH and self._maps:
                found, taken = self._map()[0], 0
                mapped = {name: found[wrapped] for name, wrapped in self.names.items()}
            taken += mapped[name].nbytes
            yield mapped[name].to(dtype or mapped[name].dtype, copy=True)

    @property
    def safe(self) -> bool:
        return self.path.suffix == ".safetensors"

    @property
    def _maps(self) -> bool:
        return self.safe or is_zipfile(self.path)  # old torch checkpoints cannot be mapped, they are in memory

    def _map(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return _map_safetensors(self.path) if self.safe else _map_torch(self.path, self._maps)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a :class:`File`, each in memory of its own, and what is written beside them."""
    file = File(path)
    return dict(zip(file.mapped, file.copies(file.mapped), strict=True)), file.beside


def read_tensor(path: str | Path, name: str) -> Tensor:
    """One tensor of a safetensors file in memory of its own: aligned, wherever the file puts it."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).clone()


def _refuse_other_files(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(64)
    if re.match(rb"\s*<[!?a-z]{2}", start, re.IGNORECASE):  # "<" alone may begin the length of a header
        raise UserError(f"{path} is a web page, not a checkpoint; download the file itself")
    if len(start) < 64:
        raise UserError(f"{path} has {len(start)} bytes: it is no checkpoint")


def _map_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from error


def _map_torch(path: Path, maps: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=maps)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is no plain checkpoint of tensors, and loading it could run code; nothing was run"
        ) from error
    except Exception as error:  # damaged bytes make torch raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "TorchScript" in reason:
            raise UserError(
                f"{path} is a program (TorchScript), not a checkpoint; save its state_dict alone"
            ) from error
        raise UserError(f"{path} is not a whole torch checkpoint ({reason})") from error
    beside = content if isinstance(content, Mapping) else {}
    while isinstance(content, Mapping) and (inner := next((k for k in WRAPPINGS if _holds(content, k)), None)):
        content = content[inner]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}, dict(beside)


def _holds(content: Mapping[str, Any], key: str) -> bool:
    return isinstance(content.get(key), Mapping)


def _unwrapped(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name[len(prefix) :]
    return name


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """sha256 of each tensor's type, shape and bytes."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashing releases the interpreter's lock
        return dict(zip(tensors, pool.map(_hash, tensors.values()), strict=True))


def hashes_in(path: str | Path, names: Mapping[str, str], dtype: torch.dtype) -> dict[str, str]:
    """:func:`hashes` of tensors in a safetensors file, read one at a time as ``dtype``: name -> name in the file."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = pool.map(lambda name: _hash(read_tensor(path, name).to(dtype)), names.values())
        return dict(zip(names, found, strict=True))


def _hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(digests: Mapping[str, str]) -> str:
    """One sha256 for a set of tensors: of their sorted names and hashes."""
    lines = "\n".join(f"{name} {digests[name]}" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()
