"""Tokens of tubes against loops over places, one dot product a place, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.slow_tubes import slow_tokens
from torch import Tensor

from scaleup.model.tubes import Tube, TubeSpec, TubeTokenizer, resize_kernel

SPECS = {
    "plain": TubeSpec("tube", (2, 3, 4), (2, 4, 5)),
    "overlap": TubeSpec("tube", (4, 4, 4), (2, 3, 3)),
    "offset": TubeSpec("tube", (3, 4, 2), (4, 5, 6), (2, 1, 3)),
    "one frame": TubeSpec("tube", (1, 4, 4), (5, 4, 4), (1, 0, 0)),
    "2 in time": TubeSpec("tube", (2, 4, 4), (4, 8, 8), fold=(2, 1, 1)),
    "2x2 in space": TubeSpec("tube", (4, 2, 2), (4, 8, 8), (1, 2, 2), fold=(1, 2, 2)),
    "5 in time": TubeSpec("tube", (2, 4, 4), (6, 8, 8), fold=(5, 1, 1)),
    "mixed": TubeSpec("tube", (2, 3, 3), (4, 6, 8), fold=(2, 3, 2)),
    "wide": TubeSpec("tube", (2, 3, 8), (4, 5, 6), (1, 0, 2)),
    "wide, 2 and 3": TubeSpec("tube", (2, 3, 8), (4, 6, 8), fold=(2, 3, 1)),
    "wide, 5 across": TubeSpec("tube", (3, 2, 9), (4, 8, 7), fold=(1, 1, 5)),
    "wide, 3 and 2": TubeSpec("tube", (2, 2, 8), (4, 8, 8), fold=(1, 3, 2)),
    "wide, truncated": TubeSpec("tube", (2, 4, 8), (4, 8, 8), fold=(3, 1, 1), channels=25),
    "truncated": TubeSpec("tube", (2, 4, 4), (4, 8, 8), fold=(3, 1, 1), channels=25),
}
CLIP = (13, 17, 19)
WIDTH = 60


def slow_starts(spec: TubeSpec, axis: int, length: int) -> list[list[int]]:
    """First pixel of each place of each token along one axis."""
    offset, kernel, stride, fold = (part[axis] for part in (spec.offset, spec.kernel, spec.stride, spec.fold))
    last = length - kernel
    step = max(stride / fold, 1)
    if fold > 1:
        step = min(step, (last - offset) / (fold - 1))
    tokens, start = [], offset
    while start <= last:
        places = [start + round(place * step) for place in range(fold)]
        while places[-1] > last:
            places = [place - 1 for place in places]
        tokens.append(places)
        start += stride
    return tokens


def wanted_tokens(tube: Tube, weight: Tensor, x: Tensor) -> Tensor:
    axes = [slow_starts(tube.spec, axis, length) for axis, length in enumerate(x.shape[2:])]
    return slow_tokens(x, weight, tube.bias, axes)[..., : tube.embed_dim]


def clip(size: tuple[int, int, int] = CLIP, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def made(spec: TubeSpec, width: int = WIDTH) -> Tube:
    torch.manual_seed(0)
    tube = Tube(spec, width).double()
    torch.nn.init.normal_(tube.bias)
    return tube


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_tokens_equal_loops_over_places(name: str) -> None:
    tube, x = made(SPECS[name]), clip()
    wanted = wanted_tokens(tube, tube.weight, x)
    assert wanted.shape == (2, SPECS[name].tokens(CLIP), WIDTH)
    torch.testing.assert_close(tube(x), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["plain", "overlap", "offset", "one frame"])
@torch.no_grad()
def test_an_unfolded_tube_is_a_convolution(name: str) -> None:
    tube, x = made(SPECS[name]), clip()
    t, h, w = SPECS[name].offset
    wanted = F.conv3d(x[:, :, t:, h:, w:], tube.weight, tube.bias, SPECS[name].stride).flatten(2).mT
    torch.testing.assert_close(tube(x), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_a_token_reads_the_pixels_of_its_places_and_no_other(name: str) -> None:
    spec = SPECS[name]
    tube, x = made(spec), clip(count=1).requires_grad_()
    tokens = tube(x)[0]
    axes = [slow_starts(spec, axis, length) for axis, length in enumerate(CLIP)]
    grid = [(t, h, w) for t in axes[0] for h in axes[1] for w in axes[2]]
    for index in {0, 1, len(grid) // 2, len(grid) - 1}:
        (gradient,) = torch.autograd.grad(tokens[index].sum(), x, retain_graph=True)
        support = torch.zeros(CLIP, dtype=torch.bool)
        for place in [(t, h, w) for t in grid[index][0] for h in grid[index][1] for w in grid[index][2]]:
            support[tuple(slice(first, first + k) for first, k in zip(place, spec.kernel, strict=True))] = True
        assert torch.equal((gradient[0] != 0).all(0), support) and torch.equal((gradient[0] != 0).any(0), support)


@torch.no_grad()
def test_tokens_are_affine_in_the_pixels() -> None:
    tokenizer = TubeTokenizer(
        [TubeSpec(f"tube{i}", s.kernel, s.stride, s.offset, s.fold, s.channels) for i, s in enumerate(SPECS.values())],
        WIDTH,
    ).double()
    for tube in tokenizer.values():
        torch.nn.init.normal_(tube.bias)
    x, y = clip(), clip().flip(2)
    zero = tokenizer(torch.zeros_like(x))
    torch.testing.assert_close(
        tokenizer(3 * x - 2 * y) - zero, 3 * (tokenizer(x) - zero) - 2 * (tokenizer(y) - zero), rtol=0, atol=1e-11
    )


def slow_trilinear(weight: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Each value between its (up to) eight neighbours; sample i of n sits at (i + 1/2) m/n - 1/2, held at the edges."""

    def neighbours(index: int, new: int, old: int) -> list[tuple[int, float]]:
        at = min(max((index + 0.5) * old / new - 0.5, 0), old - 1)
        low = min(int(at), old - 1)
        return [(low, 1 - (at - low)), (min(low + 1, old - 1), at - low)]

    out = torch.zeros(*weight.shape[:2], *size, dtype=weight.dtype)
    for t in range(size[0]):
        for h in range(size[1]):
            for w in range(size[2]):
                for a, p in neighbours(t, size[0], weight.shape[2]):
                    for b, q in neighbours(h, size[1], weight.shape[3]):
                        for c, r in neighbours(w, size[2], weight.shape[4]):
                            out[:, :, t, h, w] += p * q * r * weight[:, :, a, b, c]
    return out


@pytest.mark.parametrize("size", [(6, 2, 3), (1, 4, 4), (4, 4, 4)])
def test_a_resized_kernel_is_trilinear_with_its_gain_corrected(size: tuple[int, int, int]) -> None:
    weight = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    wanted = slow_trilinear(weight, size) * 64 / math.prod(size)
    torch.testing.assert_close(resize_kernel(weight, size), wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_tubes_of_one_interpolated_kernel_equal_loops_over_places() -> None:
    specs = [TubeSpec("a", (2, 8, 3), (4, 4, 5)), TubeSpec("b", (1, 4, 4), (3, 8, 8), (1, 0, 2))]
    tokenizer = TubeTokenizer(specs, 10, (4, 4, 4)).double()
    x = clip()
    wanted = [
        wanted_tokens(tokenizer[s.name], slow_trilinear(tokenizer.shared, s.kernel) * 64 / math.prod(s.kernel), x)
        for s in specs
    ]
    torch.testing.assert_close(tokenizer(x), torch.cat(wanted, 1), rtol=0, atol=1e-12)
