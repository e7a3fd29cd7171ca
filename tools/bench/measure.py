"""The one loop that times: sides take turns, here or each in a process of its own; and what was measured so far."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from scaleup.common.processes import peak_bytes
from scaleup.common.timing import progress
from scaleup.errors import UserError
from scaleup.sweeps.trace import counter

T = TypeVar("T")
Figures = dict[str, Any]  # by name, as they are printed
GIGA, GIB = 10**9, 2**30
LIBRARIES = ("bench.sides", "timm", "peft")  # what the process that is forked has imported

# A process inherits the peak memory of the one it is forked from, so a small one stands between.
LAUNCHER = """
import json, os, sys, time
began = time.perf_counter()
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *sys.argv[1:]]), 0)
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps([time.perf_counter() - began, usage.ru_maxrss * unit, os.waitstatus_to_exitcode(status)]))
"""


class Usage(NamedTuple):
    """What a process took: wall seconds, and its largest resident memory."""

    seconds: float
    peak_bytes: int


class Side(NamedTuple):
    """A model to be measured: tokens and frames of a clip, parameters that train, a training step, inference if any."""

    tokens: int
    frames: int
    trained_parameters: int
    step: Callable[[], Any]
    infer: Callable[[], Any] | None


_results: dict[str, list[Any]] = {}  # of each side, for a bench that does not come to its end


def rotated(sides: Mapping[str, Callable[[], T]], repeats: int, warmup: int = 1, what: str = "") -> list[dict[str, T]]:
    """What each side returns at each turn, which begins with another side each time. The first ``warmup`` turns do not
    count. What was measured stays in :func:`so_far`.

    Args:
        what: the sides do, where a bench compares several things.
    """
    names = list(sides)
    turns: list[dict[str, T]] = []
    results: dict[str, list[T]] = {name: [] for name in names}
    _results.update({f"{what}: {name}" if what else name: results[name] for name in names})
    for turn in range(warmup + repeats):
        first = turn % len(names)
        turns.append({})
        for name in names[first:] + names[:first]:
            turns[-1][name] = sides[name]()
            if turn >= warmup:
                results[name].append(turns[-1][name])
    return turns[warmup:]


def alternated(
    ours: Callable[[], T], other: Callable[[], T], repeats: int, warmup: int = 1, what: str = ""
) -> list[tuple[T, T]]:
    """:func:`rotated` for two sides."""
    turns = rotated({"ours": ours, "other": other}, repeats, warmup, what)
    return [(turn["ours"], turn["other"]) for turn in turns]


def in_processes(sides: Mapping[str, Callable[[], Figures]], repeats: int) -> list[dict[str, Figures]]:
    """:func:`rotated` for sides that begin processes of their own and need no turn to warm up; with a bar."""
    with progress("measuring", repeats * len(sides)) as advance:

        def side(name: str) -> Figures:
            figures = sides[name]()
            advance(1, name)
            return figures

        return rotated({name: partial(side, name) for name in sides}, repeats, warmup=0)


def so_far() -> Figures:
    """``{"rows", "missing"}``: medians of what was measured, how often it was, and sides that were not."""
    rows = [{"side": side, "turns": len(results), **medians(results)} for side, results in _results.items() if results]
    return {"rows": rows, "missing": [side for side, results in _results.items() if not results]}


def medians(results: Sequence[Any]) -> Figures:
    """Of seconds, or of the numbers in dicts and named tuples; None where one of them is."""
    if isinstance(results[0], int | float):
        return {"seconds": median(results)}
    rows = [result if isinstance(result, Mapping) else result._asdict() for result in results]
    columns = {key: [row[key] for row in rows] for key, value in rows[0].items() if not isinstance(value, str)}
    return {key: None if None in values else median(values) for key, values in columns.items()}


def compared(turns: list[tuple[float, float]]) -> dict[str, float]:
    """Median seconds of both sides, and the median over the turns of ours / other."""
    ours, other = zip(*turns, strict=True)
    ratio = median(one / two for one, two in turns)
    return {"seconds": median(ours), "other_seconds": median(other), "ratio": ratio}


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """A function that does ``work`` and returns the seconds that it took."""

    def seconds() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return seconds


def python(*arguments: object) -> Usage:
    """Run Python in a process of its own, its output on stderr.

    Raises:
        UserError: it fails.
    """
    launcher = [sys.executable, "-c", LAUNCHER, *map(str, arguments)]
    done = subprocess.run(launcher, stdout=subprocess.PIPE, text=True, check=True)
    *_, result = done.stdout.splitlines()
    seconds, peak, code = json.loads(result)
    if code:
        raise UserError(f"python {' '.join(map(str, arguments))} failed with exit code {code}")
    return Usage(seconds, peak)


def alone(work: Callable[..., T], *arguments: Any, modules: tuple[str, ...] = ()) -> T:
    """``work(*arguments)`` in a process of its own, forked from a small one that only has the libraries and other
    ``modules``: its peak memory is its own.

    Raises:
        UserError: the process is killed.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES, *modules])
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            named = ", ".join(map(str, arguments))
            raise UserError(f"the process that measures {named} was killed; it may have been out of memory") from error
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


def cost(make: Callable[..., Side], arguments: tuple, steps: int) -> Figures:
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


def goal(what: str, measured: float, limit: float, at_least: bool = False) -> Figures:
    """A figure beside what it should be at most, or at least."""
    met = measured >= limit if at_least else measured <= limit
    return {"what": what, "measured": measured, "at_least" if at_least else "at_most": limit, "met": met}


def machine(**settings: Any) -> Figures:
    """Where figures come from, and how; a load above 0 before the run means that others worked too."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        **settings,
    }


def measured(machine: Figures, rows: Sequence[Figures], goals: Iterable[Figures] = (), **figures: Any) -> Figures:
    """The result of a bench: ``machine`` as it was before, a row for each thing, ``figures`` of all together."""
    return {"machine": machine, **figures, "rows": list(rows), "goals": list(goals)}
