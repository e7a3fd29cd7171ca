"""A model computes on the device of its parameters: on the meta device any tensor made elsewhere would be refused."""

import pytest
import torch
from support.small import SHAPES, small_model

from scaleup.model.tokenizer import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_behind_on_the_cpu(kind):
    model = small_model(kind, on_meta=True)
    for shape in SHAPES:
        pixels = torch.empty(shape, dtype=torch.uint8, device="meta")
        assert model(model.preprocess(pixels)).device.type == "meta"
