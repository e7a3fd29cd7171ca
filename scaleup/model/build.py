"""Models from recipes, from model directories and from run directories."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from scaleup.backbones.backbone import Backbone
from scaleup.backbones.build import add_blocks, build
from scaleup.checkpoint import config_json
from scaleup.checkpoint.config_json import FORMAT
from scaleup.checkpoint.model_directory import local, public_name, read_report, read_tensors, refuse_misfits
from scaleup.config.schema import Model, Trunk
from scaleup.errors import UserError
from scaleup.model import adapter
from scaleup.model.adapter import Adapt
from scaleup.model.arm import Heads
from scaleup.model.tubes import inflate
from scaleup.model.tubevit import TubeViT

load = TubeViT.from_pretrained


def describe(backbone: Backbone, seed: int, **parts: Any) -> dict[str, Any]:
    """The content of ``config.json``; ``parts`` are its keys input, frames, tubes, positions and so on."""
    entry = {key: getattr(backbone, key) for key in ("name", "kwargs", "weights", "license")}
    return {
        "format": FORMAT,
        "backbone": entry | {"seed": seed, "sha256": None},
        "interpolate": None,
        "frozen_depth": 0,
        "gate": False,
        "adapter": None,
        "heads": {},
    } | parts


def fresh(recipe: Model, heads: Heads, seed: int) -> TubeViT:
    """The model that a recipe describes, everything that is not loaded drawn from ``seed``."""
    entry, positions = recipe.backbone, recipe.positions
    kwargs = dict(entry.kwargs) if positions.kind == "backbone" else {**entry.kwargs, "pos_embed": "none"}
    backbone = build(entry.name, kwargs, tuple(recipe.input.size), entry.weights, seed)  # type: ignore[arg-type]
    if entry.fresh_blocks:
        backbone = add_blocks(backbone, entry.fresh_blocks, seed)
    described = describe(
        backbone,
        seed,
        tubes={name: asdict(tube) for name, tube in recipe.tubes.items()},
        interpolate=recipe.interpolate,
        heads={name: list(classes) for name, classes in heads.items()},
        **{key: asdict(getattr(recipe, key)) for key in ("input", "frames", "positions")},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TubeViT.assemble(described, backbone, seed)
    if recipe.inflate:
        inflate(model.tokenizer.tubes, backbone)
    return model


def load_on_meta(source: str | Path) -> TubeViT:
    """The model of a directory, or of a hub id, on the meta device: its config.json is enough."""
    return TubeViT.from_config(config_json.read(local(source)), "meta")


def load_run(run: str | Path, base: str | None = None, placement: str = "device") -> dict[str, TubeViT]:
    """The arms of a run directory by name, in eval mode; those of a sweep share the tensors of one trunk.

    Args:
        base, placement: see :meth:`TubeViT.from_pretrained`.

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
    config = config_json.read(directory)
    adapt = Adapt(**config["adapter"]) if config["adapter"] else adapter.FULL
    model = template.with_arm(config["frozen_depth"], config["gate"], config["heads"], adapt=adapt)
    own, found = model.named_tensors(), read_tensors(directory)
    shared = {name for name, parameter in model.arm.named_parameters() if not parameter.requires_grad}
    arm = {
        name: public_name(f"arm.{name}", model.block_prefix) for name in model.arm.state_dict() if name not in shared
    }
    refuse_misfits(own, found, own.keys() - set(arm.values()) | model.base.keys(), directory)
    kept = model.stored_tensors()  # frozen blocks may wait in a file
    if any(not torch.equal(found[name], kept[name]) for name in found.keys() - set(arm.values())):
        raise UserError(f"{directory} sits on another trunk than the model its run began from now has; load it alone")
    model.arm.load_state_dict({n: found[public] for n, public in arm.items() if public in found}, strict=False)
    model.report = read_report(directory)
    return model.eval()
