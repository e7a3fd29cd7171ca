"""What a step copies to the device: the batch, and nothing that the step before had copied."""

import pytest
import torch
from pretended import gpu, gpu_device

from scaleup.backbones.build import build
from scaleup.config import schema
from scaleup.model.build import describe
from scaleup.model.tokenizer import KINDS
from scaleup.model.tubevit import TubeViT

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
TUBE = schema.Tube([8, 4, 4], [8, 8, 8], fold=[2, 1, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_positions_places_and_means_are_copied_once(kind: str) -> None:
    backbone = build("vit_b", SMALL if kind == "backbone" else SMALL | {"pos_embed": "none"}, (32, 32), None)
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
    model = TubeViT.assemble(config, backbone).eval()
    with gpu() as events, torch.no_grad():
        model.place(gpu_device())
        for shape in ((2, 3, 16, 32, 32), (2, 3, 32, 32)):
            pixels = torch.zeros(shape, dtype=torch.uint8).to(gpu_device())
            for _ in range(2):
                events.take()
                model(model.preprocess(pixels))
            assert not events.take()
