"""A timm model that the caller has built, adapted."""

from pathlib import Path

import open_clip
import peft
import pytest
import timm
import torch
import torchvision

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


OTHERS = {
    "a ResNet": (lambda: timm.create_model("resnet18"), "'timm:resnet18' is a ResNet, not a plain ViT"),
    "torchvision's ViT": (
        lambda: torchvision.models.VisionTransformer(32, 16, 1, 1, 8, 8),
        r"'torchvision\.models\.vision_transformer\.VisionTransformer' is .*; allowed are timm's VisionTransformer",
    ),
    "open_clip's": (lambda: open_clip.create_model("RN50"), r"'open_clip\.model\.CLIP' is a CLIP, not a plain ViT"),
    "a layer": (lambda: torch.nn.Linear(2, 2), "'torch.nn.modules.linear.Linear' is a Linear, not a plain ViT"),
    "a name": (lambda: "vit_h", "'builtins.str' is a str, not a plain ViT"),
    "nothing": (lambda: None, "is a NoneType, not a plain ViT"),
    "without a name": (lambda: timm.models.VisionTransformer(32, 8, depth=1, embed_dim=24, num_heads=2), "timm name"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_plain_vit_of_timm_is_refused(kind: str) -> None:
    make, said = OTHERS[kind]
    with pytest.raises(UserError, match=said):
        adapt(make(), TUBES, 1)


def test_a_vit_in_an_adapter_is_refused(vit: torch.nn.Module) -> None:
    with pytest.raises(UserError, match="is a PeftModel, not a plain ViT"):
        adapt(peft.get_peft_model(vit, peft.LoraConfig(target_modules=["qkv"])), TUBES, 1)
