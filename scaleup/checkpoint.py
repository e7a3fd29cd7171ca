"""Model directories: ``config.json``, ``delta.safetensors`` or ``model.safetensors``, ``report.json``, ``README.md``,
and ``adapter/``, a PEFT directory, where the late blocks have an adapter.

A *full* directory holds every tensor. A *delta* holds what differs from the public backbone (tubes, gate, trained
blocks, norm, heads) and the sha256 of the base weights that it needs. Backbone tensors carry the library's own names.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from scaleup import adapter, tensors
from scaleup import config as config_file
from scaleup.adapter import Adapt
from scaleup.backbones import Backbone
from scaleup.backbones.build import build
from scaleup.backbones.weights import HUB, find, is_path
from scaleup.card import card
from scaleup.errors import UserError, nearest
from scaleup.files import new_directory
from scaleup.model import TubeViT, assemble
from scaleup.placement import BlockFile
from scaleup.recipe import Trunk

FULL, DELTA = "model.safetensors", "delta.safetensors"


def public_name(name: str, model: TubeViT) -> str:
    """A tensor's name on disk: the library's own where it has one, ``blocks.26.x`` for ``arm.blocks.26.x``."""
    for prefix in ("trunk.", "arm.", "tokenizer.", "stem.", "tail."):
        name = name.removeprefix(prefix)
    if not name.startswith("blocks."):
        return name
    return adapter.public_name(model.block_prefix + name.removeprefix("blocks."))


def named_tensors(model: TubeViT) -> dict[str, Tensor]:
    """All tensors of a model under their names on disk."""
    return {public_name(name, model): tensor for name, tensor in model.state_dict().items()}


def public_blocks(model: TubeViT) -> set[str]:
    """Tensors of the frozen blocks (``blocks.3.attn.qkv.weight``) that are the public backbone's."""
    assert model.trunk is not None
    held = {f"blocks.{name}": t for name, t in model.trunk.blocks.state_dict().items() if not t.is_meta}
    digests = tensors.hashes(held) if model.base else {}
    return {name for name, digest in digests.items() if digest == model.base.get(public_name(name, model))}


def _to_store(model: TubeViT) -> dict[str, Tensor]:
    """All tensors under their names on disk, but those of frozen blocks that the public backbone alone still has."""
    state, trunk = model.state_dict(), model.trunk
    for name in [] if trunk is None else [name for name in state if name.startswith("trunk.blocks.")]:
        if trunk.precision != "float32" or state[name].is_meta:  # type: ignore[union-attr]
            original = trunk.originals.get(name.removeprefix("trunk."))  # type: ignore[union-attr]
            if original is None and not model.base:  # they wait in a full directory
                index, own_name = name.removeprefix("trunk.blocks.").split(".", 1)
                original = trunk.file.read(int(index), own_name)  # type: ignore[union-attr]
            state |= {name: original} if original is not None else {}
            if original is None:
                del state[name]
    return {public_name(name, model): tensor.detach().cpu().contiguous() for name, tensor in state.items()}


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
    content = _to_store(model)
    if kind == "full" and (lost := model.base.keys() - content.keys()):
        raise UserError(
            f"{len(lost)} tensors of the frozen blocks are in no float32 memory, so {out} cannot be written in full; "
            "write a delta, and export that with --to full"
        )
    adapted = {name: content.pop(name) for name in list(content) if name.startswith(adapter.PREFIX)}
    if kind == "delta":
        if not model.base:
            raise UserError(
                "this model does not know a backbone by its sha256, so it has no delta; allowed is --to full"
            )
        digests = tensors.hashes({name: content[name] for name in model.base if name in content})
        content = {name: tensor for name, tensor in content.items() if digests.get(name) != model.base.get(name, "")}
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
        (directory / name).chmod(0o644)  # safetensors writes for the owner alone
    return Path(out)


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
    own, found = named_tensors(model), _read(directory, waiting)
    optional = set() if whole else {name for name in own if name in model.base}
    _refuse_misfits(own, found, optional, directory)
    _assign(model, {name: tensor for name, tensor in found.items() if name not in waiting})
    model.report = _read_report(directory / "report.json")
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
    own, found = named_tensors(model), _read(directory)
    shared = {name for name, parameter in model.arm.named_parameters() if not parameter.requires_grad}
    arm = {name: public_name(f"arm.{name}", model) for name in model.arm.state_dict() if name not in shared}
    _refuse_misfits(own, found, own.keys() - set(arm.values()) | model.base.keys(), directory)
    kept = _to_store(model)  # frozen blocks may wait in a file
    if any(not torch.equal(found[name], kept[name]) for name in found.keys() - set(arm.values())):
        raise UserError(f"{directory} sits on another trunk than the model its run began from now has; load it alone")
    model.arm.load_state_dict({n: found[public] for n, public in arm.items() if public in found}, strict=False)
    return model.eval()


def _read(directory: Path, waiting: Collection[str] = ()) -> dict[str, Tensor]:
    """All tensors of a model directory, those of its adapter too; those of ``waiting`` mapped, not read."""
    path = next((directory / name for name in (FULL, DELTA) if (directory / name).exists()), None)
    if path is None:
        raise UserError(f"{directory} has a config.json but neither {FULL} nor {DELTA}")
    beside = directory / adapter.DIRECTORY / adapter.WEIGHTS
    file = tensors.File(path)
    wanted = [name for name in file.mapped if name not in waiting]
    found = file.mapped | dict(zip(wanted, file.copies(wanted), strict=True))
    return found | (tensors.read(beside)[0] if beside.exists() else {})


def _read_report(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from error


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
        raise UserError("this model does not know a backbone by its sha256, so it has no delta; allowed is --to full")
    return _base(config, _backbone(config, base or config["backbone"]["weights"]))


def _backbone(config: dict[str, Any], weights: str | None, on_disk: int = 0) -> Backbone:
    entry = config["backbone"]
    if weights is not None and is_path(weights) and not Path(weights).is_file():
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


def local(source: str | Path) -> Path:
    """The model directory that ``source`` names, fetched where that is a hub id; UserError if there is none."""
    directory = Path(source)
    if directory.is_dir():
        return directory
    if str(source).count("/") != 1 or directory.exists():
        raise UserError(f"{source} is no model directory; allowed are a directory and a hub id (owner/name)")
    place = f"{HUB}{source}"
    try:
        directory = find(place, ["config.json"]).parent
        find(place, [FULL, DELTA])
        if config_file.read(directory)["adapter"]:
            for name in (adapter.CONFIG, adapter.WEIGHTS):
                find(place, [f"{adapter.DIRECTORY}/{name}"])
        return directory
    except UserError as error:
        raise UserError(f"there is no directory {source}; as a hub id, {error}") from error


def _refuse_misfits(own: Mapping[str, Tensor], found: Mapping[str, Tensor], optional: set[str], path: Path) -> None:
    faults = [f"unexpected {name}{nearest(name, own, 1)}" for name in sorted(found.keys() - own.keys())]
    faults += [f"missing {name}" for name in sorted(own.keys() - found.keys() - optional)]
    faults += [
        f"{name} is {_kind(found[name])} where {_kind(own[name])} belongs"
        for name in sorted(own.keys() & found.keys())
        if _kind(own[name]) != _kind(found[name])
    ]
    if faults:
        raise UserError(f"{path} does not fit its config.json: {'; '.join(faults[:6])} ({len(faults)} faults in all)")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _assign(model: TubeViT, found: Mapping[str, Tensor]) -> None:
    """Put tensors into a model without a copy, parameters staying frozen or trainable as they were."""
    names = {name: public_name(name, model) for name in model.state_dict()}
    state = {name: found[public] for name, public in names.items() if public in found}
    model.load_state_dict(state, strict=False, assign=True)
    if model.trunk is not None:
        model.trunk.requires_grad_(False)
