"""The speed of a trunk as a share of the speed of one large matrix product, measured in the same run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from bench.measure import GIGA, Figures, medians, rotate, timed
from scaleup.common.distributed import join
from scaleup.config.schema import Trunk as Settings
from scaleup.model.adapter import Adapt
from scaleup.model.build import prepare_trunks
from scaleup.model.kernel_choice import set_kernels
from scaleup.model.kernels import Fast
from scaleup.model.trunk import COMPUTED_IN, Trunk
from scaleup.model.tubevit import TubeViT
from scaleup.sweeps.trace import counter

PRODUCTS = 4  # matrix products of the shape of an MLP's first layer, timed together


@torch.no_grad()
def trunk_share(template: TubeViT, x: torch.Tensor, repeats: int) -> Figures:
    """Three quarters of the blocks on x (B, 3, T, H, W), with the kernels that a run would choose and with the
    library's, in the default precision of the device.

    Returns:
        ``{"kernels", "seconds", "gflops": {name: rate}, "of_matmul", "of_mm", "library_of_mm"}``: medians over the
        rounds; ``of_matmul`` compares with the faster of ``torch.mm`` and the 1x1 convolution, in this precision.
    """
    depth, world = template.depth - template.depth // 4, join()
    model, x = template.with_arm(depth, False, {}, adapt=Adapt("none")).place(world.device, None), x.to(world.device)
    kernels = set_kernels([model], "auto", world, len(x), trains=False)
    prepare_trunks([model], Settings(), world, len(x))
    trunk = model.trunk
    assert trunk is not None
    library = Trunk(model.tokenizer, trunk.blocks)
    library.precision = trunk.precision
    with counter() as flop_counter:
        tokens = library(x, [depth])[depth].h  # (B, N, D)
    product, flops = products(tokens.to(COMPUTED_IN[trunk.precision])), flop_counter.get_total_flops()
    timers = {
        "trunk": timed(lambda: trunk(x, [depth])),
        "library": timed(lambda: library(x, [depth])),
        **{name: timed(work) for name, work in product.items()},
    }
    of_products = PRODUCTS * 8 * tokens.numel() * tokens.shape[2]
    work = {name: of_products if name in product else flops for name in timers}
    rounds = rotate(timers, repeats, label=f"blocks of width {tokens.shape[2]}")
    rates = [{name: work[name] / seconds[name] / GIGA for name in timers} for seconds in rounds]  # GFLOP/s
    return {
        "kernels": kernels.trunk,
        "seconds": median(flops / rate["trunk"] / GIGA for rate in rates),
        "gflops": medians(rates),
        "of_matmul": median(rate["trunk"] / max(rate["mm"], rate["conv"]) for rate in rates),
        "of_mm": median(rate["trunk"] / rate["mm"] for rate in rates),
        "library_of_mm": median(rate["library"] / rate["mm"] for rate in rates),
    }


def products(tokens: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """The matrix product (B * N, D) by (D, 4 D), as ``torch.mm`` and as a 1x1 convolution, ``PRODUCTS`` times."""
    width = tokens.shape[2]
    layer = torch.nn.Linear(width, 4 * width, bias=False, device=tokens.device, dtype=tokens.dtype)
    rows, weight = tokens.flatten(0, 1), layer.weight.t()

    def by_convolution() -> None:
        with Fast("products"):
            _repeated(partial(layer, tokens))

    return {"mm": partial(_repeated, partial(torch.mm, rows, weight)), "conv": by_convolution}


def _repeated(work: Callable[[], Any]) -> None:
    for _ in range(PRODUCTS):
        work()
