"""Backbones of timm: any plain ``VisionTransformer`` or ``Eva``, split into parts without changing its output."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3, RotaryEmbeddingMixed, to_2tuple
from timm.models import get_pretrained_cfg
from timm.models.eva import Eva
from torch import Tensor, nn

from scaleup.backbones import weights
from scaleup.backbones.backbone import MASKED, Backbone, Kwargs, Located, refuse_size, refuse_unless_plain
from scaleup.checkpoint import hub
from scaleup.common.errors import UserError, first_line, nearest
from scaleup.common.tensors import constant

STEM = ("patch_embed", "pos_drop", "patch_drop", "norm_pre", "rope")
HAVE_WEIGHT_INIT = ("timm.models.vision_transformer", "timm.models.deit")
TAIL = ("norm", "attn_pool", "fc_norm", "head_drop", "head", "head_dist")
CONVERTED: dict[str, Kwargs] = {  # part of a name -> special arguments of timm's conversion
    "deit": {"adapt_layer_scale": True},
    "flexivit": {"interpolation": "bilinear", "antialias": False},
    "base_patch16_radio_v3": {"interpolation": "bilinear", "antialias": False, "align_corners": True},
    "huge_patch16_radio_v3": {"interpolation": "bilinear", "antialias": False, "align_corners": True},
    "radio": {"interpolation": "bilinear", "antialias": False},
}
# Beginnings of tensor names that are left out if the model has no such tensors.
CLASSIFIERS = ("head.", "head_dist.", "fc.", "classifier.", "cls_classifier.", "distillation_classifier.", "lm_head.")
BESIDE = (*CLASSIFIERS, "pooler.", "decoder", "projector", "predictor", "dino_head.", "ibot_head.", "mask_token")
DISPENSABLE = (*BESIDE, "attn_pool", "pos_embed")


class Stem(nn.Module):
    """The part of a ViT before its blocks, without ``norm_pre``, which is called when all tokens are together."""

    patch_embed: Any
    rope: Any
    num_prefix_tokens: int
    dynamic_img_size: bool
    _pos_embed: Any

    def train(self, mode: bool = True) -> Stem:
        """Keep rotary positions in eval mode, because in train mode timm may change them at random."""
        super().train(mode)
        if getattr(self, "rope", None) is not None:
            self.rope.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> tokens (B, P+N, D), prefix tokens first, positions added."""
        return self._positioned(self.patch_embed(x))[0]

    def position_grid(self) -> Tensor:
        """The position embedding of each patch: (gh, gw, D); zeros if the model adds none."""
        tokens = self._positioned(self._no_patches())[0]  # 0 + position: exact
        return tokens[0, self.num_prefix_tokens :].unflatten(0, self.patch_embed.grid_size)

    def rope_grid(self) -> Tensor | None:
        """Rotary sines and cosines of each patch: (..., gh * gw, 2d); None without rotary positions."""
        return self._positioned(self._no_patches())[1]

    def rope_at(self, patches: Tensor) -> Tensor:
        """The same at places (N, 2) counted in patches: (..., N, 2d)."""
        return turn(self.rope, patches, self.patch_embed.grid_size)

    def _positioned(self, patches: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens = self._pos_embed(patches)  # a pair in the family with rotary positions
        return tokens if isinstance(tokens, tuple) else (tokens, None)

    def _no_patches(self) -> Tensor:
        rows, columns = self.patch_embed.grid_size
        weight = self.patch_embed.proj.weight
        shape = (rows, columns) if self.dynamic_img_size else (rows * columns,)
        return weight.new_zeros(1, *shape, len(weight))


class Tail(nn.Module):
    """The part of a ViT after its blocks: norm and pool."""

    norm: Any
    forward_head: Any

    def forward(self, x: Tensor) -> Tensor:
        """x (B, P+N, D) -> pooled features (B, D)."""
        return self.forward_head(self.norm(x), pre_logits=True)


def names() -> list[str]:
    """Every model of timm: ``timm:NAME``."""
    return [f"timm:{name}" for name in timm.list_models()]


def create(name: str, kwargs: Kwargs, size: tuple[int, int] | None, label: str | None = None) -> Any:
    """A plain timm model without classifier, at the input size (h, w), or at its own size.

    Random weights are scaled by fan-in, because with timm's std of 0.02 a narrow model learns nothing for thousands of
    steps. ``weight_init`` in ``kwargs`` changes this.

    Raises:
        UserError: there is no such model, it cannot be built, it is not plain, or its patches do not divide the size.
    """
    label = label or f"timm:{name}"
    _refuse_unknown(name)
    words = _in_family_words(name, {**kwargs, "num_classes": 0} | ({"img_size": tuple(size)} if size else {}))
    try:
        vit: Any = timm.create_model(name, **words)
    except Exception as error:  # wrong kwargs raise many kinds of errors
        if size and "img_size" in str(error):
            refuse_unless_plain(create(name, kwargs, None, label), label)
        raise UserError(f"timm cannot build {label!r} with {kwargs}: {first_line(error)}") from error
    refuse_unless_plain(vit, label)
    if isinstance(vit, Eva):
        _start_fan_in(vit.blocks)
    if size is not None and tuple(size) != tuple(vit.pretrained_cfg["input_size"][1:]):
        refuse_size(label, size, vit.patch_embed.patch_size)
    return vit


def _refuse_unknown(name: str) -> None:
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UserError(f"unknown timm model {name!r}{nearest(base, timm.list_models())}")
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [known.partition(".")[2] for known in timm.list_models(f"{base}.*", pretrained=True)]
        raise UserError(
            f"unknown weights {tag!r} of the timm model {base!r}; allowed are {', '.join(tags) or 'none'}"
            f"{nearest(tag, tags)}"
        ) from error


def public(name: str) -> Path:
    """The file of the public weights of a timm model, downloaded or from the cache.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    _refuse_unknown(name)
    cfg = get_pretrained_cfg(name)
    if cfg is not None and cfg.hf_hub_id:
        names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else hub.TIMM
        return hub.find(f"{hub.HUB}{cfg.hf_hub_id}", names)
    if cfg is not None and cfg.url:
        return hub.fetch_url(str(cfg.url))
    near = nearest(name, timm.list_pretrained())
    raise UserError(f"timm has no public weights of {name!r}{near}; give others with --weights, or --random-init")


def _in_family_words(name: str, kwargs: Kwargs) -> Kwargs:
    """``kwargs`` in the words of the model's family for ``pos_embed: none`` and for fan-in weights."""
    module = timm.model_entrypoint(name).__module__
    if module in HAVE_WEIGHT_INIT:
        return {"weight_init": "jax", **kwargs}
    if kwargs.get("pos_embed") == "none" and module == Eva.__module__:
        return {key: value for key, value in kwargs.items() if key != "pos_embed"} | {"use_abs_pos_emb": False}
    return kwargs


def _start_fan_in(blocks: nn.Module) -> None:
    """Initialise blocks of Eva as ``weight_init: jax`` initialises ``VisionTransformer``; Eva has no such setting."""
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)


def architecture_in(config: Mapping[str, Any], path: Path) -> Located:
    """The backbone that a ``config.json`` in timm's layout describes."""
    try:
        cfg, kwargs = dict(config["pretrained_cfg"]), dict(config.get("model_args") or {})
        if "global_pool" in config:
            kwargs.setdefault("global_pool", config["global_pool"])
        kwargs.pop("num_classes", None)
        height, width = to_2tuple(kwargs.pop("img_size", cfg["input_size"][1:]))
        kwargs["pretrained_model_args"] = {"img_size": [height, width]}  # timm resamples positions at another size
        mean, std = tuple(cfg.get("mean", ())), tuple(cfg.get("std", ()))
        name, license = f"timm:{config['architecture']}", cfg.get("license")
        return Located(name, kwargs, size=(height, width), mean=mean, std=std, license=license)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / 'config.json'} is not in timm's layout ({error!r})") from error


def take_apart(vit: Any, name: str) -> Backbone:
    """Split a plain ViT into stem, blocks and tail, which share its tensors."""
    _fill_buffers(vit)
    patch_embed, cfg = vit.patch_embed, vit.pretrained_cfg
    return Backbone(
        name=name,
        stem=part(vit, Stem, (*STEM, *vit._parameters)),
        blocks=list(vit.blocks),
        tail=part(vit, Tail, TAIL),
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


def part(model: Any, kind: type[nn.Module], names: tuple[str, ...]) -> Any:
    """A shallow copy of a model with only some of its modules and parameters, but with all methods of its class."""
    copied = copy.copy(model)
    copied.__class__ = type(kind.__name__, (kind, type(model)), {})
    copied._modules = {name: module for name, module in model._modules.items() if name in names}
    copied._parameters = {name: tensor for name, tensor in model._parameters.items() if name in names}
    return copied


def arrange(vit: Any, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors under the model's names and in its sizes, as timm converts them, and the tensors that are left out.

    These are heads and decoders, and also a pool and position embeddings if the model has none.
    """
    own = vit.state_dict()
    tensors, other = weights.convert(tensors, own.keys())
    other |= {name: tensors[name] for name in ("mask_token",) if name in tensors}  # timm would think of DINOv2
    family = sys.modules[next(kind.__module__ for kind in type(vit).__mro__ if kind.__module__.startswith("timm."))]
    architecture = vit.pretrained_cfg["architecture"]
    words: Kwargs = next((words for part, words in CONVERTED.items() if part in architecture), {})
    tensors = family.checkpoint_filter_fn(tensors, vit, **words)  # type: ignore[attr-defined]
    absent = tuple(name for name in DISPENSABLE if not any(key.startswith(name) for key in own))
    left = {name: tensor for name, tensor in tensors.items() if name.startswith(absent)}
    return {name: tensor for name, tensor in tensors.items() if name not in left}, other | left


def _fill_buffers(vit: nn.Module) -> None:
    """Compute buffers that are in no file, such as rotary frequencies, if they are still on the meta device."""
    for module in vit.modules():
        empty = {name: buffer for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta}
        if empty:
            module._buffers.update({name: torch.empty_like(buffer, device="cpu") for name, buffer in empty.items()})
            parameters = module._parameters  # timm computes on the device of these
            module._parameters = {
                name: nn.Parameter(torch.empty_like(t, device="cpu")) for name, t in parameters.items() if t is not None
            }
            module.init_non_persistent_buffers()  # type: ignore[operator]
            module._parameters = parameters


def turn(rope: Any, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sines and cosines of the rotary angles at places between the patches.

    Args:
        rope: timm's RotaryEmbeddingCat, RotaryEmbeddingDinoV3 or RotaryEmbeddingMixed.
        patches: (N, 2) in patches along h, w; the first patch's centre lies at 0.
        grid: (gh, gw) patches of an image.

    Returns:
        (N, 2d) for heads of width d; (depth, heads, N, 2d) if each block has its own frequencies.
    """
    places = _coordinates(rope, patches, grid)  # (N, 2)
    if isinstance(rope, RotaryEmbeddingMixed):
        first, second = rope.freqs.float().unsqueeze(-2)  # (depth, heads, 1, d/2) each
        angles = places[:, :1] * first + places[:, 1:] * second  # (depth, heads, N, d/2)
        return _layout(angles, half=False).to(rope.freqs)
    dino = isinstance(rope, RotaryEmbeddingDinoV3)
    frequencies = 2 * math.pi / rope.periods if dino else rope.bands  # (d/4,)
    return _layout((places[..., None] * frequencies).flatten(1), rope.rotate_half)


def _coordinates(rope: Any, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Places in the units of the frequencies: (N, 2), in the order of their axes."""
    extent = constant(grid, patches.device).to(patches)
    if isinstance(rope, RotaryEmbeddingDinoV3):
        ends = {"separate": extent, "min": extent.min(), "max": extent.max()}[rope.normalize_coords]
        places = 2 * (patches + 0.5 + rope.grid_offset) / ends - 1
    elif isinstance(rope, RotaryEmbeddingCat):
        places = patches + rope.grid_offset
        if rope.ref_feat_shape is not None:
            places = places / extent * constant(tuple(rope.ref_feat_shape), patches.device).to(patches)
    else:
        places = patches
    return places.flip(-1) if rope.grid_indexing == "xy" else places


def _layout(angles: Tensor, half: bool) -> Tensor:
    """Sines then cosines (..., 2d) of angles (..., d/2), each twice: halves repeated, or neighbours."""
    turned = angles.sin(), angles.cos()
    return torch.cat([torch.cat([x, x], -1) if half else x.repeat_interleave(2, -1) for x in turned], -1)
