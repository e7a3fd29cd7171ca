"""Tubes beside a family's own patches: how many tokens, where, and how far they are turned."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import AMPLITUDE, FRAME_STRIDE, FRAMES, ROTARY, TUBES, Stored, videos
from timm.layers import RotaryEmbeddingDinoV3, RotaryEmbeddingMixed
from torch import Tensor, nn

from scaleup.model.tubevit import TubeViT


def starts(tube: str, axis: int, length: int) -> list[int]:
    """Every place along an axis where the kernel still fits."""
    kernel, stride, offset = TUBES[tube].kernel, TUBES[tube].stride, TUBES[tube].offset
    return list(range(offset[axis], length - kernel[axis] + 1, stride[axis]))


def centres(tube: str, size: tuple[int, int]) -> list[tuple[float, float, float]]:
    """(t, h, w) of each token in frames and pixels, in the order of the tokens; folds reach half a stride further."""
    kernel, fold, stride = TUBES[tube].kernel, TUBES[tube].fold, TUBES[tube].stride
    axes = []
    for axis, length in enumerate((FRAMES, *size)):
        reach = (fold[axis] - 1) * stride[axis] // max(fold[axis], 1)
        axes.append([start + (reach + kernel[axis] - 1) / 2 for start in starts(tube, axis, length)])
    return [(t, h, w) for t in axes[0] for h in axes[1] for w in axes[2]]


def places(size: tuple[int, int], patch: int) -> list[tuple[float, float]]:
    """Where every token that is no prefix lies, in patches: each frame's patches, then the tubes'."""
    frame = [(float(row), float(column)) for row in range(size[0] // patch) for column in range(size[1] // patch)]
    tubes = [(h, w) for tube in TUBES for _, h, w in centres(tube, size)]
    return frame * (FRAMES // FRAME_STRIDE) + [
        ((h - (patch - 1) / 2) / patch, (w - (patch - 1) / 2) / patch) for h, w in tubes
    ]


def without_norm(model: TubeViT) -> Callable[[Tensor], Tensor]:
    """Let tokens be as they are before a norm ahead of the blocks, which is returned."""
    norm_pre = model.tokenizer.stem.norm_pre
    vars(model.tokenizer.stem)["norm_pre"] = lambda tokens: tokens
    return norm_pre


def sines(time: float, dim: int) -> Tensor:
    table = [(math.sin(time * w), math.cos(time * w)) for w in (10_000 ** (-j / (dim // 2)) for j in range(dim // 2))]
    return AMPLITUDE * torch.tensor(table).flatten()


@torch.no_grad()
@pytest.mark.parametrize("shape", ["own", "oblong"])
def test_a_video_is_prefix_frames_and_tubes(stored: Stored, shape: str) -> None:
    size = stored.size if shape == "own" else stored.oblong
    model, patch = stored.model(size), stored.patch
    tubes = sum(math.prod(len(starts(tube, axis, n)) for axis, n in enumerate((FRAMES, *size))) for tube in TUBES)
    frames, prefix = FRAMES // FRAME_STRIDE * (size[0] // patch) * (size[1] // patch), model.tokenizer.num_prefix_tokens
    assert tubes >= 2 * len(TUBES)
    assert model.tokenize(videos(size)).shape == (2, prefix + frames + tubes, model.tokenizer.embed_dim)
    assert model.forward_features(videos(size)).isfinite().all()


@torch.no_grad()
def test_the_first_frame_lies_where_an_image_does(stored: Stored) -> None:
    model, x = stored.model(stored.oblong), videos(stored.oblong)
    joined = model.tokenize(x)
    norm_pre = without_norm(model)
    image, video = model.tokenize(x[:, :, 0]), model.tokenize(x)
    prefix, count = model.tokenizer.num_prefix_tokens, image.shape[1]
    wanted = image[:, prefix:] + sines(0.0, image.shape[2])
    torch.testing.assert_close(video[:, prefix:count], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(video[:, :prefix], image[:, :prefix], rtol=1e-5, atol=1e-5)
    assert torch.equal(norm_pre(video), joined)  # one norm for all tokens


@torch.no_grad()
def test_a_tube_has_the_learned_position_of_its_centre(stored: Stored) -> None:
    size, patch = stored.oblong, stored.patch
    model, table = stored.model(size), stored.positions(size)
    without_norm(model)
    tubes = model.tokenizer.tubes(videos(size))
    found = model.tokenize(videos(size))[:, -tubes.shape[1] :] - tubes  # what was added
    rows, columns = size[0] // patch, size[1] // patch
    table = torch.zeros(rows * columns, tubes.shape[2]) if table is None else table
    grid = table[-rows * columns :].unflatten(0, (rows, columns))
    times = [t for tube in TUBES for t, _, _ in centres(tube, size)]
    for token, (time, (row, column)) in enumerate(zip(times, places(size, patch)[-len(times) :], strict=True)):
        row, column = min(max(row, 0.0), rows - 1), min(max(column, 0.0), columns - 1)
        top, left = int(row), int(column)
        wanted = sines(time, tubes.shape[2])
        for y, share in ((top, 1 - (row - top)), (min(top + 1, rows - 1), row - top)):
            wanted = wanted + share * (1 - (column - left)) * grid[y, left]
            wanted = wanted + share * (column - left) * grid[y, min(left + 1, columns - 1)]
        torch.testing.assert_close(found[0, token], wanted, rtol=1e-4, atol=1e-4)


def turns(stored: Stored, size: tuple[int, int], row: float, column: float) -> np.ndarray:
    """Angles of a place by the family's published formula: (d/2,), or (depth, heads, d/2) where they are learned."""
    library = stored.library(size)
    rope, quarter = library.rope, library.embed_dim // first_heads(library) // 4
    grid = (size[0] // stored.patch, size[1] // stored.patch)
    if isinstance(rope, RotaryEmbeddingMixed):  # RoPE-ViT: theta_x x + theta_y y, each block and head its own
        frequencies = rope.freqs.detach().numpy()
        return frequencies[0] * column + frequencies[1] * row
    if isinstance(rope, RotaryEmbeddingDinoV3):  # centres of the patches between -1 and 1; periods 100^(2i / (d/2))
        y, x = 2 * (row + 0.5) / grid[0] - 1, 2 * (column + 0.5) / grid[1] - 1
        return np.array([2 * math.pi * c / 100 ** (i / quarter) for c in (y, x) for i in range(quarter)])
    switches = SWITCHES[next(word for word in SWITCHES if word in stored.family.name.lower())]
    offset, temperature, across_first, reference = switches
    y, x = row + offset, column + offset
    if reference:  # as if the image had the grid of pretraining
        y, x = y / grid[0] * reference, x / grid[1] * reference
    axes = (x, y) if across_first else (y, x)
    return np.array([c / temperature ** (i / quarter) for c in axes for i in range(quarter)])


SWITCHES = {  # of axial angles: offset of the first patch, base of the wavelengths, x before y, grid of pretraining
    "eva02": (0, 10_000, False, 16),
    "pe-core-b-16": (1, 10_000, True, 14),
    "pe_core_base": (1, 10_000, True, 14),
    "pe_lang_gigantic": (0, 10_000, True, 32),
    "_pe_": (1, 10_000, True, 32),
    "patch16_rope_reg1": (0, 10_000, False, 16),
    "patch16_rope_": (0, 100, True, None),
}


def first_heads(library: nn.Module) -> int:
    return library.blocks[0].attn.num_heads  # type: ignore[index,union-attr,return-value]


def unit(rope: Tensor, halves: bool) -> np.ndarray:
    """Sines and cosines (..., 2d) as one complex number for each pair of channels (..., d/2)."""
    sine, cosine = rope.double().chunk(2, dim=-1)
    step = sine.shape[-1] // 2
    pairs = (lambda x: (x[..., :step], x[..., step:])) if halves else (lambda x: (x[..., ::2], x[..., 1::2]))
    assert all(torch.equal(*pairs(x)) for x in (sine, cosine))  # both channels of a pair turn alike
    return pairs(cosine)[0].numpy() + 1j * pairs(sine)[0].numpy()


def rope_of(model: TubeViT, size: tuple[int, int], stored: Stored) -> np.ndarray:
    rope = model.tokenizer.context((FRAMES, *size)).rope
    return unit(rope, stored.library(size).blocks[0].attn.rotate_half)


def test_what_does_not_turn_is_not_turned(stored: Stored) -> None:
    turned = getattr(stored.library(stored.size), "rope", None) is not None
    rope = stored.model().tokenizer.context((FRAMES, *stored.size)).rope
    assert turned == (rope is not None) == stored.family.rotary


@torch.no_grad()
@pytest.mark.parametrize("family", ROTARY, indirect=True, ids=lambda family: family.id)
@pytest.mark.parametrize("shape", ["own", "oblong"])
def test_every_token_is_turned_as_far_as_its_centre_says(stored: Stored, shape: str) -> None:
    size = stored.size if shape == "own" else stored.oblong
    model, library = stored.model(size), stored.library(size)
    found = rope_of(model, size, stored)
    wanted = np.stack([turns(stored, size, *place) for place in places(size, stored.patch)], axis=-2)
    np.testing.assert_allclose(found, np.exp(1j * wanted), atol=2e-5)
    prefix = library.num_prefix_tokens  # these have no angle, and blocks leave them alone
    assert found.shape[-2] == model.tokenize(videos(size)).shape[1] - prefix
    assert all(block.attn.num_prefix_tokens == prefix for block in model.blocks)


@torch.no_grad()
@pytest.mark.parametrize("family", ROTARY, indirect=True, ids=lambda family: family.id)
def test_training_turns_no_token_at_random(stored: Stored) -> None:
    model = stored.model(frozen_depth=0)
    before = rope_of(model, stored.size, stored)
    assert np.array_equal(rope_of(model.train(), stored.size, stored), before)


@torch.no_grad()
@pytest.mark.parametrize("family", ROTARY, indirect=True, ids=lambda family: family.id)
def test_a_tube_moved_by_a_patch_turns_by_the_angle_of_a_patch(stored: Stored) -> None:
    size, model = stored.oblong, stored.model(stored.oblong)
    tube = model.tokenizer.tubes["long"]
    tube.spec = replace(tube.spec, stride=(4, 16, 3 * stored.patch))  # leaves room to move
    before = rope_of(model, size, stored)
    tube.spec = replace(tube.spec, offset=(0, 0, stored.patch))
    ratio = rope_of(model, size, stored) / before
    first = FRAMES // FRAME_STRIDE * math.prod(size) // stored.patch**2
    count = tube.spec.tokens((FRAMES, *size))
    step = turns(stored, size, 0, 1) - turns(stored, size, 0, 0)
    wanted = np.broadcast_to(np.exp(1j * step)[..., None, :], ratio[..., first : first + count, :].shape)
    np.testing.assert_allclose(ratio[..., first : first + count, :], wanted, atol=2e-5)
    np.testing.assert_allclose(ratio[..., :first, :], 1, atol=1e-6)
