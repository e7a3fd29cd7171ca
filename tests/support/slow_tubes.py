"""What a tube gives, by loops: a product with each kernel at each place."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

Axis = Sequence[Sequence[int]]  # of each token along one axis, the first pixels of its places


def slow_tokens(x: Tensor, weight: Tensor, bias: Tensor, axes: Sequence[Axis]) -> Tensor:
    """x (B, 3, T, H, W), kernels (C, 3, t, h, w) -> (B, N, C times the places of a token), in order of t, h, w."""
    t, h, w = weight.shape[2:]

    def at(place: tuple[int, ...]) -> Tensor:
        box = x[:, :, place[0] : place[0] + t, place[1] : place[1] + h, place[2] : place[2] + w]
        return torch.stack([(box * each).sum((1, 2, 3, 4)) for each in weight], 1) + bias  # (B, C)

    return torch.stack([torch.cat([at(place) for place in product(*places)], 1) for places in product(*axes)], 1)
