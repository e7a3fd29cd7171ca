"""What each kind of positions adds to the tokens of a model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from scaleup.backbones.build import build
from scaleup.config import schema
from scaleup.model.build import fresh
from scaleup.model.tokenizer import KINDS, Learned, Relative, cosine, sample_grid
from scaleup.model.tubes import TubeSpec
from scaleup.model.tubevit import TubeViT

KWARGS = {"patch_size": 8, "embed_dim": 26, "depth": 2, "num_heads": 2}
TUBES = {
    "long": schema.Tube([4, 4, 4], [4, 16, 8], [1, 2, 0]),
    "folded": schema.Tube([2, 6, 4], [4, 8, 16], fold=[2, 1, 1]),
}


def made(kind: str, amplitude: float = 0.5, **kwargs: Any) -> TubeViT:
    backbone = schema.Backbone("timm:vit_tiny_patch16_224", KWARGS | kwargs)
    settings = schema.Model(
        backbone=backbone,
        input=schema.Input(frames=8, size=[24, 40]),
        frames=schema.Frames(stride=4, offset=1),
        tubes=TUBES,
        positions=schema.Positions(kind, amplitude),
    )
    model = fresh(settings, {"label": ["a", "b"]}, 3).eval()
    for tube in model.tokenizer.tubes.values():
        torch.nn.init.normal_(tube.bias)
    return model


def content(model: TubeViT, x: Tensor) -> Tensor:
    """Tokens of a video without any positions but the backbone's own, in one line a part."""
    tokenizer = model.tokenizer
    frames = [tokenizer.stem(x[:, :, t])[:, 1:] for t in (1, 5)]
    prefix = tokenizer.stem(x[:, :, 1])[:, :1]
    return torch.cat([prefix, *frames, *(tube(x) for tube in tokenizer.tubes.values())], dim=1)


VIDEO = torch.randn(2, 3, 8, 24, 40, generator=torch.Generator().manual_seed(0))
FRAME_CENTRES = [(t, h, w) for t in (1, 5) for h in (3.5, 11.5, 19.5) for w in (3.5, 11.5, 19.5, 27.5, 35.5)]
LONG_CENTRES = [(2.5, h, w) for h in (3.5, 19.5) for w in (1.5, 9.5, 17.5, 25.5, 33.5)]
FOLDED_CENTRES = [(t, h, w) for t in (1.5, 5.5) for h in (2.5, 10.5, 18.5) for w in (1.5, 17.5, 33.5)]
CENTRES = torch.tensor(FRAME_CENTRES + LONG_CENTRES + FOLDED_CENTRES)
INDICES = torch.tensor(
    [(t, h, w) for t in (0, 1) for h in range(3) for w in range(5)]
    + [(0, h, w) for h in range(2) for w in range(5)]
    + [(t, h, w) for t in range(2) for h in range(3) for w in range(3)]
)


@torch.no_grad()
def test_cosine_is_at_the_centre_of_what_each_token_covers() -> None:
    model = made("cosine")
    z0, wanted = model.tokenize(VIDEO), content(model, VIDEO)
    wanted[:, 1:] += 0.5 * cosine(CENTRES, 26)
    torch.testing.assert_close(z0, wanted, rtol=0, atol=1e-5)
    image = VIDEO[:, :, 0]
    wanted = model.tokenizer.stem(image)
    wanted[:, 1:] += 0.5 * cosine(CENTRES[:15] * torch.tensor([0, 1, 1]), 26)
    torch.testing.assert_close(model.tokenize(image), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_cosine_without_stride_is_at_each_tokens_index() -> None:
    model = made("cosine_no_stride", 2.0)
    wanted = content(model, VIDEO)
    wanted[:, 1:] += 2 * cosine(INDICES, 26)
    torch.testing.assert_close(model.tokenize(VIDEO), wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_none_adds_nothing() -> None:
    model = made("none")
    torch.testing.assert_close(model.tokenize(VIDEO), content(model, VIDEO), rtol=0, atol=1e-6)
    assert torch.equal(model.tokenize(VIDEO[:, :, 0]), model.tokenizer.stem(VIDEO[:, :, 0]))


@torch.no_grad()
@pytest.mark.parametrize("kwargs", [{}, {"no_embed_class": True, "reg_tokens": 2}, {"dynamic_img_size": True}])
def test_backbone_keeps_images_and_gives_videos_its_grid_and_sines_of_time(kwargs: dict[str, Any]) -> None:
    model = made("backbone", 0.25, **kwargs)
    tokenizer = model.tokenizer
    torch.nn.init.normal_(tokenizer.stem.pos_embed)
    assert torch.equal(model.tokenize(VIDEO[:, :, 2]), tokenizer.stem(VIDEO[:, :, 2]))
    prefix = tokenizer.num_prefix_tokens
    grid = tokenizer.stem.pos_embed[0, -15:].view(3, 5, 26)
    z0 = model.tokenize(VIDEO)
    frames = [tokenizer.stem(VIDEO[:, :, t])[:, prefix:] for t in (1, 5)]
    tubes = torch.cat([tube(VIDEO) for tube in tokenizer.tubes.values()], dim=1)
    tubes = tubes + sample_grid(grid, CENTRES[30:, 1:], (8, 8))
    wanted = torch.cat([*frames, tubes], dim=1) + 0.25 * cosine(CENTRES[:, :1], 26)
    torch.testing.assert_close(z0[:, prefix:], wanted, rtol=0, atol=1e-5)
    assert torch.equal(z0[:, :prefix], tokenizer.stem(VIDEO[:, :, 1])[:, :prefix])


@torch.no_grad()
def test_learned_tables_are_added_and_resampled_at_another_length() -> None:
    model = made("learned")
    tables = model.tokenizer.positions.tables
    table = torch.cat([tables[name].flatten(1).T for name in ("frames", "long", "folded")])
    wanted = content(model, VIDEO)
    wanted[:, 1:] += table
    torch.testing.assert_close(model.tokenize(VIDEO), wanted, rtol=0, atol=1e-6)
    image = model.tokenizer.stem(VIDEO[:, :, 0])
    image[:, 1:] += tables["frames"][:, 0].flatten(1).T
    torch.testing.assert_close(model.tokenize(VIDEO[:, :, 0]), image, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_learned_table_of_another_length_lies_between_its_neighbours_in_time() -> None:
    spec = TubeSpec("tube", (2, 4, 4), (2, 4, 4))
    learned = Learned([spec], (4, 8, 8), 5)
    table = learned.tables["tube"]  # two in time; four lie at -1/4, 1/4, 3/4 and 5/4 of them
    wanted = [
        table[:, 0],
        0.75 * table[:, 0] + 0.25 * table[:, 1],
        0.25 * table[:, 0] + 0.75 * table[:, 1],
        table[:, 1],
    ]
    torch.testing.assert_close(learned(spec, (8, 8, 8)), torch.stack(wanted, 1).flatten(1).T)


def test_relative_positions_only_bias_the_attention() -> None:
    model = made("relative")
    with torch.no_grad():
        torch.testing.assert_close(model.tokenize(VIDEO), content(model, VIDEO), rtol=0, atol=1e-6)
        before = model(VIDEO)
        torch.nn.init.normal_(model.tokenizer.positions.tables)
        assert not torch.allclose(model(VIDEO), before)
    model(VIDEO).sum().backward()
    assert model.tokenizer.positions.tables.grad.abs().sum() > 0


def test_relative_bias_of_symmetric_tables_depends_on_the_distance_alone() -> None:
    module = Relative(2)
    with torch.no_grad():
        module.tables.normal_()
        module.tables += module.tables.flip(1)
    bias = module(CENTRES, 1)
    torch.testing.assert_close(bias, bias.mT)
    torch.testing.assert_close(module(CENTRES + 17, 1), bias)
    assert (bias[:, :, 0] == 0).all() and (bias[:, :, :, 0] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_images_and_clips_of_another_length(kind: str) -> None:
    model = made(kind)
    assert model.tokenize(VIDEO[:, :, 0]).shape == (2, 16, 26)
    assert torch.equal(model.tokenize(VIDEO[:, :, :1]), model.tokenize(VIDEO[:, :, 0]))
    longer = torch.cat([VIDEO, VIDEO], dim=2)
    assert model.tokenize(longer).shape == (2, 1 + 4 * 15 + 3 * 10 + 4 * 9, 26)
    assert model(longer).shape == (2, 2)


def test_rotary_angles_are_not_drawn_at_random_while_the_tokenizer_trains() -> None:
    kwargs = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    stem = build("timm:vit_small_patch16_dinov3", kwargs, (32, 48)).stem
    stem.rope.rescale_coords, stem.rope.aug_active = 2.0, True  # as Sapiens 2 trains
    patches = torch.cartesian_prod(torch.arange(2), torch.arange(3)).float()
    assert torch.equal(stem.train().rope_grid(), stem.eval().rope_grid())
    torch.testing.assert_close(stem.train().rope_grid(), stem.rope_at(patches))
