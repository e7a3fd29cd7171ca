"""``config.json`` of a model directory: everything needed to rebuild the model, held against its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from scaleup.config import schema
from scaleup.config.rules import Reader
from scaleup.errors import UserError

FORMAT = "scaleup/1"


@dataclass
class Source:
    """The image model that a model was made from."""

    name: str
    kwargs: dict[str, Any]
    weights: str | None  # where they were; None: drawn from ``seed``
    license: str
    seed: int
    sha256: str | None  # of the weights; None where they were none of the public's


@dataclass
class Adapter:
    """What learned beside the frozen weights of the late blocks; rank and alpha are those of LoRA and DoRA."""

    kind: str  # lora | dora | ia3
    rank: int
    alpha: float


@dataclass
class Config:
    """The keys of ``config.json``, beside its format; those that a recipe has too mean the same."""

    backbone: Source
    input: schema.Input
    frames: schema.Frames
    tubes: dict[str, schema.Tube]
    interpolate: list[int] | None
    positions: schema.Positions
    frozen_depth: int
    gate: bool | str  # as an arm's in a recipe
    adapter: Adapter | None
    heads: dict[str, list[str]]  # head -> names of its classes


def read(directory: Path) -> dict[str, Any]:
    """``config.json`` of a model directory.

    Raises:
        UserError: it cannot be read, or see :func:`check`.
    """
    path = directory / "config.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{directory} is no model directory: config.json cannot be read ({error})") from error
    return check(content, str(path))


def check(content: Any, origin: str) -> dict[str, Any]:
    """The content of a ``config.json`` with every value of its type.

    Raises:
        UserError: with every key that is missing, unknown or has a value that is not allowed.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{origin} is not of the format {FORMAT!r}")
    reader = Reader()
    given = {key: value for key, value in content.items() if key != "format"}
    given.setdefault("adapter", None)  # models are older than adapters
    given = completed(given)
    valid = reader.settings(Config, given, rule="model.")
    complete = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(Config), valid))
    assert isinstance(complete, dict)
    if mistakes := reader.mistakes + list(_missing(given, complete)):
        raise UserError(
            f"{origin} does not describe a model: {'; '.join(mistakes[:6])} ({len(mistakes)} faults in all)"
        )
    return {"format": FORMAT, **valid}


def completed(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a ``config.json``, whose tubes say whether they sum, as older files do not; the order of keys stays."""
    tubes = parts.get("tubes")
    if not isinstance(tubes, dict):
        return dict(parts)
    return {**parts, "tubes": {name: _summed(tube) for name, tube in tubes.items()}}


def _summed(tube: Any) -> Any:
    return tube | {"summed": tube.get("summed", False)} if isinstance(tube, dict) else tube


def _missing(given: Any, complete: Mapping[Any, Any], at: str = "") -> Iterator[str]:
    """Settings without a value in the file: a default may change, a model may not."""
    for key, value in complete.items():
        if isinstance(given, dict) and key not in given:
            yield f"{at}{key}: is missing"
        elif isinstance(given, dict) and isinstance(value, dict):
            yield from _missing(given[key], value, f"{at}{key}.")
