"""Models that begin from an image model otherwise than by a transplant: its patches inflated in time (Table 5), fresh
blocks on top of its own (Table 8)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from scaleup.common.errors import UserError
from scaleup.config import recipe, schema
from scaleup.config.schema import Backbone, Model, Tube
from scaleup.model.build import fresh, load
from scaleup.model.tubevit import TubeViT
from scaleup.training.run_inputs import models_on_meta

HEADS = {"shape": ["disc", "ring"], "motion": ["left", "right", "up"]}
BACKBONES = {
    "timm": Backbone("timm:vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}),
    "open_clip": Backbone("open_clip:ViT-B-16", {"patch_size": 8, "width": 24, "layers": 3, "head_width": 12}),
}
VIDEOS = torch.randn(2, 3, 8, 16, 24)


def described(backbone: Backbone, **parts: Any) -> Model:
    kind = "backbone" if backbone.name.startswith("open_clip") else "cosine"
    return Model(
        backbone=backbone, input=schema.Input(frames=8, size=[16, 24]), positions=schema.Positions(kind), **parts
    )


@pytest.fixture(params=BACKBONES)
def images(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Backbone, TubeViT]:
    """An image model in which no bias is zero, and the backbone that it is for others."""
    entry = BACKBONES[request.param]
    model = fresh(described(entry), {"object": ["cat", "dog"]}, seed=1)
    for parameter in model.parameters():
        parameter.data.add_(
            0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        )
    model.save_pretrained(tmp_path / "images")
    return Backbone(entry.name, entry.kwargs, str(tmp_path / "images")), model


@torch.no_grad()
@pytest.mark.parametrize(("frames", "centre"), [(4, 2), (3, 1), (1, 0)])
def test_an_inflated_tube_reads_the_patches_of_its_central_frame(
    images: tuple[Backbone, TubeViT], frames: int, centre: int
) -> None:
    backbone, source = images
    tubes = {"dense": Tube([frames, 8, 8], [frames, 8, 8])}
    model = fresh(described(backbone, tubes=tubes, inflate=True), HEADS, seed=0)
    names = ("stem.patch_embed.proj", "stem.conv1")
    patch = next(module for name, module in source.tokenizer.named_modules() if name in names)
    read = [
        F.conv2d(VIDEOS[:, :, first + centre], patch.weight, patch.bias, stride=8)  # (B, D, 2, 3)
        for first in range(0, 8 - frames + 1, frames)
    ]
    wanted = torch.cat([each.flatten(2).transpose(1, 2) for each in read], dim=1)  # (B, N, D)
    torch.testing.assert_close(model.tokenizer.tubes(VIDEOS), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"tubes": {}}, "model.inflate is True, but model.tubes is empty"),
        (
            {"tubes": {"dense": Tube([2, 4, 8], [2, 8, 8])}},
            r"'dense' has kernel \[2, 4, 8\] .* allowed are .*\[t, 8, 8\]",
        ),
        ({"tubes": {"dense": Tube([2, 8, 8], [4, 8, 8], fold=[2, 1, 1])}}, r"fold \[2, 1, 1\], and cannot begin"),
        ({"tubes": {"dense": Tube([2, 8, 8], [2, 8, 8])}, "interpolate": [8, 8, 8]}, "shares an interpolated kernel"),
        (
            {"tubes": {"dense": Tube([2, 8, 8], [2, 8, 8], channels=32)}},
            "emits 32 channels, and cannot .* allowed are .* that emit 24 channels",
        ),
    ],
)
def test_a_tube_that_no_patch_fits_is_refused(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fresh(described(BACKBONES["timm"], inflate=True, **parts), HEADS, seed=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "model.inflate=true",
            "model.inflate: True needs the patches of an image model, but model.backbone.weights names no weights",
        ),
        (
            "model.backbone.fresh_blocks=2",
            "model.backbone.fresh_blocks: 2 blocks can only be added to a model with weights",
        ),
    ],
)
def test_a_model_at_random_is_refused(tmp_path: Path, change: str, said: str) -> None:
    (tmp_path / "bare.yaml").write_text("train: {steps: 20}")
    with pytest.raises(UserError, match=said):
        recipe.load(tmp_path / "bare.yaml", [change])
    recipe.load(tmp_path / "bare.yaml", [change, "model.backbone.weights=pretrained"])


@torch.no_grad()
def test_fresh_blocks_are_on_top_of_those_with_weights(images: tuple[Backbone, TubeViT]) -> None:
    backbone, source = images
    backbone.fresh_blocks = 2
    model, again, other = (fresh(described(backbone), HEADS, seed) for seed in (0, 0, 1))
    assert model.depth == source.depth + 2
    own, drawn = model.named_tensors(), again.named_tensors()
    for name, tensor in source.named_tensors().items():
        assert name.startswith("heads.") or torch.equal(own[name], tensor), name
    beyond = [name for name in own.keys() - source.named_tensors().keys() if not name.startswith("heads.")]
    assert len(beyond) == 2 * len(model.blocks[0].state_dict())
    assert all(torch.equal(own[name], drawn[name]) for name in beyond), "drawn from the seed alone"
    matrices = [name for name in beyond if own[name].dim() == 2]
    assert matrices and not any(torch.equal(own[name], other.named_tensors()[name]) for name in matrices)
    first, second = (blocks.state_dict() for blocks in model.blocks[-2:])
    assert not any(torch.equal(first[name], second[name]) for name in first if first[name].dim() == 2)
    x = model.tokenize(VIDEOS)
    for block in model.eval().blocks:
        x = block(x)
    torch.testing.assert_close(model.forward_features(VIDEOS), model.arm.tail(x))


@torch.no_grad()
def test_fresh_blocks_and_inflated_tubes_come_back(images: tuple[Backbone, TubeViT], tmp_path: Path) -> None:
    backbone, _ = images
    backbone.fresh_blocks = 1
    tubes = {"dense": Tube([4, 8, 8], [4, 8, 8])}
    whole = fresh(described(backbone, tubes=tubes, inflate=True), HEADS, seed=0)
    model = whole.with_arm(2, True, HEADS).eval()
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(load(tmp_path / "model")(VIDEOS, "motion"), model(VIDEOS, "motion"))
    with pytest.raises(UserError, match="it has no delta; allowed is --to full"):
        model.save_pretrained(tmp_path / "delta", kind="delta")


def test_blocks_that_share_no_positions_take_no_fresh_ones() -> None:
    kwargs = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    backbone = Backbone("timm:vit_small_patch16_rope_mixed_224", kwargs, fresh_blocks=1)
    with pytest.raises(UserError, match="cannot get fresh blocks: rope.* has an entry for each of its blocks"):
        fresh(Model(backbone=backbone, positions=schema.Positions("backbone")), HEADS, 0)


@pytest.mark.parametrize(("start", "embed_dim", "weights"), [("fresh", 320, None), ("public", 192, "pretrained")])
def test_the_tutorial_starts_fresh_or_from_public_weights(
    start: str, embed_dim: int, weights: str | None, tiny_path: Path
) -> None:
    data = recipe.load(tiny_path).data.train
    sets = {"train.videos": ("videos", "action", "motion"), "train.images": ("images", "object", "shape")}
    changes = [
        f"data.{key}={{shards: {data[name].shards}, heads: {{{head}: {label}}}}}"
        for key, (name, head, label) in (sets | {"valid": sets["train.videos"]}).items()
    ]
    read = recipe.load("tutorial/small", [f"start={start}", *changes])
    assert read.model.backbone.weights == weights
    model = models_on_meta(read, {"model": read.arm})["model"]
    assert model.tokenizer.embed_dim == embed_dim and len(model.blocks) == 12
