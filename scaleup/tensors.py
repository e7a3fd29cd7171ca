"""Tensors in files: read without running code, told apart by hashes of their content."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scaleup.errors import UserError

WRAPPINGS = ("state_dict", "model_state_dict", "model", "module")  # where trainers keep the tensors
PREFIXES = ("module.", "_orig_mod.", "model.")  # what wrappers put before every name


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a ``.safetensors`` file or a torch checkpoint, and what is written beside them (metadata).

    Wrappings of the state dict and of the names (``module.``, ``_orig_mod.``, ``model.``) are taken off.

    Raises:
        UserError: the file is not there, is no checkpoint, is damaged, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(64)
    if re.match(rb"\s*<[!?a-z]{2}", start, re.IGNORECASE):  # "<" alone may begin the length of a header
        raise UserError(f"{path} is a web page, not a checkpoint; download the file itself")
    if len(start) < 64:
        raise UserError(f"{path} has {len(start)} bytes: it is no checkpoint")
    tensors, beside = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    unwrapped = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    if len(unwrapped) < len(tensors):
        raise UserError(f"{path} holds tensors of two models, told apart by {', '.join(PREFIXES)} alone; give just one")
    return unwrapped, beside


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            names, beside = list(file.keys()), dict(file.metadata() or {})
        return {name: read_tensor(path, name) for name in names}, beside
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from error


def read_tensor(path: str | Path, name: str) -> Tensor:
    """One tensor in memory of its own: aligned, so that what is computed does not depend on where a file puts it.

    The file is opened for each, which gives back the pages that were mapped for the last one.
    """
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).clone()


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is no plain checkpoint of tensors, and loading it could run code; nothing was run"
        ) from error
    except Exception as error:  # damaged bytes make torch raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
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


def _hash(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(digests: Mapping[str, str]) -> str:
    """One sha256 for a set of tensors: of their sorted names and hashes."""
    lines = "\n".join(f"{name} {digests[name]}" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()
