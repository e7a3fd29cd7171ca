"""A timm model that the caller has built, adapted."""

from pathlib import Path

import pytest
import timm
import torch

import scaleup
from scaleup.common.errors import UserError
from scaleup.config.schema import Tube
from scaleup.transplants.adapted_model import adapt

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
KWARGS = {key: value for key, value in SMALL.items() if key != "img_size"}
TUBES = {"long": Tube([4, 4, 4], [4, 16, 16])}
HEADS = {"motion": ["left", "right"]}


@pytest.fixture
def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **SMALL).eval()


def test_images_give_what_the_vit_gives_and_videos_what_is_learnt(vit: torch.nn.Module) -> None:
    model = adapt(vit, TUBES, 2, heads=HEADS, frames=8, frame_stride=4, kwargs=KWARGS)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = vit.forward_head(vit.forward_features(images), pre_logits=True)  # type: ignore[operator]
    assert torch.equal(model.forward_features(images), wanted)
    videos = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    closed = model(videos, "motion")
    assert closed.shape == (2, 2)
    model.arm.gate.alpha.data.fill_(0.5)
    assert not torch.equal(model(videos, "motion"), closed)
    assert {name for name, each in model.named_parameters() if each.requires_grad and name.startswith("trunk")} == set()
    assert model.config.positions.kind == "backbone"


def test_it_comes_back_from_disk(vit: torch.nn.Module, tmp_path: Path) -> None:
    model = adapt(vit, TUBES, 2, "channel", HEADS, 8, frame_stride=4, kwargs=KWARGS)
    again = scaleup.load(model.save_pretrained(tmp_path / "adapted"))
    videos = torch.randn(1, 3, 8, 32, 32)
    assert torch.equal(again(videos), model(videos))


def test_its_frozen_tokens_are_read_by_queries(vit: torch.nn.Module, tmp_path: Path) -> None:
    pool = scaleup.Pool("attentive", queries=2, heads=4, taps=[1])
    model = adapt(vit, TUBES, 3, False, HEADS, 8, frame_stride=4, kwargs=KWARGS, pool=pool)
    videos = torch.randn(1, 3, 8, 32, 32)
    assert model.forward_features(videos).shape == (1, 2 * 24)
    again = scaleup.load(model.save_pretrained(tmp_path / "adapted"))
    assert torch.equal(again(videos), model(videos))
    with pytest.raises(UserError, match="taps 2 is not below frozen_depth, 2"):
        adapt(vit, TUBES, 2, False, HEADS, kwargs=KWARGS, pool=scaleup.Pool("attentive", heads=4, taps=[2]))


def test_changes_that_were_not_named_are_refused(vit: torch.nn.Module) -> None:
    with pytest.raises(UserError, match="is not vit_tiny_patch16_224 with changes"):
        adapt(vit, TUBES, 2, heads=HEADS, kwargs=KWARGS | {"depth": 4})


def test_what_is_no_plain_vit_is_refused() -> None:
    with pytest.raises(UserError, match="not a plain ViT"):
        adapt(timm.create_model("resnet18"), TUBES, 1)
