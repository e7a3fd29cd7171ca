"""Backbones from timm: any plain ``VisionTransformer`` or ``Eva``, taken apart without changing what it computes."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models import vision_transformer as vit_blocks
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scaleup.backbones import Backbone, rotary
from scaleup.errors import UserError, nearest

MASKED = (vit_blocks.Block, vit_blocks.ParallelScalingBlock, vit_blocks.ParallelThingsBlock, EvaBlock)
BLOCKS = (*MASKED, vit_blocks.DiffParallelScalingBlock)  # the last takes no bias of its attention
STEM = ("patch_embed", "pos_drop", "patch_drop", "norm_pre", "rope")
TAIL = ("norm", "attn_pool", "fc_norm", "head_drop", "head", "head_dist")

BIAS_TABLE = "its attention adds a table with an entry for each pair of patches, and a tube has no entry there"
POST_NORM = "its blocks normalise what they add (post-norm), so tubes and gate would meet tokens of another scale"
STAGES = "its blocks work on a grid that shrinks from stage to stage, and a tube has no place in a grid"
NOT_PLAIN = {  # class of the model or of its blocks -> why tubes cannot join
    "Beit": BIAS_TABLE,
    "VisionTransformerRelPos": BIAS_TABLE,
    "ResPostBlock": POST_NORM,
    "EvaBlockPostNorm": POST_NORM,
    "SwinTransformer": "its windows are cut from a grid of patches, and a tube has no place in a grid",
    "SwinTransformerV2": "its windows are cut from a grid of patches, and a tube has no place in a grid",
    "SwinTransformerV2Cr": "its windows are cut from a grid of patches, and a tube has no place in a grid",
    "VisionTransformerSAM": "its attention works on windows of a grid, with a table for each pair of patches",
    "Hiera": STAGES,
    "HieraDet": STAGES,
    "MultiScaleVit": STAGES,
    "NaFlexVit": "it takes patches cut beforehand, in sequences of any length, not images",
    "HybridEmbed": "its patches come from a convolutional network",
    "RotaryEmbeddingMRope": "its rotary angles hold a time of their own",
}
CONVERTED: dict[str, dict[str, Any]] = {  # part of a name -> how timm converts its files, where not as all others
    "deit": {"adapt_layer_scale": True},
    "flexivit": {"interpolation": "bilinear", "antialias": False},
    "base_patch16_radio_v3": {"interpolation": "bilinear", "antialias": False, "align_corners": True},
    "huge_patch16_radio_v3": {"interpolation": "bilinear", "antialias": False, "align_corners": True},
    "radio": {"interpolation": "bilinear", "antialias": False},
}


class Stem(nn.Module):
    """What a ViT does before its blocks, short of ``norm_pre``, which is due when all tokens are together."""

    patch_embed: Any
    rope: Any
    num_prefix_tokens: int
    dynamic_img_size: bool
    _pos_embed: Any

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> tokens (B, P+N, D), prefix tokens first, positions added."""
        return self._positioned(self.patch_embed(x))[0]

    def position_grid(self) -> Tensor:
        """The position embedding of each patch: (gh, gw, D); zeros where the model adds none."""
        tokens = self._positioned(self._no_patches())[0]  # 0 + position: exact
        return tokens[0, self.num_prefix_tokens :].unflatten(0, self.patch_embed.grid_size)

    def rope_grid(self) -> Tensor | None:
        """Rotary sines and cosines of each patch: (..., gh * gw, 2d); None where the model does not rotate."""
        return self._positioned(self._no_patches())[1]

    def rope_at(self, patches: Tensor) -> Tensor:
        """The same at places (N, 2) counted in patches: (..., N, 2d)."""
        return rotary.turn(self.rope, patches, self.patch_embed.grid_size)

    def _positioned(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        made = self._pos_embed(patches)  # a pair where the family may rotate
        return made if isinstance(made, tuple) else (made, None)

    def _no_patches(self) -> Tensor:
        rows, columns = self.patch_embed.grid_size
        weight = self.patch_embed.proj.weight
        shape = (rows, columns) if self.dynamic_img_size else (rows * columns,)
        return weight.new_zeros(1, *shape, len(weight))


class Tail(nn.Module):
    """What a ViT does after its blocks: norm and pool."""

    norm: Any
    forward_head: Any

    def forward(self, x: Tensor) -> Tensor:
        """x (B, P+N, D) -> pooled features (B, D)."""
        return self.forward_head(self.norm(x), pre_logits=True)


def create(name: str, kwargs: dict[str, Any], size: tuple[int, int] | None, pretrained: bool = False) -> Any:
    """A timm model without classifier, at an input size (h, w) of its own or of the caller's."""
    if "hf-hub:" not in name and not timm.is_model(name.split(".")[0]):
        raise UserError(f"unknown timm model {name!r}{nearest(name, timm.list_models('*vit*'))}")
    kwargs = {**kwargs, "num_classes": 0} | ({"img_size": tuple(size)} if size else {})
    try:
        return timm.create_model(name, pretrained=pretrained, **_in_family_words(name, kwargs))
    except Exception as error:  # wrong words in kwargs raise anything, and so do a network and a cache
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not pretrained or isinstance(error, TypeError | AssertionError):
            raise UserError(f"timm cannot build {name!r} with {kwargs}: {reason}") from error
        raise UserError(
            f"the weights of {name!r} could not be had ({reason}); give a local file with --weights, or --random-init"
        ) from error


def _in_family_words(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``pos_embed: none`` is said in two ways."""
    if (
        kwargs.get("pos_embed") == "none"
        and timm.is_model(name)
        and timm.model_entrypoint(name).__module__ == Eva.__module__
    ):
        return {key: value for key, value in kwargs.items() if key != "pos_embed"} | {"use_abs_pos_emb": False}
    return kwargs


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
    """Split a plain ViT into stem, blocks and tail, which share its tensors.

    Raises:
        UserError: it is not plain; with the reason.
    """
    _refuse_unless_plain(vit, name)
    patch_embed, cfg = vit.patch_embed, vit.pretrained_cfg
    return Backbone(
        name=name,
        stem=_part(vit, Stem, STEM, parameters=True),
        blocks=list(vit.blocks),
        tail=_part(vit, Tail, TAIL, parameters=False),
        source=vit,
        features=lambda images: vit.forward_head(vit.forward_features(images), pre_logits=True),
        embed_dim=vit.embed_dim,
        num_heads=next(module.num_heads for module in vit.blocks[0].modules() if hasattr(module, "num_heads")),
        num_prefix_tokens=vit.num_prefix_tokens,
        patch_size=tuple(patch_embed.patch_size),
        size=tuple(patch_embed.img_size),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        license=cfg.get("license") or "not stated",
        absolute=vit.pos_embed is not None,
        rotary=getattr(vit, "rope", None) is not None,
        attn_mask=isinstance(vit.blocks[0], MASKED),
    )


def _refuse_unless_plain(vit: Any, name: str) -> None:
    parts = [vit, getattr(vit, "patch_embed", None), getattr(vit, "rope", None), *getattr(vit, "blocks", ())]
    kinds = [type(part).__name__ for part in parts if part is not None]
    if reason := next((NOT_PLAIN[kind] for kind in kinds if kind in NOT_PLAIN), None):
        raise UserError(f"{name!r} is a {kinds[0]}, not a plain ViT: {reason}")
    plain = isinstance(vit, VisionTransformer | Eva) and len(vit.blocks) and type(vit.patch_embed) is PatchEmbed
    if not (plain and all(type(block) in BLOCKS for block in vit.blocks)):
        allowed = "allowed are timm's VisionTransformer and Eva, of blocks alike on one sequence of tokens"
        made_of = f" of {', '.join(sorted(set(kinds[1:])))}" if kinds[1:] else ""
        raise UserError(f"{name!r} is a {kinds[0]}, not a plain ViT{made_of}; {allowed}")


def _part(vit: Any, kind: type[nn.Module], modules: tuple[str, ...], parameters: bool) -> nn.Module:
    """A shallow copy of the model that has some of its modules and all of its own family's methods."""
    part = copy.copy(vit)
    part.__class__ = type(kind.__name__, (kind, type(vit)), {})
    part._modules = {name: module for name, module in vit._modules.items() if name in modules}
    part._parameters = dict(vit._parameters) if parameters else {}
    return part


def load_weights(vit: Any, tensors: dict[str, Tensor], origin: str | Path) -> dict[str, Tensor]:
    """Give a model (on the meta device) its tensors without a copy; returns those left out.

    A classifier is left out, and position embeddings where the model is built without.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    if "pos_embed" in vit.state_dict() or isinstance(vit, Eva):
        family = sys.modules[next(kind.__module__ for kind in type(vit).__mro__ if kind.__module__.startswith("timm."))]
        try:
            tensors = family.checkpoint_filter_fn(tensors, vit, **_conversion(vit))  # type: ignore[attr-defined]
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
    _fill_buffers(vit)
    return left


def _conversion(vit: Any) -> dict[str, Any]:
    """What timm's conversion of files of other layouts and sizes is told for this model."""
    name = vit.pretrained_cfg["architecture"]
    return next((words for part, words in CONVERTED.items() if part in name), {})


def _fill_buffers(vit: nn.Module) -> None:
    """Compute the buffers that no file holds, such as rotary frequencies, where they are still on the meta device."""
    for module in vit.modules():
        empty = {name: buffer for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta}
        if empty:
            module._buffers.update({name: torch.empty_like(buffer, device="cpu") for name, buffer in empty.items()})
            module.init_non_persistent_buffers()  # type: ignore[operator]


def architecture_of(tensors: dict[str, Tensor], names: list[str]) -> str | None:
    """The first of ``names`` whose tensors have the very names and shapes of ``tensors`` (classifier apart)."""
    shapes = {name: tensor.shape for name, tensor in tensors.items() if not name.startswith("head")}
    for name in names:
        with torch.device("meta"):
            own = timm.create_model(name, num_classes=0).state_dict()
        if {key: tensor.shape for key, tensor in own.items()} == shapes:
            return name
    return None
