"""Backbones from timm: any plain ``VisionTransformer``, taken apart without changing a number it computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from scaleup.backbones import Backbone
from scaleup.errors import UserError, nearest


class Stem(VisionTransformer):
    """What a ViT does before its blocks, short of ``norm_pre``, which is due when all tokens are together."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x (B, 3, H, W) -> tokens (B, P+N, D), prefix tokens first, positions added."""
        return self._pos_embed(self.patch_embed(x))

    def position_grid(self) -> Tensor:
        """The position embedding of each patch: (gh, gw, D); zeros where the model has none."""
        rows, columns = self.patch_embed.grid_size
        weight = self.patch_embed.proj.weight
        shape = (rows, columns) if self.dynamic_img_size else (rows * columns,)
        tokens = self._pos_embed(weight.new_zeros(1, *shape, len(weight)))  # 0 + position: exact
        return tokens[0, self.num_prefix_tokens :].unflatten(0, (rows, columns))


class Tail(VisionTransformer):
    """What a ViT does after its blocks: norm and pool."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x (B, P+N, D) -> pooled features (B, D)."""
        return self.forward_head(self.norm(x), pre_logits=True)


def create(name: str, kwargs: dict[str, Any], size: tuple[int, int] | None, pretrained: bool = False) -> Any:
    """A timm model without classifier, at an input size (h, w) of its own or of the caller's."""
    if "hf-hub:" not in name and not timm.is_model(name.split(".")[0]):
        raise UserError(f"unknown timm model {name!r}{nearest(name, timm.list_models('*vit*'))}")
    kwargs = {**kwargs, "num_classes": 0} | ({"img_size": tuple(size)} if size else {})
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as error:  # wrong words in kwargs raise anything, and so do a network and a cache
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not pretrained or isinstance(error, TypeError | AssertionError):
            raise UserError(f"timm cannot build {name!r} with {kwargs}: {reason}") from error
        raise UserError(
            f"the weights of {name!r} could not be had ({reason}); give a local file with --weights, or --random-init"
        ) from error


def architecture_in(config: dict[str, Any], path: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A ``config.json`` in timm's own layout -> timm's name, the changes to it, what it is fed and its license."""
    try:
        given, kwargs = dict(config["pretrained_cfg"]), dict(config.get("model_args") or {})
        if "global_pool" in config:
            kwargs.setdefault("global_pool", config["global_pool"])
        for key in ("num_classes", "img_size"):
            kwargs.pop(key, None)
        fed = {key: given[key] for key in ("mean", "std", "license") if key in given}
        return str(config["architecture"]), kwargs, fed | {"size": tuple(given["input_size"][1:])}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / 'config.json'} is not in timm's layout ({error!r})") from error


def take_apart(vit: Any, name: str) -> Backbone:
    """Split a plain ViT into stem, blocks and tail, which share its tensors."""
    plain = isinstance(vit, VisionTransformer) and {type(block) for block in vit.blocks} == {Block}
    if not plain:
        raise UserError(f"{name!r} is a {type(vit).__name__}, not a plain ViT; allowed is timm's VisionTransformer")
    patch_embed, cfg = vit.patch_embed, vit.pretrained_cfg
    return Backbone(
        name=name,
        stem=_part(vit, Stem, ("patch_embed", "pos_drop", "patch_drop", "norm_pre"), parameters=True),
        blocks=list(vit.blocks),
        tail=_part(vit, Tail, ("norm", "attn_pool", "fc_norm", "head_drop", "head"), parameters=False),
        source=vit,
        embed_dim=vit.embed_dim,
        num_heads=vit.blocks[0].attn.num_heads,
        num_prefix_tokens=vit.num_prefix_tokens,
        patch_size=tuple(patch_embed.patch_size),
        size=tuple(patch_embed.img_size),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        license=cfg.get("license") or "not stated",
    )


def _part(vit: Any, kind: type[nn.Module], modules: tuple[str, ...], parameters: bool) -> nn.Module:
    part = copy.copy(vit)
    part.__class__ = kind
    part._modules = {name: module for name, module in vit._modules.items() if name in modules}
    part._parameters = dict(vit._parameters) if parameters else {}
    return part


def load_weights(vit: Any, tensors: dict[str, Tensor], origin: str | Path) -> dict[str, Tensor]:
    """Give a model (on the meta device) its tensors without a copy; returns those left out.

    A classifier is left out, and position embeddings where the model is built without.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    if "pos_embed" in vit.state_dict():
        try:
            tensors = checkpoint_filter_fn(tensors, vit)  # resamples position embeddings to the input size
        except Exception as error:  # timm takes shapes for granted
            raise UserError(f"{origin} does not hold the weights of this model ({error})") from error
    own = vit.state_dict()
    names = ("head.", "head_dist.") if "pos_embed" in own else ("head.", "head_dist.", "pos_embed")
    left = {name: tensor for name, tensor in tensors.items() if name.startswith(names)}
    given = {name: tensor for name, tensor in tensors.items() if name not in left}
    faults = [f"missing {name}" for name in own.keys() - given.keys()]
    faults += [f"unexpected {name}" for name in given.keys() - own.keys()]
    faults += [
        f"{name} is {tuple(given[name].shape)} where {tuple(own[name].shape)} belongs"
        for name in own.keys() & given.keys()
        if own[name].shape != given[name].shape
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:6])
        raise UserError(f"{origin} does not hold the weights of this model: {shown} ({len(faults)} differences in all)")
    vit.load_state_dict({name: tensor.float() for name, tensor in given.items()}, assign=True)
    return left


def architecture_of(tensors: dict[str, Tensor], names: list[str]) -> str | None:
    """The first of ``names`` whose tensors have the very names and shapes of ``tensors`` (classifier apart)."""
    shapes = {name: tensor.shape for name, tensor in tensors.items() if not name.startswith("head")}
    for name in names:
        with torch.device("meta"):
            own = timm.create_model(name, num_classes=0).state_dict()
        if {key: tensor.shape for key, tensor in own.items()} == shapes:
            return name
    return None
