"""Builds backbones from their names and weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from scaleup.backbones import open_clip, timm
from scaleup.backbones.backbone import ALIASES, Backbone, Kwargs, Located, resolve
from scaleup.backbones.weights import SkipInit, convert, load
from scaleup.checkpoint.hub import HUB, LOCAL, files_of, find, is_path
from scaleup.checkpoint.model_directory import FORMAT, ModelConfig, refuse_tubes
from scaleup.common.errors import UserError, nearest
from scaleup.common.files import read_json
from scaleup.common.model_choice import report_choice
from scaleup.common.tensors import File, split
from scaleup.common.text import join_words

LIBRARIES: dict[str, ModuleType] = {"timm": timm, "open_clip": open_clip}
CONFIGS = ("config.json", "open_clip_config.json")
MOST_BLOCKS, MOST = 1000, 10**6  # largest number of blocks, and of other settings of a model


def build(
    name: str,
    kwargs: Kwargs,
    size: tuple[int, int] | None,
    weights: str | None = None,
    seed: int = 0,
    on_disk: int = 0,
) -> Backbone:
    """Build a plain ViT.

    Args:
        name: ``timm:NAME``, ``open_clip:NAME`` or ``open_clip:NAME/TAG``, an alias (``vit_h``), ``hf-hub:owner/name``,
            a directory (one of our models, timm's or open_clip's layout; ``local-dir:`` may stand before it), or a
            weights file of a model that an alias names.
        kwargs: arguments for the library's model.
        size: (h, w) of the input in pixels; None for the backbone's own.
        weights: None for random weights from ``seed``; ``"pretrained"`` for the public weights of that name; ``"meta"``
            for tensors without memory; or a file, a directory, ``hf-hub:owner/name``, ``timm:NAME``,
            ``open_clip:NAME/TAG``. ``:MODEL`` after the first three names one model of a file: ``big.pt:teacher``.
        on_disk: number of first blocks that stay on the meta device; their weights stay in ``Backbone.file``.

    Raises:
        UserError: there is no such backbone, it is not plain, the weights cannot be found or belong to another model,
            patches do not divide the size, or blocks cannot be read from the file of the weights.
    """
    at = locate(name, kwargs, weights)
    _refuse_giants(at.name, at.kwargs)
    family, _, own_name = at.name.partition(":")
    library, size = LIBRARIES[family], size or at.size
    with torch.device("meta"), SkipInit():
        vit = library.create(own_name, at.kwargs, size)
    backbone = library.take_apart(vit, at.name)
    if at.weights is None:
        if on_disk:
            raise UserError(f"blocks of {name!r} cannot stay on disk: its weights are random, not in a file")
        _refuse_more_than_memory(backbone)
        backbone = _drawn(at.name, at.kwargs, size, seed)
    elif at.weights != "meta":
        file = File(weights_file(at.name, at.weights))
        backbone = _filled(backbone, vit, library, file, on_disk)
        if is_path(at.weights) or at.weights.startswith(HUB):
            heads = dict.fromkeys(name.partition(".")[0] for name in backbone.left)
            report_choice(file.path, file.said, f"of the model, {join_words(heads)} left out" if heads else "")
    stated = {key: value for key in ("mean", "std", "license", "positions") if (value := getattr(at, key))}
    return replace(backbone, kwargs=at.kwargs, weights=at.weights, **stated)


def _drawn(name: str, kwargs: Kwargs, size: tuple[int, int] | None, seed: int) -> Backbone:
    """A backbone with random weights from ``seed``."""
    family, _, own_name = name.partition(":")
    library = LIBRARIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return library.take_apart(library.create(own_name, kwargs, size), name)


def add_blocks(backbone: Backbone, count: int, seed: int) -> Backbone:
    """A backbone with ``count`` more blocks on top, random from ``seed`` (Table 8). Its kwargs have the new depth.

    Raises:
        UserError: other parts of the model depend on its depth.
    """
    kwargs = backbone.kwargs | {"depth" if backbone.block_prefix == "blocks." else "layers": backbone.depth + count}
    deeper = _drawn(backbone.name, kwargs, backbone.size, seed)
    if changed := sorted(_shapes(backbone) ^ _shapes(deeper)):
        raise UserError(
            f"{backbone.name!r} cannot get fresh blocks: {changed[0][0]} has an entry for each of its blocks; "
            "allowed are models with the same positions for all blocks"
        )
    return replace(backbone, blocks=[*backbone.blocks, *deeper.blocks[backbone.depth :]], kwargs=kwargs)


def _shapes(backbone: Backbone) -> set[tuple]:
    """Names and shapes of the tensors outside blocks."""
    tensors = backbone.stem.state_dict() | backbone.tail.state_dict()
    return {(name, tuple(tensor.shape)) for name, tensor in tensors.items()}


def _filled(planned: Backbone, vit: Any, library: ModuleType, file: File, on_disk: int) -> Backbone:
    """The backbone of ``vit`` with the weights of a file, without those of the first ``on_disk`` blocks."""
    if on_disk and not file.safe:
        raise UserError(f"blocks cannot stay in {file.path}; allowed is a .safetensors file")
    left, origin = load(vit, file, library.arrange, tuple(f"{planned.block_prefix}{i}." for i in range(on_disk)))
    backbone = replace(library.take_apart(vit, planned.name), left=left)
    return replace(backbone, origin=origin, file=file.path) if file.safe else backbone


def _refuse_giants(name: str, kwargs: Mapping[str, Any]) -> None:
    """UserError for a configuration with huge sizes, which could fill the memory before anything else is checked."""
    for key, value in kwargs.items():
        most = MOST_BLOCKS if key in ("depth", "layers") else MOST
        if isinstance(value, int | float) and abs(value) > most:
            raise UserError(f"{key} of {name!r} is {value}; allowed are at most {most}")


def _refuse_more_than_memory(planned: Backbone) -> None:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in planned.state_dict().values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        takes, has = f"{needed / 2**30:.0f} GiB", f"{memory / 2**30:.0f} GiB"
        raise UserError(f"{planned.name!r} needs {takes} in float32, but this machine has {has}")


def weights_file(name: str, weights: str) -> Path:
    """The file of ``weights`` (see :func:`build`) for the backbone ``name``; it is downloaded if necessary."""
    place = name if weights == "pretrained" else weights
    family, _, own_name = place.partition(":")
    if family in LIBRARIES and not own_name.startswith(HUB):
        return LIBRARIES[family].public(own_name)
    return find(place.removeprefix("timm:"), files_of(name))


def locate(name: str, kwargs: Kwargs, weights: str | None) -> Located:
    """The backbone that the arguments of :func:`build` describe; paths of weights become absolute.

    Raises:
        UserError: the name is unknown; the error has the nearest names.
    """
    name = resolve(name)
    if name.startswith(("timm:", "open_clip:")):
        at = Located(name, kwargs, weights)
    elif name.startswith((HUB, LOCAL)) or Path(name).is_dir():
        at = _described(name, kwargs, weights)
    elif split(name)[0].is_file():
        at = Located(_recognised(name), kwargs, weights if weights in (None, "meta") else name)
    else:
        known = [*ALIASES, *timm.names(), *open_clip.names()]
        raise UserError(
            f"unknown backbone {name!r}; allowed are {', '.join(ALIASES)}, timm:NAME, open_clip:NAME/TAG, "
            f"hf-hub:owner/name, a directory or a weights file{nearest(name, known)}"
        )
    return replace(at, weights=_place(at))


def _place(at: Located) -> str | None:
    """Where the weights are. Paths are absolute, because a model may be loaded from another working directory."""
    if at.weights is None or not is_path(at.weights):
        return at.weights
    return str(find(at.weights, files_of(at.name)))


def _described(place: str, kwargs: Kwargs, weights: str | None) -> Located:
    """The backbone that the configuration of a directory or hub repository describes."""
    path, config = _config(place)
    if path.name == "open_clip_config.json":
        at = open_clip.architecture_in(config, path)
    elif "architecture" in config:
        at = timm.architecture_in(config, path)
    else:
        refuse_tubes(path.parent)
        own = ModelConfig.from_json(config, str(path))
        if own.adapter:
            raise UserError(f"{place} has an adapter on its blocks; merge it first with tools/export.py --merge")
        source, (height, width) = own.backbone, own.input.size
        mean, std = tuple(own.input.mean), tuple(own.input.std)
        at = Located(source.name, source.kwargs, None, (height, width), mean, std, source.license, own.positions)
    return replace(at, kwargs=at.kwargs | kwargs, weights=place if weights == "pretrained" else weights)


def _config(place: str) -> tuple[Path, dict[str, Any]]:
    """The file that describes the model, and its content. A ``config.json`` of another library is skipped."""
    path = find(place, CONFIGS)
    config = _read(path)
    if path.name == CONFIGS[0] and not ("architecture" in config or "format" in config):
        try:
            path = find(place, CONFIGS[1:])
        except UserError:
            ours = f"the model is neither timm's, nor open_clip's, nor of the format {FORMAT!r}"
            instead = f"; give timm:NAME, and {place} as its weights" if "architectures" in config else ""
            raise UserError(f"{path} describes an unknown model: {ours}{instead}") from None
        config = _read(path)
    return path, config


def _read(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} describes no model: it is a {type(config).__name__}")
    return config


def _recognised(path: str) -> str:
    """The name (of those with an alias) whose tensors a file has. open_clip's models are left out, because their
    tensors do not show the activation function."""
    names = [alias.removeprefix("timm:") for alias in ALIASES.values() if alias.startswith("timm:")]
    tensors = {name: tensor.to("meta") for name, tensor in File(path).mapped.items()}
    for name in names:
        with torch.device("meta"):
            own = timm.create(name, {}, None).state_dict()
        named = convert(tensors, own.keys())[0].items()
        shapes = {key: tensor.shape for key, tensor in named if not key.startswith(timm.BESIDE)}
        if {key: tensor.shape for key, tensor in own.items()} == shapes:
            return f"timm:{name}"
    raise UserError(
        f"{path} has the tensors of none of {', '.join(names)}; give timm:NAME or open_clip:NAME and --weights {path}"
    )
