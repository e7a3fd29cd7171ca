from pathlib import Path

import torch
from families import HEADS, Stored, images, scattered, videos
from safetensors.torch import load_file

from scaleup.checkpoint.model_directory import DELTA, FULL
from scaleup.common import tensors
from scaleup.model.build import load
from scaleup.model.tubevit import TubeViT


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


def test_delta_and_full_model_come_back_bit_for_bit(stored: Stored, tmp_path: Path) -> None:
    model = trained(stored)
    from_delta = load(model.save_pretrained(tmp_path / "delta", "delta"))
    assert_same(from_delta, model, stored.size)
    from_full = load(from_delta.save_pretrained(tmp_path / "full", "full"))
    assert_same(from_full, model, stored.size)
    delta, full = load_file(tmp_path / "delta" / DELTA), load_file(tmp_path / "full" / FULL)
    base = stored.backbone()
    public = base.state_dict()
    frozen = {name for name in public if name.startswith((*base.stem.state_dict(), f"{base.block_prefix}0."))}
    assert frozen and not frozen & delta.keys() and public.keys() <= full.keys()
    assert all(torch.equal(full[name], public[name]) for name in frozen)
    assert public.keys() - frozen <= delta.keys()  # all of the arm has been changed
