"""What a step copies to the device: the batch, and nothing that the step before had copied."""

import pytest
import torch
from pretended import gpu, gpu_device
from support.small import SHAPES, small_model

from scaleup.model.tokenizer import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_positions_places_and_means_are_copied_once(kind: str) -> None:
    model = small_model(kind)
    with gpu() as events, torch.no_grad():
        model.place(gpu_device())
        for shape in SHAPES:
            pixels = torch.zeros(shape, dtype=torch.uint8).to(gpu_device())
            for _ in range(2):
                events.take()
                model(model.preprocess(pixels))
            assert not events.take()
