"""From a backbone's name and the place of its weights to the backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    name, kwargs, weights = _located(resolve(name), kwargs, weights)
    left: dict[str, Tensor] = {}
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vit = timm.create(name, kwargs, size)
    elif weights == "pretrained":
        vit = timm.create(name, kwargs, size, pretrained=True)
    else:
        with torch.device("meta"):
            vit = timm.create(name, kwargs, size)
        if weights != "meta":
            found, _ = tensors.read(weights)
            own = {key: value for key, value in found.items() if not key.startswith(OWN)}
            left = timm.load_weights(vit, own, weights)
    made = timm.take_apart(vit, f"timm:{name}")
    made.kwargs, made.weights, made.left = kwargs, weights, left
    return made


def _located(name: str, kwargs: dict[str, Any], weights: str | None) -> tuple[str, dict[str, Any], str | None]:
    """timm's own name, the changes to it, and where its weights are."""
    if name.startswith("timm:"):
        return name.removeprefix("timm:"), kwargs, weights
    path = Path(name)
    if path.is_dir():
        return _directory(path, kwargs, weights)
    if path.is_file():
        found, _ = tensors.read(path)
        known = [alias.removeprefix("timm:") for alias in ALIASES.values()]
        if architecture := timm.architecture_of(found, known):
            return architecture, kwargs, str(path)
        raise UserError(f"{path} has the tensors of none of {', '.join(known)}; give timm:NAME and --weights {path}")
    raise UserError(
        f"unknown backbone {name!r}; allowed are {', '.join(ALIASES)}, timm:NAME, a directory or a weights file"
        f"{nearest(name, ALIASES)}"
    )


def _directory(path: Path, kwargs: dict[str, Any], weights: str | None) -> tuple[str, dict[str, Any], str | None]:
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no model directory: its config.json cannot be read ({error})") from error
    if "architecture" in config:  # timm's own layout
        return f"local-dir:{path}", kwargs, weights or "pretrained"
    if "backbone" not in config or not (path / "model.safetensors").is_file():
        raise UserError(f"{path} holds no whole image model; export it with --to full first")
    backbone = config["backbone"]
    return backbone["name"].removeprefix("timm:"), backbone["kwargs"] | kwargs, str(path / "model.safetensors")
