"""A model as a directory: our own, a PEFT adapter, or the image model alone in timm's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

from scaleup.backbones.backbone import resolve
from scaleup.backbones.timm import create
from scaleup.checkpoint.model_directory import ADAPTER_PREFIX, ADAPTER_WEIGHTS
from scaleup.common import tensors
from scaleup.common.files import make_readable
from scaleup.errors import UserError
from scaleup.model import adapter, pretrained
from scaleup.model.build import load
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.parity import medians, parity


def write_own(
    model: TubeViT, source: str | Path, to: str, out: Path, base: str | None, merge: bool
) -> tuple[float, float]:
    """Write ``source``, of which ``model`` was read; returns what :func:`parity` says of what was written."""
    kept = merge_adapter(load(source, base)) if merge else model
    if to == "delta" and not kept.base:
        kept.base = pretrained.base_of(kept.config, base)
    kept.save_pretrained(out, to, overwrite=True)
    del kept
    return parity(model, load(out, base), relative=merge)


def merge_adapter(model: TubeViT) -> TubeViT:
    """The model itself, its adapter folded into the weights of its blocks."""
    if model.config.adapter is None:
        raise UserError("this model has no adapter to merge; leave out --merge")
    adapter.merge(model.arm.blocks)
    model.config.adapter = None
    return model


def write_adapter(model: TubeViT, source: str | Path, out: Path, base: str | None) -> tuple[float, float]:
    """Write what ``peft.PeftModel.from_pretrained`` puts on the backbone; tubes, gate and heads are not in it.

    Returns:
        What :func:`parity` says of the model with the adapter that was written in the place of its own.

    Raises:
        UserError: the model has no adapter.
    """
    if model.config.adapter is None:
        raise UserError(
            "a PEFT directory holds an adapter, and this model has none; allowed are arms that trained with arm.adapt "
            f"{', '.join(adapter.KINDS)}"
        )
    adapter.write(out, model.arm.blocks, model.block_prefix, model.config.adapter, _own(model))
    other = load(source, base)
    found = tensors.read(out / ADAPTER_WEIGHTS)[0]
    with torch.no_grad():
        for name, tensor in _own(other).items():
            tensor.copy_(found[name])
    return parity(model, other)


def _own(model: TubeViT) -> dict[str, torch.Tensor]:
    """The tensors of the adapter."""
    named = model.named_tensors().items()
    return {name: tensor for name, tensor in named if name.startswith(ADAPTER_PREFIX)}


def save(
    directory: Path,
    name: str,
    kwargs: Mapping[str, Any],
    size: tuple[int, int],
    tensors: Mapping[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write ``config.json`` and ``model.safetensors`` of timm's model ``name``, without classifier.

    Args:
        kwargs: changes to the architecture, in timm's words.
        size: of the input, (h, w).
        tensors: by timm's names; what the model has no place for is left out.
    """
    vit = create(name, dict(kwargs), size)
    own = vit.state_dict()
    vit.load_state_dict({key: tensor for key, tensor in tensors.items() if key in own})  # strict: nothing is missing
    fed = {"input_size": (3, *size), "mean": tuple(mean), "std": tuple(std)}
    save_for_hf(vit, str(directory), {"pretrained_cfg": fed}, safe_serialization=True)
    make_readable(directory / "model.safetensors")  # safetensors writes for the owner alone


def features(directory: Path, images: Tensor) -> Tensor:
    """Pooled features (B, D) that timm gets for images (B, 3, H, W) from a directory that it loads."""
    vit: Any = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    return vit.forward_head(vit.forward_features(images), pre_logits=True)


@torch.inference_mode()
def write_timm(model: TubeViT, directory: Path) -> tuple[float, dict[str, Any]]:
    """Write what ``timm.create_model("local-dir:DIRECTORY")`` loads, and load it.

    Returns:
        The largest difference of the pooled features of an image from the model's; and ``{"seconds": {"image"},
        "eager_seconds"}``, what one takes there and in the model.

    Raises:
        UserError: timm has no model that computes the same, and why.
    """
    name = _refuse_what_timm_lacks(model)
    size, input = model.preprocess.size, model.config.input
    kwargs, tensors = model.config.backbone.kwargs, model.named_tensors()
    save(directory, name, kwargs, size, tensors, input.mean, input.std)
    image = normalise(natural_clip(1, size), model.config.input)[:, :, 0]
    differs = (features(directory, image) - model.forward_features(image)).abs().max().item()
    theirs = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    seconds, eager = medians(lambda: theirs(image), lambda: model.forward_features(image))
    return differs, {"seconds": {"image": seconds}, "eager_seconds": {"image": eager}}


def _refuse_what_timm_lacks(model: TubeViT) -> str:
    """timm's name of the architecture."""
    library, _, name = resolve(model.config.backbone.name).partition(":")
    gate, reason = model.arm.gate, None
    if library != "timm":
        reason = f"its backbone is one of {library}"
    elif model.config.adapter:
        reason = "it has an adapter; add --merge"
    elif gate is not None and gate.alpha.any():
        most = gate.alpha.tanh().abs().max().item()
        reason = f"its gate is open (tanh(alpha) = {most:.3f}) and adds z0 to a block's output"
    elif model.config.positions.kind != "backbone":
        reason = f"its positions ({model.config.positions.kind}) are not the backbone's own"
    if reason:
        raise UserError(f"timm's layout cannot hold this model: {reason}")
    return name
