"""From a backbone's name and the place of its weights to the backbone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scaleup import config as config_file
from scaleup import tensors
from scaleup.backbones import ALIASES, Backbone, resolve, timm
from scaleup.errors import UserError, nearest

OWN = ("tubes.", "positions.", "heads.", "gate.")  # tensors of our own models that are not the backbone's


def build(
    name: str, kwargs: dict[str, Any], size: tuple[int, int] | None, weights: str | None = None, seed: int = 0
) -> Backbone:
    """Build a plain ViT.

    Args:
        name: ``timm:NAME``, an alias (``vit_h``), a directory (one of our models, or timm's ``local-dir:`` layout) or a
            weights file of a model that an alias names.
        kwargs: changes to the architecture, in timm's words.
        size: (h, w) of the input in pixels; None for the backbone's own.
        weights: None to draw them from ``seed``; ``"pretrained"``; ``"meta"`` for no memory at all; or a file.
    """
    if weights not in (None, "pretrained", "meta"):
        weights = str(Path(weights).resolve())  # the model may be loaded from another directory
    at = _located(resolve(name), kwargs, weights)
    kwargs, size = at.kwargs, size or at.input.get("size")
    left: dict[str, Tensor] = {}
    if at.weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vit = timm.create(at.name, kwargs, size)
    elif at.weights == "pretrained":
        vit = timm.create(at.name, kwargs, size, pretrained=True)
    else:
        with torch.device("meta"):
            vit = timm.create(at.name, kwargs, size)
        if at.weights != "meta":
            found, _ = tensors.read(at.weights)
            left = {key: found.pop(key) for key in list(found) if key.startswith(OWN)}
            left |= timm.load_weights(vit, found, at.weights)
    made = timm.take_apart(vit, f"timm:{at.name}")
    mean, std = (tuple(at.input.get(key, getattr(made, key))) for key in ("mean", "std"))
    license = at.input.get("license", made.license)
    made = replace(made, kwargs=kwargs, weights=at.weights, left=left, mean=mean, std=std, license=license)
    return replace(made, positions=at.input.get("positions"))


class Located(NamedTuple):
    """timm's own name, the changes to it, where its weights are, and what a directory says beside (input, license)."""

    name: str
    kwargs: dict[str, Any]
    weights: str | None
    input: dict[str, Any] = {}  # noqa: RUF012 - never written to


def _located(name: str, kwargs: dict[str, Any], weights: str | None) -> Located:
    if name.startswith("timm:"):
        return Located(name.removeprefix("timm:"), kwargs, weights)
    path = Path(name)
    if path.is_dir():
        return _directory(path, kwargs, weights)
    if path.is_file():
        found, _ = tensors.read(path)
        known = [alias.removeprefix("timm:") for alias in ALIASES.values()]
        if architecture := timm.architecture_of(found, known):
            return Located(architecture, kwargs, weights if weights in (None, "meta") else str(path.resolve()))
        raise UserError(f"{path} has the tensors of none of {', '.join(known)}; give timm:NAME and --weights {path}")
    raise UserError(
        f"unknown backbone {name!r}; allowed are {', '.join(ALIASES)}, timm:NAME, a directory or a weights file"
        f"{nearest(name, ALIASES)}"
    )


def _directory(path: Path, kwargs: dict[str, Any], weights: str | None) -> Located:
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no model directory: its config.json cannot be read ({error})") from error
    if isinstance(config, dict) and "architecture" in config:  # timm's own layout
        name, own, fed = timm.architecture_in(config, path)
    else:
        config = config_file.check(config, str(path / "config.json"))
        entry = config["backbone"]
        name, own = entry["name"].removeprefix("timm:"), entry["kwargs"]
        fed = config["input"] | {"license": entry["license"], "positions": config["positions"]}
    return Located(name, own | kwargs, _weights_in(path) if weights == "pretrained" else weights, fed)


def _weights_in(path: Path) -> str:
    for file in (path / "model.safetensors", path / "pytorch_model.bin"):
        if file.is_file():
            return str(file.resolve())
    raise UserError(f"{path} holds no whole image model, there is no model.safetensors; export it with --to full first")
