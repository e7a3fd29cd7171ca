"""Positions against loops over tokens, axes and wavelengths."""

import math

import pytest
import torch
from torch import Tensor

from scaleup.model.tokenizer import Relative, cosine, sample_grid
from scaleup.model.tubes import TubeSpec


def slow_cosine(coordinates: list[tuple[float, ...]], dim: int) -> Tensor:
    """Equations 3 to 7, a channel at a time; with three axes there are dim // 6 wavelengths."""
    axes = len(coordinates[0])
    count = dim // (2 * axes)
    table = torch.zeros(len(coordinates), dim, dtype=torch.float64)
    for token, place in enumerate(coordinates):
        for j in range(count):
            w = 1 / 10_000 ** (j / count)
            for axis, p in enumerate(place):
                table[token, 2 * axes * j + 2 * axis] = math.sin(p * w)
                table[token, 2 * axes * j + 2 * axis + 1] = math.cos(p * w)
    return table.float()


@pytest.mark.parametrize("dim", [72, 768, 1024, 1280, 1408, 1664])
def test_sines_follow_the_papers_equations(dim: int) -> None:
    spec = TubeSpec("tube", (8, 4, 6), (6, 8, 12), (1, 2, 0), (2, 1, 1))
    places = [(t, h, w) for t in (4.5 + 1.5, 10.5 + 1.5) for h in (3.5, 11.5) for w in (2.5, 14.5)]
    centres = spec.centres((20, 15, 24))
    assert centres.tolist() == [list(place) for place in places]
    table = cosine(centres, dim)
    torch.testing.assert_close(table, slow_cosine(places, dim), rtol=0, atol=1e-6)
    used = 6 * (dim // 6)
    assert table.shape == (8, dim) and (table[:, used:] == 0).all() and table[:, :used].abs().max(0).values.min() > 0


@pytest.mark.parametrize("dim", [72, 1025])
def test_sines_of_time_alone(dim: int) -> None:
    times = [(0.0,), (3.5,), (63.0,)]
    table = cosine(torch.tensor(times), dim)
    torch.testing.assert_close(table, slow_cosine(times, dim), rtol=0, atol=1e-6)


def test_a_grid_is_sampled_bilinearly_between_patch_centres_and_held_at_its_edges() -> None:
    grid, (ph, pw) = torch.randn(4, 6, 5), (8, 4)
    centres = [(3.5, 1.5), (11.5, 5.5), (7.5, 3.5), (5.0, 9.0), (0.0, 0.0), (31.0, 23.0), (29.0, 2.5)]
    wanted = []
    for h, w in centres:
        row = min(max((h - (ph - 1) / 2) / ph, 0), 3)
        column = min(max((w - (pw - 1) / 2) / pw, 0), 5)
        a, b = min(int(row), 2), min(int(column), 4)
        p, q = row - a, column - b
        wanted.append(
            (1 - p) * ((1 - q) * grid[a, b] + q * grid[a, b + 1])
            + p * ((1 - q) * grid[a + 1, b] + q * grid[a + 1, b + 1])
        )
    sampled = sample_grid(grid, torch.tensor(centres), (ph, pw))
    torch.testing.assert_close(sampled, torch.stack(wanted), rtol=0, atol=1e-5)
    assert torch.equal(sampled[1], grid[1, 1]) and torch.equal(sampled[5], grid[3, 5])


def slow_bias(tables: Tensor, centres: list[tuple[float, float, float]], prefix: int) -> Tensor:
    """Two bins a doubling of the distance on either side of zero, 16 at most, summed over the axes."""
    count = prefix + len(centres)
    bias = torch.zeros(1, tables.shape[2], count, count)
    for q, here in enumerate(centres):
        for k, there in enumerate(centres):
            for axis in range(3):
                distance = there[axis] - here[axis]
                bin = min(round(2 * math.log2(1 + abs(distance))), 16)
                bias[0, :, prefix + q, prefix + k] += tables[axis, 16 + (bin if distance > 0 else -bin)]
    return bias


def test_relative_bias_of_each_pair_of_tokens() -> None:
    module = Relative(3)
    torch.nn.init.normal_(module.tables)
    centres = [(0.0, 7.5, 7.5), (0.0, 7.5, 23.5), (4.0, 100.0, 3.0), (31.0, 900.0, 1.5)]
    wanted = slow_bias(module.tables, centres, 2)
    torch.testing.assert_close(module(torch.tensor(centres), 2), wanted)
