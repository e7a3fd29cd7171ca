"""Work in a process of its own, forked from a small one that only has the libraries: its peak memory is its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple, TypeVar

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bench.turns import timed
from scaleup.common.processes import peak_bytes
from scaleup.errors import UserError
from scaleup.sweeps.trace import counter

T = TypeVar("T")
LIBRARIES = ("bench.sides", "timm", "peft")  # what the process that is forked has imported
GIGA = 10**9


class Side(NamedTuple):
    """A model to be measured: tokens and frames of a clip, parameters that train, a training step, inference if any."""

    tokens: int
    frames: int
    trained_parameters: int
    step: Callable[[], Any]
    infer: Callable[[], Any] | None


def alone(work: Callable[..., T], *arguments: Any, modules: tuple[str, ...] = ()) -> T:
    """``work(*arguments)`` in a process of its own, with the libraries and other ``modules`` imported before.

    Raises:
        UserError: the process is killed.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES, *modules])
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            said = ", ".join(map(str, arguments))
            raise UserError(f"the process that measures {said} was killed; it may have been out of memory") from error
        except BaseException:  # an interrupt: nobody waits for what the process is at
            for process in list(pool._processes.values()):
                process.kill()
            raise


def launched(ranks: int, work: Callable[..., T], *arguments: Any) -> list[T]:
    """``work(*arguments)`` in each of so many processes, which torchrun starts and introduces to each other."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="forkserver",
    )
    return list(elastic_launch(config, work)(*arguments).values())


def measured(make: Callable[..., Side], arguments: tuple, steps: int) -> dict[str, Any]:
    """What ``make(*arguments)`` costs: GFLOPs (a multiplication and its addition are two), median seconds, and by how
    much the peak memory of this process rises, weights included. Once of each comes before, to warm up and count."""
    before = peak_bytes()
    side = make(*arguments)
    train_gflop, gflop = gflops(side.step), side.infer and gflops(side.infer)
    return {
        "tokens": side.tokens,
        "frames": side.frames,
        "trained_parameters": side.trained_parameters,
        "gflop": gflop,
        "train_gflop": train_gflop,
        "step_seconds": median(timed(side.step)() for _ in range(steps)),
        "infer_seconds": side.infer and median(timed(side.infer)() for _ in range(steps)),
        "peak_bytes": peak_bytes() - before,
    }


def gflops(work: Callable[[], Any]) -> float:
    """Of matrix products, convolutions and attention, by torch's counter."""
    with counter() as counted:
        work()
    return counted.get_total_flops() / GIGA
