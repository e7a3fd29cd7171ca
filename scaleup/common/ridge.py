"""Ridge regression in closed form, from sums over rows in float64. Memory does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CONSTANT = 1e-10  # an input with variance / mean square below this is constant; the rest is rounding


class Affine(NamedTuple):
    """x (n, D) -> x weight + bias (n, E), in float64."""

    weight: Tensor  # (D, E)
    bias: Tensor  # (E,)

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(self.weight) @ self.weight + self.bias


class Moments:
    """Sums over rows of the products of (1, x, y) (``gram``). Sums over parts of the rows can be added."""

    def __init__(self, inputs: int, outputs: int, device: torch.device | None = None) -> None:
        self.inputs, side = inputs, 1 + inputs + outputs
        self.gram = torch.zeros(side, side, dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows x (n, D) and their targets y (n, E)."""
        rows = torch.cat([x.new_ones(len(x), 1), x, y.to(x)], dim=1).to(self.gram)  # (n, 1 + D + E)
        self.gram.addmm_(rows.T, rows)


class Ridge:
    """The affine maps that minimise ||y - x weight - bias||^2 + penalty ||scale weight||^2, for any penalty above 0.

    ``scale`` is each input's standard deviation, so that inputs count as if standardised; constant ones get weight 0.
    The intercept is not penalised. One eigendecomposition (D x D) serves all penalties and all outputs.
    """

    def __init__(self, moments: Moments) -> None:
        gram, d = moments.gram, moments.inputs
        self.count = gram[0, 0]
        self.mean = gram[0, 1:] / self.count  # (D + E,)
        centred = gram[1:, 1:] - self.count * self.mean.outer(self.mean)
        variance = centred.diagonal()[:d] / self.count
        varies = variance > CONSTANT * gram.diagonal()[1 : 1 + d] / self.count
        self.scale = variance.sqrt().where(varies, torch.inf)  # (D,)
        correlations = centred[:d, :d] / self.scale / self.scale[:, None]
        self.values, self.vectors = torch.linalg.eigh(correlations)  # (D,), (D, D)
        self.rotated = self.vectors.T @ (centred[:d, d:] / self.scale[:, None])  # (D, E)
        self.spread = centred.diagonal()[d:]  # (E,): squares of y about its mean

    def penalties(self) -> Tensor:
        """Candidates (25,): from 1e-6 to 100 times the number of rows, three per decade."""
        return self.count * torch.logspace(-6, 2, 25, dtype=torch.float64, device=self.count.device)

    def gcv(self, penalties: Tensor) -> Tensor:
        """Generalized cross validation: penalties (P,) -> the estimated mean square error of each output (P, E).

        n RSS / (n - df)^2, where df are the degrees of freedom of the fit (Golub, Heath and Wahba 1979). It is the
        error of leaving one row out, if all rows had the same leverage.
        """
        sums = self.values + penalties[:, None]  # (P, D)
        freedom = 1 + (self.values / sums).sum(1)  # (P,)
        residual = self.spread - ((sums + penalties[:, None]) / sums.square()) @ self.rotated.square()  # (P, E)
        return self.count * residual / (self.count - freedom).square()[:, None]

    def best_penalties(self, outputs: Sequence[int]) -> Tensor:
        """The candidate with the smallest error by :meth:`gcv` for each group of so many outputs: (groups,)."""
        candidates = self.penalties()
        errors = self.gcv(candidates).split(list(outputs), dim=1)
        return torch.stack([candidates[group.sum(1).argmin()] for group in errors])

    def solve(self, penalty: float | Tensor) -> Affine:
        """The map for one penalty, or for a penalty of each output (E,)."""
        d = len(self.values)
        weight = self.vectors @ (self.rotated / (self.values[:, None] + penalty)) / self.scale[:, None]
        return Affine(weight, self.mean[d:] - self.mean[:d] @ weight)
