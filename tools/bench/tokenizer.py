"""Our tubes (for each, a copy of its pixels and one matrix product) compared with ``conv3d`` with the same kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.measure import Figures, alternate, compare, goal, machine, measured, timed
from scaleup.model.tubes import Tube, TubeSpec, TubeTokenizer

SIZE = (32, 224, 224)
FOLDED = (  # the main tubes of the paper's supplement
    TubeSpec("tube8x8x8", (8, 8, 8), (16, 32, 32), (0, 0, 0), (2, 1, 1)),
    TubeSpec("tube16x4x4", (16, 4, 4), (6, 32, 32), (4, 8, 8), (1, 2, 2)),
    TubeSpec("tube4x12x12", (4, 12, 12), (16, 32, 32), (0, 16, 16)),
)
UNFOLDED = tuple(replace(spec, fold=(1, 1, 1)) for spec in FOLDED)


@torch.no_grad()
def tokenizer(
    widths: tuple[int, ...] = (192, 768, 1280), batches: tuple[int, ...] = (1, 2, 8), repeats: int = 31
) -> Figures:
    """Seconds and largest difference for each width, batch and tube, and for all tubes together."""
    before = machine()
    rows: list[Figures] = []
    for width in widths:
        for batch in batches:
            x = torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(0))
            for folds, specs in (("unfolded", UNFOLDED), ("folded", FOLDED)):
                tubes = TubeTokenizer(specs, width)
                single = [cast(Tube, tube) for tube in tubes.values()]
                modules: dict[str, tuple[nn.Module, list[Tube]]] = {tube.spec.name: (tube, [tube]) for tube in single}
                for name, (module, kernels) in (modules | {"all": (tubes, single)}).items():
                    row = {"width": width, "batch": batch, "folds": folds, "tube": name}
                    label = f"width {width}, batch {batch}, {folds}, {name}"
                    rows.append(row | _measure(module, kernels, x, repeats, label))
    goals = [
        goal("slowest of all tubes together, over conv3d", max(r["ratio"] for r in rows if r["tube"] == "all"), 1.0),
        goal("slowest single tube, over conv3d", max(r["ratio"] for r in rows if r["tube"] != "all"), 1.0),
    ]
    return measured(before, rows, goals)


def _measure(module: nn.Module, kernels: list[Tube], x: Tensor, repeats: int, label: str) -> dict[str, float]:
    def convolve() -> Tensor:
        return torch.cat([conv3d_tokens(tube, x) for tube in kernels], dim=1)

    difference = (module(x) - convolve()).abs().max().item()
    seconds = alternate(timed(lambda: module(x)), timed(convolve), repeats, label=label)
    return compare(seconds) | {"max_abs_diff": difference}


def conv3d_tokens(tube: Tube, x: Tensor) -> Tensor:
    """Tokens of x (B, 3, T, H, W) as (B, N, D): a convolution at stride / fold, then neighbours are concatenated."""
    spec, weight = tube.spec, tube.weight
    assert weight is not None
    t, h, w = spec.offset
    stride = [length // fold for length, fold in zip(spec.stride, spec.fold, strict=True)]
    places = F.conv3d(x[:, :, t:, h:, w:], weight, tube.bias, stride)  # (B, c, nt*ft, nh*fh, nw*fw)
    if spec.places_per_token == 1:
        return places.flatten(2).mT
    (nt, nh, nw), (ft, fh, fw) = spec.grid(SIZE), spec.fold
    split = places.unflatten(4, (nw, fw)).unflatten(3, (nh, fh)).unflatten(2, (nt, ft))
    return split.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(len(x), nt * nh * nw, -1)
