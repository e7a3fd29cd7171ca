"""Backbones of open_clip: only the vision tower, which is its own ``VisionTransformer`` or a timm model.

open_clip is imported when one of its models is used, because this takes a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scaleup.backbones import timm, weights
from scaleup.backbones.backbone import STAGES, Backbone, Kwargs, Located, refuse_size
from scaleup.checkpoint import hub
from scaleup.common.errors import UserError, first_line, nearest

STEM = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
TAIL = ("attn_pool", "ln_post")
BESIDE = ("embed_dim", "quick_gelu")  # keys of a configuration outside vision_cfg
NOT_ARCHITECTURE = ("image_size", "patch_dropout", "output_tokens", "timm_model_pretrained", "timm_drop")


class Stem(nn.Module):
    """The part of a tower before its blocks, without ``norm_pre``, which is called when all tokens are together."""

    conv1: Any
    class_embedding: Any
    positional_embedding: Any
    ln_pre: Any
    grid_size: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> tokens (B, 1+N, D), class token first, positions added."""
        patches = self.conv1(x).flatten(2).transpose(1, 2)  # (B, N, D)
        prefix = self.class_embedding.to(patches).expand(x.shape[0], 1, -1)
        return torch.cat([prefix, patches], dim=1) + self.positional_embedding.to(patches)

    def norm_pre(self, x: Tensor) -> Tensor:
        return self.ln_pre(x)

    def position_grid(self) -> Tensor:
        """The position embedding of each patch: (gh, gw, D)."""
        return self.positional_embedding[1:].unflatten(0, self.grid_size)

    def rope_grid(self) -> None:
        """None: these models have no rotary positions."""


class Tail(nn.Module):
    """The part of a tower after its blocks, without the projection to the joint space of images and text."""

    ln_post: Any
    _pool: Any

    @property
    def embed_dim(self) -> int:
        return self.ln_post.normalized_shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 1+N, D) -> pooled features (B, embed_dim)."""
        return self._pool(x)[0]


def names() -> list[str]:
    """Every model of open_clip: ``open_clip:NAME``."""
    import open_clip

    return [f"open_clip:{name}" for name in open_clip.list_models()]


def create(name: str, kwargs: Kwargs, size: tuple[int, int] | None) -> Any:
    """The vision tower of ``NAME`` or ``NAME/TAG`` without projection, at an input size (h, w) or the model's own.

    Args:
        kwargs: changes to open_clip's ``vision_cfg``, ``embed_dim`` and ``quick_gelu``; for a tower that is a timm
            model, changes in timm's words, and those of ``vision_cfg`` that begin with ``timm_``.

    Raises:
        UserError: there is no such model or tag, it cannot be built, it is not plain, or its patches do not divide the
            size.
    """
    entry = _registered(name)
    vision = entry.config["vision_cfg"]
    if vision.get("timm_model_name"):
        return _timm_tower(name, vision, kwargs, size)
    if isinstance(vision["layers"], list):
        raise UserError(f"'open_clip:{name}' is a ModifiedResNet, not a plain ViT: {STAGES}")
    _refuse_unknown_words(name, kwargs)
    words = entry.config | {"quick_gelu": entry.config.get("quick_gelu", False) or entry.quick_gelu} | kwargs
    vision |= {word: value for word, value in kwargs.items() if word not in BESIDE}
    if size is not None and tuple(size) != _pair(vision["image_size"]):
        refuse_size(f"open_clip:{name}", size, _pair(vision["patch_size"]))
    return _tower(name, words, vision | {"image_size": size or vision["image_size"], "patch_dropout": 0.0})


def _tower(name: str, words: Kwargs, vision: Kwargs) -> Any:
    from open_clip.model import _build_vision_tower

    try:
        tower = _build_vision_tower(words["embed_dim"], vision, words["quick_gelu"])
    except Exception as error:  # wrong arguments raise many kinds of errors
        raise _cannot_build(name, vision, error) from error
    if tower.pool_type == "none":
        raise UserError(f"'open_clip:{name}' pools to a sequence, not to one vector; allowed are pool_type tok and avg")
    tower.proj, tower.output_tokens = None, False  # the rest of its forward is split into parts
    return tower


def _timm_tower(name: str, vision: Kwargs, kwargs: Kwargs, size: tuple[int, int] | None) -> Any:
    """The timm model inside open_clip's ``TimmModel``, with its pooling."""
    vision = vision | {key: value for key, value in kwargs.items() if key.startswith("timm_")}
    words = {key: value for key, value in kwargs.items() if not key.startswith("timm_")}
    pool, own_pool = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear") in ("linear", "mlp")
    if not own_pool:
        words["global_pool"] = pool
    if vision.get("timm_drop_path") is not None:
        words["drop_path_rate"] = vision["timm_drop_path"]
    vit = timm.create(vision["timm_model_name"], words, size, f"open_clip:{name}")
    if own_pool and pool:
        try:
            vit.reset_classifier(0, global_pool=pool)
        except AssertionError as error:  # a pooling that this model has no weights for
            raise _cannot_build(name, vision, error) from error
    return vit


def _cannot_build(name: str, vision: Kwargs, error: Exception) -> UserError:
    return UserError(f"open_clip cannot build 'open_clip:{name}' with {vision}: {first_line(error)}")


def take_apart(tower: Any, name: str) -> Backbone:
    """Split a tower into stem, blocks and tail, which share its tensors."""
    entry, license = _registered(name.removeprefix("open_clip:")), "not stated"
    if not hasattr(tower, "transformer"):
        return replace(timm.take_apart(tower, name), mean=entry.mean, std=entry.std, license=license)
    return Backbone(
        name=name,
        stem=timm.part(tower, Stem, STEM),
        blocks=list(tower.transformer.resblocks),
        tail=timm.part(tower, Tail, TAIL),
        source=tower,
        features=tower,
        embed_dim=tower.transformer.width,
        num_heads=tower.transformer.resblocks[0].attn.num_heads,
        num_prefix_tokens=1,
        patch_size=tower.patch_size,
        size=tower.image_size,
        absolute=True,
        rotary=False,
        attn_mask=False,
        block_prefix="transformer.resblocks.",
        mean=entry.mean,
        std=entry.std,
        license=license,
    )


def public(name: str) -> Path:
    """The file of the public weights of ``NAME/TAG``, downloaded or from the cache.

    Raises:
        UserError: no tag is given (the error lists the tags), or the file cannot be downloaded.
    """
    import open_clip

    _registered(name)
    model, _, tag = name.partition("/")
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise UserError(f"'open_clip:{name}' does not name weights; give open_clip:{model}/TAG: {', '.join(tags)}")
    repo, _, file = open_clip.get_pretrained_cfg(model, tag)["hf_hub"].rpartition("/")
    return hub.find(f"{hub.HUB}{repo}", (f"{Path(file).stem}.safetensors", file) if file else hub.OPEN_CLIP)


def arrange(tower: Any, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The vision tower's tensors of a checkpoint, resampled as open_clip does, and the tensors that are left out.

    The checkpoint may have a whole model; its text tower is not read.
    """
    tensors = _within(tensors, "visual.")
    if not hasattr(tower, "transformer"):
        inside, outside = timm.arrange(tower, _within(tensors, "trunk."))
        return inside, outside | {name: tensor for name, tensor in tensors.items() if name.startswith("head.")}
    from open_clip.model import resize_pos_embed

    tensors, other = weights.convert_for_open_clip(tensors)
    positions = {"visual.positional_embedding": tensors["positional_embedding"]}
    resize_pos_embed(positions, SimpleNamespace(visual=tower))
    own = tensors | _within(positions, "visual.")
    return own, other | ({"proj": own.pop("proj")} if "proj" in own else {})


def _within(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names have a prefix, without the prefix; all tensors if no name has it."""
    within = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return within or tensors


def architecture_in(config: Mapping[str, Any], path: Path) -> Located:
    """The backbone of an ``open_clip_config.json``: the most similar registered model, and the changes to it."""
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    try:
        own, fed = _architecture(config["model_cfg"]), config.get("preprocess_cfg", {})
        others = {name: _architecture(open_clip.get_model_config(name)) for name in open_clip.list_models()}
        changes = {name: {k: v for k, v in own.items() if other.get(k) != v} for name, other in others.items()}
        name = min(changes, key=lambda other: (_kind(others[other]) != _kind(own), len(changes[other])))
        size = _pair(config["model_cfg"]["vision_cfg"].get("image_size", 224))
        mean, std = tuple(fed.get("mean", OPENAI_DATASET_MEAN)), tuple(fed.get("std", OPENAI_DATASET_STD))
        return Located(f"open_clip:{name}", changes[name], size=size, mean=mean, std=std)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not in open_clip's layout ({error!r})") from error


def _architecture(config: Mapping[str, Any]) -> Kwargs:
    """The settings that determine a tower's tensors and output; for a timm model, only the settings for timm."""
    from open_clip.model import CLIPVisionCfg

    vision = {k: v for k, v in asdict(CLIPVisionCfg(**config["vision_cfg"])).items() if k not in NOT_ARCHITECTURE}
    if vision["timm_model_name"]:
        return {key: value for key, value in vision.items() if key.startswith("timm_")}
    return vision | {"embed_dim": config["embed_dim"], "quick_gelu": config.get("quick_gelu", False)}


def _kind(architecture: Kwargs) -> type:
    """The type of ``layers``: int for a transformer, list for a residual network, NoneType for a timm model."""
    return type(architecture.get("layers"))


class Registered(NamedTuple):
    """A model that is registered in open_clip. Without a tag of weights, mean and std are those of its first tag."""

    config: dict[str, Any]  # as in open_clip's JSON file
    mean: tuple[float, ...]
    std: tuple[float, ...]
    quick_gelu: bool  # whether the weights were trained with that activation


def _registered(name: str) -> Registered:
    """The registered model ``NAME`` or ``NAME/TAG``; UserError if open_clip does not have it."""
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    model, _, tag = name.partition("/")
    config = open_clip.get_model_config(model) if ":" not in model else None
    if config is None:
        raise UserError(f"unknown open_clip model {model!r}{nearest(model, open_clip.list_models())}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    weights = open_clip.get_pretrained_cfg(model, tag)
    if tag and not weights:
        allowed = ", ".join(tags) or "none"
        raise UserError(f"unknown weights {tag!r} of 'open_clip:{model}'; allowed are {allowed}{nearest(tag, tags)}")
    like = weights or open_clip.get_pretrained_cfg(model, *tags[:1] or [""])
    mean, std = tuple(like.get("mean", OPENAI_DATASET_MEAN)), tuple(like.get("std", OPENAI_DATASET_STD))
    return Registered(config, mean, std, weights.get("quick_gelu", False))


def _refuse_unknown_words(name: str, kwargs: Kwargs) -> None:
    from open_clip.model import CLIPVisionCfg

    if "pos_embed" in kwargs:
        raise UserError(f"'open_clip:{name}' always adds its own positions; choose positions: backbone")
    allowed = [*CLIPVisionCfg.__dataclass_fields__, *BESIDE]
    if unknown := next((word for word in kwargs if word not in allowed), None):
        near = nearest(unknown, allowed)
        raise UserError(f"'open_clip:{name}' has no setting {unknown!r}; allowed are {', '.join(allowed)}{near}")


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
