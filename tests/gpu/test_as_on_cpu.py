"""A GPU computes what the CPU computes, within the rounding of its precision."""

import pytest
import torch
from support.small import SHAPES, small_model
from torch import Tensor

from scaleup.common.distributed import World
from scaleup.config.schema import Trunk
from scaleup.model.build import prepare_trunks
from scaleup.model.kernels import set_products
from scaleup.model.tokenizer import KINDS
from scaleup.model.trunk import drift
from scaleup.model.tubevit import TubeViT

CUDA = torch.device("cuda", 0)


def pixels(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def features(model: TubeViT, shape: tuple[int, ...]) -> Tensor:
    there = pixels(shape).to(next(model.parameters()).device)
    return model.forward_features(model.preprocess(there)).cpu()


@pytest.mark.parametrize("shape", SHAPES, ids=["video", "image"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_positions(kind: str, shape: tuple[int, ...]) -> None:
    set_products(CUDA, tf32=False, deterministic=False)
    model = small_model(kind)
    here = features(model, shape)
    assert drift(here, features(model.place(CUDA), shape)) < 1e-5


@pytest.mark.parametrize(("precision", "far"), [("bfloat16", 0.03), ("float16", 0.005), ("int8", 0.04)])
def test_low_precision_moves_h_a_little(precision: str, far: float) -> None:
    model = small_model("cosine", frozen_depth=2)
    prepared = prepare_trunks([model], Trunk(precision), World(0, 1, CUDA))
    assert prepared is not None and 0 < prepared.drift[2] < far


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_blocks_on_the_host_give_the_bits_of_blocks_on_the_device(precision: str) -> None:
    def tokens(placement: str) -> Tensor:
        torch.manual_seed(0)
        model = small_model("cosine", frozen_depth=8, depth=8)
        prepare_trunks([model], Trunk(precision, placement), World(0, 1, CUDA))
        x = model.preprocess(pixels(SHAPES[0]).to(CUDA))
        for _ in range(3):  # places are filled again and again
            h = model.arm_inputs(x).h
        return h.cpu()

    assert torch.equal(tokens("host"), tokens("device"))


def test_a_closed_gate_changes_nothing() -> None:
    model = small_model("cosine").place(CUDA)
    x = model.preprocess(pixels(SHAPES[0]).to(CUDA))
    with torch.no_grad():
        gated = model.forward_features(x)
        model.arm.gate = None
        assert torch.equal(model.forward_features(x), gated)
