"""Ridge regression from sums, against the matrices that it never builds."""

import itertools

import pytest
import torch
from torch import Tensor

from scaleup.common.ridge import Moments, Ridge

ROWS, D, E = 40, 5, 3


def data(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Inputs that are far from standardised and correlated, and noisy outputs of another scale each."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, D, generator=generator) @ torch.randn(D, D, generator=generator) * 3 + torch.arange(D) * 10
    noise = torch.randn(rows, E, generator=generator)
    return x, (x @ torch.randn(D, E, generator=generator) + 5 * noise) * torch.tensor([1, 10, 0.1])


def ridge(x: Tensor, y: Tensor, size: int | None = None) -> Ridge:
    moments = Moments(x.shape[1], y.shape[1])
    for xs, ys in zip(x.split(size or len(x)), y.split(size or len(y)), strict=True):
        moments.add(xs, ys)
    return Ridge(moments)


def slow(x: Tensor, y: Tensor, penalty: float, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias by least squares on a stacked matrix: a row a sample, and one for each penalised weight."""
    x, y, d = x.double(), y.double(), x.shape[1]
    samples = torch.cat([torch.ones(len(x), 1), x / scale], 1)
    weights = torch.cat([torch.zeros(d, 1), torch.eye(d).double() * penalty**0.5], 1)
    stacked = torch.cat([samples, weights])
    found = torch.linalg.lstsq(stacked, torch.cat([y, torch.zeros(d, y.shape[1])]), driver="gelsd").solution
    return found[1:] / scale[:, None], found[0]


@pytest.mark.parametrize("penalty", [1e-6, 0.3, 40.0])
def test_the_map_is_that_of_the_stacked_matrix(penalty: float) -> None:
    x, y = data()
    weight, bias = slow(x, y, penalty, x.double().std(0, correction=0))
    found = ridge(x, y).solve(penalty)
    torch.testing.assert_close(found.weight, weight, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.bias, bias, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found(x), x.double() @ weight + bias, rtol=1e-7, atol=1e-9)


def test_a_penalty_of_each_output_is_its_own() -> None:
    x, y = data()
    together = ridge(x, y).solve(torch.tensor([0.1, 2.0, 300.0], dtype=torch.float64))
    for column, penalty in enumerate((0.1, 2.0, 300.0)):
        alone = ridge(x, y[:, [column]]).solve(penalty)
        torch.testing.assert_close(together.weight[:, [column]], alone.weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(together.bias[[column]], alone.bias, rtol=1e-9, atol=1e-12)


def test_rows_in_parts_add_up_to_all_rows_at_once() -> None:
    x, y = data()
    whole, parts = ridge(x, y).solve(0.5), ridge(x, y, size=7).solve(0.5)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-9, atol=1e-12)
    one, other = Moments(D, E), Moments(D, E)
    one.add(x[:9], y[:9])
    other.add(x[9:], y[9:])
    one.gram += other.gram  # two processes
    torch.testing.assert_close(Ridge(one).solve(0.5).weight, whole.weight, rtol=1e-9, atol=1e-12)


def test_gcv_is_its_definition() -> None:
    """n RSS / (n - tr H)^2 with the hat matrix itself, built column by column."""
    x, y = data()
    scale, found = x.double().std(0, correction=0), ridge(x, y)
    penalties = torch.tensor([1e-3, 1.0, 50.0], dtype=torch.float64)
    for penalty, errors in zip(penalties.tolist(), found.gcv(penalties), strict=True):
        weight, bias = slow(x, torch.eye(ROWS), penalty, scale)
        hat = x.double() @ weight + bias
        residual = (y - hat @ y.double()).square().sum(0)
        torch.testing.assert_close(errors, ROWS * residual / (ROWS - hat.trace()) ** 2, rtol=1e-7, atol=1e-9)


def test_gcv_is_leaving_out_where_rows_are_alike() -> None:
    """At the corners of a cube all rows have one leverage: every row is left out, and the mean error is that of GCV."""
    x = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)))
    y = x @ torch.randn(4, E, generator=torch.Generator().manual_seed(1)) + torch.randn(
        16, E, generator=torch.Generator().manual_seed(2)
    )
    errors = torch.zeros(E, dtype=torch.float64)
    for row in range(16):
        rest = [other for other in range(16) if other != row]
        weight, bias = slow(x[rest], y[rest], 3.0, torch.ones(4).double())
        errors += (y[row] - x[row].double() @ weight - bias).square() / 16
    torch.testing.assert_close(ridge(x, y).gcv(torch.tensor([3.0]).double())[0], errors, rtol=1e-9, atol=1e-12)


def test_candidates_grow_with_the_rows_and_the_best_one_predicts_new_rows_best() -> None:
    x, y = data(400)
    small = ridge(x[:40], y[:40])
    assert torch.allclose(small.penalties() * 10, ridge(x, y).penalties())
    candidates = small.penalties()
    new = torch.stack([(y[40:] - small.solve(p)(x[40:])).square().mean(0) for p in candidates])  # (P, E)
    chosen = new.gather(0, small.gcv(candidates).argmin(0)[None])[0]
    assert (chosen < 1.1 * new.min(0).values).all() and (chosen < 0.5 * new[-1]).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 123.456])
def test_an_input_that_never_changes_has_no_weight(value: float) -> None:
    """The class token that enters the first block is one; its variance is nothing but rounding."""
    x, y = data(1000)
    constant = torch.cat([x, torch.full((1000, 1), value)], 1)
    found, without = ridge(constant, y, size=7), ridge(x, y, size=7)
    assert (found.solve(1e-4).weight[-1] == 0).all()
    torch.testing.assert_close(found.solve(0.5).weight[:-1], without.solve(0.5).weight, rtol=1e-7, atol=1e-9)
    penalties = without.penalties()
    torch.testing.assert_close(found.gcv(penalties), without.gcv(penalties), rtol=1e-7, atol=1e-9)


def test_more_inputs_than_rows() -> None:
    x, y = data()
    x, y = torch.cat([x, x.sin(), x.cos()], 1)[:8], y[:8]
    weight, bias = slow(x, y, 0.2, x.double().std(0, correction=0))
    found = ridge(x, y)
    torch.testing.assert_close(found.solve(0.2)(x), x.double() @ weight + bias, rtol=1e-7, atol=1e-9)
    assert found.gcv(found.penalties()).isfinite().all()
