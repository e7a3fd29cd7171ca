from pathlib import Path

import pytest
import torch
from families import HEADS, Stored, images, scattered, videos
from safetensors.torch import load_file

from scaleup import checkpoint, tensors
from scaleup.model import TubeViT


def trained(stored: Stored) -> TubeViT:
    """A model that differs from its base everywhere above the gate."""
    model = stored.model().with_arm(1, True, HEADS).eval()
    scattered(model.arm)
    return model


@torch.no_grad()
def assert_same(found: TubeViT, wanted: TubeViT, size: tuple[int, int]) -> None:
    assert tensors.hashes(found.state_dict()) == tensors.hashes(wanted.state_dict())
    assert found.config == wanted.config
    for x in (images(size), videos(size)):
        assert torch.equal(found(x), wanted(x))


@pytest.mark.parametrize("kind", ["delta", "full"])
def test_a_model_comes_back_bit_for_bit(stored: Stored, kind: str, tmp_path: Path) -> None:
    model = trained(stored)
    found = checkpoint.load(checkpoint.save(model, tmp_path / "saved", kind))
    assert_same(found, model, stored.size)
    other = "full" if kind == "delta" else "delta"
    if kind == "delta":
        assert_same(checkpoint.load(checkpoint.save(found, tmp_path / other, other)), model, stored.size)


def test_a_delta_holds_no_frozen_tensor_and_a_full_model_all(stored: Stored, tmp_path: Path) -> None:
    model, base = trained(stored), stored.backbone()
    checkpoint.save(model, tmp_path / "delta", "delta")
    checkpoint.save(model, tmp_path / "full", "full")
    delta, full = (
        load_file(tmp_path / kind / f"{name}.safetensors") for kind, name in (("delta", "delta"), ("full", "model"))
    )
    public = base.state_dict()
    frozen = {name for name in public if name.startswith((*base.stem.state_dict(), f"{base.block_prefix}0."))}
    assert frozen and not frozen & delta.keys() and public.keys() <= full.keys()
    assert all(torch.equal(full[name], public[name]) for name in frozen)
    assert {name for name in public.keys() - frozen if name not in delta} == set()
