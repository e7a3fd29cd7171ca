"""A model computes on the device of its parameters: on the meta device any tensor made elsewhere would be refused."""

import pytest
import torch

from scaleup.backbones.build import build
from scaleup.config import schema
from scaleup.model.build import describe
from scaleup.model.tokenizer import KINDS
from scaleup.model.tubevit import TubeViT

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
TUBE = schema.Tube([8, 4, 4], [8, 8, 8], fold=[2, 1, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_behind_on_the_cpu(kind):
    kwargs = SMALL if kind == "backbone" else SMALL | {"pos_embed": "none"}
    backbone = build("vit_b", kwargs, (32, 32), "meta")
    config = describe(
        backbone,
        0,
        input=schema.Input(16, [32, 32]),
        frames=schema.Frames(16),
        tubes={"one": TUBE},
        positions=schema.Positions(kind),
        heads={"motion": ["left", "right"]},
        frozen_depth=1,
        gate=True,
    )
    with torch.device("meta"):
        model = TubeViT.assemble(config, backbone)
    for shape in ((2, 3, 16, 32, 32), (2, 3, 32, 32)):
        pixels = torch.empty(shape, dtype=torch.uint8, device="meta")
        assert model(model.preprocess(pixels)).device.type == "meta"
