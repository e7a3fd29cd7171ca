"""What a backbone's name means: which library's model, with which changes, and where its weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from scaleup.backbones import open_clip, timm
from scaleup.backbones.backbone import ALIASES, resolve
from scaleup.checkpoint import config_json as config_file
from scaleup.checkpoint.hub import HUB, LOCAL, files_of, find, is_path
from scaleup.common.tensors import File, split
from scaleup.errors import UserError, nearest

CONFIGS = ("config.json", "open_clip_config.json")


class Located(NamedTuple):
    """``timm:NAME`` or ``open_clip:NAME``, the changes to it, where its weights are, and what a directory says beside
    (input, license, positions)."""

    name: str
    kwargs: dict[str, Any]
    weights: str | None
    input: dict[str, Any] = {}  # noqa: RUF012 - never written to


def locate(name: str, kwargs: dict[str, Any], weights: str | None) -> Located:
    """What the arguments of :func:`scaleup.backbones.build.build` mean; paths of weights become absolute.

    Raises:
        UserError: the name means nothing; with the nearest that do.
    """
    name = resolve(name)
    for prefix in ("timm:", "open_clip:"):  # these two may stand before a hub id or a directory
        if name.startswith((prefix + HUB, prefix + LOCAL)):
            name = name.removeprefix(prefix)
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
    return at._replace(weights=_place(at))


def _place(at: Located) -> str | None:
    """Where the weights are; a path is that of a file, and absolute: a model may be loaded from another directory."""
    if at.weights is None or not is_path(at.weights):
        return at.weights
    return str(find(at.weights, files_of(at.name)))


def _described(place: str, kwargs: dict[str, Any], weights: str | None) -> Located:
    """A directory or hub repository that describes its model."""
    path, config = _config(place)
    if path.name == "open_clip_config.json":
        name, own, fed = open_clip.architecture_in(config, path)
    elif "architecture" in config:
        name, own, fed = timm.architecture_in(config, path)
    else:
        config = config_file.check(config, str(path))
        if config["adapter"]:
            raise UserError(f"{place} has an adapter on its blocks; fold it in first with tools/export.py --merge")
        entry = config["backbone"]
        name, own = entry["name"], entry["kwargs"]
        fed = config["input"] | {"license": entry["license"], "positions": config["positions"]}
    return Located(name, own | kwargs, place if weights == "pretrained" else weights, fed)


def _config(place: str) -> tuple[Path, dict[str, Any]]:
    """The file that describes the model and its content; a ``config.json`` of another library is passed over."""
    path = find(place, CONFIGS)
    config = _read(path)
    if path.name == CONFIGS[0] and not ("architecture" in config or "format" in config):
        try:
            path = find(place, CONFIGS[1:])
        except UserError:
            ours = f"the model is neither timm's, nor open_clip's, nor of the format {config_file.FORMAT!r}"
            instead = f"; give timm:NAME, and {place} as its weights" if "architectures" in config else ""
            raise UserError(f"{path} describes no model that is known here: {ours}{instead}") from None
        config = _read(path)
    return path, config


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} describes no model: it holds a {type(config).__name__}")
    return config


def _recognised(path: str) -> str:
    """The model of an alias whose tensors a file has; of open_clip's models, tensors do not tell the activation."""
    known = [alias.removeprefix("timm:") for alias in ALIASES.values() if alias.startswith("timm:")]
    if architecture := timm.architecture_of(File(path).mapped, known):
        return f"timm:{architecture}"
    raise UserError(
        f"{path} has the tensors of none of {', '.join(known)}; give timm:NAME or open_clip:NAME and --weights {path}"
    )
