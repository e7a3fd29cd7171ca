"""A small model with one folded tube, for tests of where its tensors are."""

from __future__ import annotations

import torch

from scaleup.backbones.build import build
from scaleup.config import schema
from scaleup.model.build import describe
from scaleup.model.tubevit import TubeViT

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
TUBE = schema.Tube([8, 4, 4], [8, 8, 8], fold=[2, 1, 1])
SHAPES = ((2, 3, 16, 32, 32), (2, 3, 32, 32))  # of its videos and images


def small_model(kind: str, on_meta: bool = False, frozen_depth: int = 1, **kwargs: int) -> TubeViT:
    """A model with positions of a kind, in eval mode, random or on the meta device."""
    own = SMALL | kwargs | ({} if kind == "backbone" else {"pos_embed": "none"})
    backbone = build("vit_b", own, (32, 32), "meta" if on_meta else None)
    config = describe(
        backbone,
        0,
        input=schema.Input(16, [32, 32]),
        frames=schema.Frames(16),
        tubes={"one": TUBE},
        positions=schema.Positions(kind),
        heads={"motion": ["left", "right"]},
        frozen_depth=frozen_depth,
        gate=True,
    )
    with torch.device("meta" if on_meta else "cpu"):
        return TubeViT.assemble(config, backbone).eval()
