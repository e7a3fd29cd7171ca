"""Model directories: ``config.json``, ``delta.safetensors`` or ``model.safetensors``, ``report.json``, ``README.md``,
and ``adapter/``, a PEFT directory, where the late blocks have an adapter.

A *full* directory holds every tensor. A *delta* holds what differs from the public backbone (tubes, gate, trained
blocks, norm, heads) and the sha256 of the base weights that it needs. Backbone tensors carry the library's own names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from scaleup.backbones.backbone import Backbone
from scaleup.backbones.build import build
from scaleup.backbones.placement import BlockFile
from scaleup.backbones.weight_source import is_path
from scaleup.checkpoint import config_json as config_file
from scaleup.checkpoint.card import card
from scaleup.checkpoint.model_directory import DELTA, FULL, local, read_report, read_tensors
from scaleup.checkpoint.tensor_names import assign, named_tensors, public_name, refuse_misfits, to_store
from scaleup.common import tensors
from scaleup.common.files import let_read, new_directory
from scaleup.errors import UserError
from scaleup.model import adapter
from scaleup.model.adapter import Adapt
from scaleup.model.tubevit import TubeViT, assemble
from scaleup.recipe import Trunk

NO_BASE = "this model does not know a backbone by its sha256, so it has no delta; allowed is --to full"


def save(
    model: TubeViT,
    out: str | Path,
    kind: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model directory, whole or not at all.

    Args:
        kind: ``"delta"`` or ``"full"``; by default a delta where blocks are frozen and the base is known.
    """
    kind = kind or ("delta" if model.frozen_depth and model.base else "full")
    content = to_store(model)
    if kind == "full" and (lost := model.base.keys() - content.keys()):
        raise UserError(
            f"{len(lost)} tensors of the frozen blocks are in no float32 memory, so {out} cannot be written in full; "
            "write a delta, and export that with --to full"
        )
    adapted = {name: content.pop(name) for name in list(content) if name.startswith(adapter.PREFIX)}
    if kind == "delta":
        content = _beyond_base(model, content)
    with new_directory(out, overwrite) as directory:
        text, name = json.dumps(model.config, indent=2), FULL if kind == "full" else DELTA
        (directory / "config.json").write_text(text + "\n")
        (directory / "report.json").write_text(json.dumps(model.report, indent=2) + "\n")
        size = sum(tensor.numel() for tensor in (content | adapted).values())
        (directory / "README.md").write_text(card(model, kind, size))
        try:
            if adapted:
                settings = Adapt(**model.config["adapter"])
                adapter.write(directory / adapter.DIRECTORY, model.arm.blocks, model.block_prefix, settings, adapted)
            save_file(content, directory / name, {"config": text})  # one key: with two, their order is chance
        except SafetensorError as error:
            raise UserError(f"{out} could not be written ({error}); nothing was left behind") from error
        let_read(directory / name)  # safetensors writes for the owner alone
    return Path(out)


def _beyond_base(model: TubeViT, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a model's tensors the public backbone does not have."""
    if not model.base:
        raise UserError(NO_BASE)
    digests = tensors.hashes({name: content[name] for name in model.base if name in content})
    return {name: tensor for name, tensor in content.items() if digests.get(name) != model.base.get(name, "")}


def load(source: str | Path, base: str | None = None, placement: str = "device") -> TubeViT:
    """A model directory, or a hub id, -> the model in eval mode.

    Args:
        base: where the base weights of a delta are now, if not where they were.
        placement: ``"disk"`` leaves the frozen blocks in the file of a full directory, or of the base of a delta, one
            read at a time.

    Raises:
        UserError: a file is missing or damaged, the base has another sha256, or a tensor is missing, unexpected or of
            another shape.
    """
    directory = local(source)
    config = config_file.read(directory)
    whole = (directory / FULL).exists()
    on_disk = config["frozen_depth"] if placement == "disk" else 0
    if whole:
        model = from_config(config, "meta")
    else:
        model = from_config(config, base or config["backbone"]["weights"], on_disk)
    waiting = _wait_in(directory / FULL, model) if whole and on_disk else set()
    own, found = named_tensors(model), read_tensors(directory, waiting)
    optional = set() if whole else {name for name in own if name in model.base}
    refuse_misfits(own, found, optional, directory)
    assign(model, {name: tensor for name, tensor in found.items() if name not in waiting})
    model.report = read_report(directory)
    return model.eval()


def _wait_in(path: Path, model: TubeViT) -> set[str]:
    """Have the frozen blocks read from a full file whenever they are needed; returns their tensors' names there."""
    assert model.trunk is not None
    names = {name: public_name(f"trunk.blocks.{name}", model) for name in model.trunk.blocks.state_dict()}
    model.trunk.file = BlockFile(str(path), names)
    return set(names.values())


def outline(source: str | Path) -> TubeViT:
    """The model of a directory, or of a hub id, on the meta device: its config.json is enough."""
    return from_config(config_file.read(local(source)), "meta")


def load_run(run: str | Path, base: str | None = None, placement: str = "device") -> dict[str, TubeViT]:
    """The arms of a run directory by name, in eval mode; those of a sweep share the tensors of one trunk.

    Args:
        base, placement: see :func:`load`.

    Raises:
        UserError: as :func:`load`, or the model that the arms began from has changed since.
    """
    run = Path(run)
    template = OmegaConf.select(OmegaConf.load(run / "recipe.yaml"), "model.load")  # of the rest nothing is needed
    arms = {path.parent.name: path.parent for path in sorted(run.glob("*/config.json"))}
    if not arms:
        raise UserError(f"{run} holds no trained arms yet")
    if template is None or len(arms) == 1:
        return {name: load(directory, base, placement) for name, directory in arms.items()}
    shared = load(template, base, placement)
    return {name: _arm_of(shared, directory) for name, directory in arms.items()}


def trunk_of(run: str | Path) -> Trunk:
    """How the frozen blocks of a run were kept."""
    kept = OmegaConf.select(OmegaConf.load(Path(run) / "recipe.yaml"), "trunk", default={})
    return Trunk(**kept)


def _arm_of(template: TubeViT, directory: Path) -> TubeViT:
    config = config_file.read(directory)
    adapt = Adapt(**config["adapter"]) if config["adapter"] else adapter.FULL
    model = template.with_arm(config["frozen_depth"], config["gate"], config["heads"], adapt=adapt)
    own, found = named_tensors(model), read_tensors(directory)
    shared = {name for name, parameter in model.arm.named_parameters() if not parameter.requires_grad}
    arm = {name: public_name(f"arm.{name}", model) for name in model.arm.state_dict() if name not in shared}
    refuse_misfits(own, found, own.keys() - set(arm.values()) | model.base.keys(), directory)
    kept = to_store(model)  # frozen blocks may wait in a file
    if any(not torch.equal(found[name], kept[name]) for name in found.keys() - set(arm.values())):
        raise UserError(f"{directory} sits on another trunk than the model its run began from now has; load it alone")
    model.arm.load_state_dict({n: found[public] for n, public in arm.items() if public in found}, strict=False)
    model.report = read_report(directory)
    return model.eval()


def from_config(config: dict[str, Any], weights: str | None, on_disk: int = 0) -> TubeViT:
    """A model whose backbone has the weights that ``weights`` names (see :func:`backbones.build.build`)."""
    backbone = _backbone(config, weights, on_disk)
    base = {} if weights == "meta" else _base(config, backbone)  # before adapters are put into its blocks
    with torch.device("meta"):  # what is not the backbone's comes from the file
        model = assemble(config, backbone)
    model.base = base
    return model


def base_of(config: dict[str, Any], base: str | None = None) -> dict[str, str]:
    """sha256 of each tensor of the public backbone that a model was made from."""
    if config["backbone"]["sha256"] is None:
        raise UserError(NO_BASE)
    return _base(config, _backbone(config, base or config["backbone"]["weights"]))


def _backbone(config: dict[str, Any], weights: str | None, on_disk: int = 0) -> Backbone:
    entry = config["backbone"]
    if weights is not None and is_path(weights) and not tensors.split(weights)[0].is_file():
        raise UserError(f"the base weights of {entry['name']} are not at {weights}; say where they are with base")
    return build(entry["name"], entry["kwargs"], config["input"]["size"], weights, entry["seed"], on_disk)


def _base(config: dict[str, Any], backbone: Backbone) -> dict[str, str]:
    digests, entry = backbone.hashes(), config["backbone"]
    found = tensors.fingerprint(digests)
    if entry["sha256"] not in (None, found):
        raise UserError(
            f"the base weights of {entry['name']} have sha256 {found[:16]}..., but the model was made from "
            f"{entry['sha256'][:16]}...; give the very weights it was made from"
        )
    return digests
