"""Weights in several files, as large models have them: an index (JSON) says which part holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scaleup.errors import UserError

ENDING = ".index.json"


def is_index(path: Path) -> bool:
    return path.suffix == ".json"  # no other weights are JSON


def read(path: Path) -> dict[str, Path]:
    """The part of each tensor.

    Raises:
        UserError: it is no index, names a file that is not beside it, or a tensor twice.
    """
    found = _weight_map(path)
    for part in named(path):
        if not (path.parent / part).is_file():
            raise UserError(f"{path} names the part {part!r}, which is not beside it; download that too")
    return {name: path.parent / part for name, part in found.items()}


def named(path: Path) -> list[str]:
    """The names of the parts of an index."""
    return list(dict.fromkeys(_weight_map(path).values()))


def _weight_map(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(), object_pairs_hook=lambda pairs: _without_doubles(path, pairs))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(part, str) for part in found.values()) or not found:
        raise UserError(
            f"{path} is JSON without weights; allowed is the index of weights in several parts, whose 'weight_map' "
            "names the part of each tensor"
        )
    for part in found.values():
        if Path(part).name != part or part in ("", "..") or "\\" in part or "\0" in part:
            raise UserError(f"{path} names the part {part!r}; allowed are files beside it")
    return found


def _without_doubles(path: Path, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UserError(f"{path} names {name!r} twice")
        found[name] = value
    return found


def refuse_misplaced(index: Path, wanted: Mapping[str, Path], held: Mapping[Path, Iterable[str]]) -> None:
    """Raise UserError where parts do not hold what the index says.

    Args:
        wanted: the part of each tensor by the index.
        held: the tensors that each part has.
    """
    places: dict[str, list[Path]] = {}
    for part, names in held.items():
        for name in names:
            places.setdefault(name, []).append(part)
    for name, part in wanted.items():
        found = places.pop(name, [])
        if found != [part]:
            there = f"it is in {' and '.join(each.name for each in found)}" if found else "no part has it"
            raise UserError(f"{index} says that {name!r} is in {part.name}, but {there}")
    if places:
        name, found = next(iter(places.items()))
        raise UserError(f"{found[0]} holds {name!r}, which {index.name} does not name")
