"""Timing: functions run in turns, here or each in its own process; and the results so far."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from scaleup.common.distributed import own_device
from scaleup.common.errors import UserError
from scaleup.common.processes import peak_bytes
from scaleup.common.timing import now, progress
from scaleup.sweeps.trace import counter

T = TypeVar("T")
Figures = dict[str, Any]  # by name, as they are printed
GIGA, GIB = 10**9, 2**30
LIBRARIES = ("bench.sides", "timm", "peft")  # what the process that is forked has imported

# A process inherits the peak memory of its parent. So a small process starts it, not this large one.
LAUNCHER = """
import json, os, sys, time
began = time.perf_counter()
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *sys.argv[1:]]), 0)
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps([time.perf_counter() - began, usage.ru_maxrss * unit, os.waitstatus_to_exitcode(status)]))
"""


class Usage(NamedTuple):
    """Wall seconds and the largest resident memory of a process."""

    seconds: float
    peak_bytes: int


class Side(NamedTuple):
    """A model to measure: tokens and frames of a clip, trained parameters, a training step, and inference if it has
    any."""

    tokens: int
    frames: int
    trained_parameters: int
    step: Callable[[], Any]
    infer: Callable[[], Any] | None


_results: dict[str, list[Any]] = {}  # of each function; printed if a bench is stopped


def rotate(
    functions: Mapping[str, Callable[[], T]], repeats: int, warmup: int = 1, label: str = ""
) -> list[dict[str, T]]:
    """Call all functions in each of several rounds, and return what they returned, by name, for each round.

    Each round begins with another function. The first ``warmup`` rounds do not count. :func:`collect` returns the
    results too, also after an error.

    Args:
        label: what these functions do, for a bench that calls ``rotate`` several times.
    """
    names = list(functions)
    rounds: list[dict[str, T]] = []
    results: dict[str, list[T]] = {name: [] for name in names}
    _results.update({f"{label}: {name}" if label else name: results[name] for name in names})
    for number in range(warmup + repeats):
        first = number % len(names)
        rounds.append({})
        for name in names[first:] + names[:first]:
            rounds[-1][name] = functions[name]()
            if number >= warmup:
                results[name].append(rounds[-1][name])
    return rounds[warmup:]


def alternate(
    ours: Callable[[], T], other: Callable[[], T], repeats: int, warmup: int = 1, label: str = ""
) -> list[tuple[T, T]]:
    """:func:`rotate` for two functions."""
    rounds = rotate({"ours": ours, "other": other}, repeats, warmup, label)
    return [(results["ours"], results["other"]) for results in rounds]


def rotate_processes(functions: Mapping[str, Callable[[], Figures]], repeats: int) -> list[dict[str, Figures]]:
    """:func:`rotate` for functions that start a process, and so need no warm-up round; with a progress bar."""
    with progress("measuring", repeats * len(functions)) as advance:

        def call(name: str) -> Figures:
            figures = functions[name]()
            advance(1, name)
            return figures

        return rotate({name: partial(call, name) for name in functions}, repeats, warmup=0)


def collect() -> Figures:
    """``{"rows", "missing"}``: medians of the results so far and their number, and the functions without results."""
    rows = [{"side": side, "turns": len(results), **medians(results)} for side, results in _results.items() if results]
    return {"rows": rows, "missing": [side for side, results in _results.items() if not results]}


def medians(results: Sequence[Any]) -> Figures:
    """Medians of seconds, or of the numbers in dicts and named tuples; None where a value is None."""
    if isinstance(results[0], int | float):
        return {"seconds": median(results)}
    rows = [result if isinstance(result, Mapping) else result._asdict() for result in results]
    columns = {key: [row[key] for row in rows] for key, value in rows[0].items() if not isinstance(value, str)}
    return {key: None if None in values else median(values) for key, values in columns.items()}


def compare(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Median seconds of ours and of the other, and the median of ours / other over the rounds."""
    ours, other = zip(*pairs, strict=True)
    ratio = median(one / two for one, two in pairs)
    return {"seconds": median(ours), "other_seconds": median(other), "ratio": ratio}


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """A function that calls ``work`` and returns how many seconds this took, until the device has done its part."""

    def seconds() -> float:
        device = own_device()
        began = now(device)
        work()
        return now(device) - began

    return seconds


def run_python(*arguments: object) -> Usage:
    """Run Python in a new process; its output goes to stderr.

    Raises:
        UserError: the process fails.
    """
    launcher = [sys.executable, "-c", LAUNCHER, *map(str, arguments)]
    done = subprocess.run(launcher, stdout=subprocess.PIPE, text=True, check=True)
    *_, result = done.stdout.splitlines()
    seconds, peak, code = json.loads(result)
    if code:
        raise UserError(f"python {' '.join(map(str, arguments))} failed with exit code {code}")
    return Usage(seconds, peak)


def run_in_process(work: Callable[..., T], *arguments: Any, modules: tuple[str, ...] = ()) -> T:
    """``work(*arguments)`` in a new process, so that its peak memory is not this process's.

    It is forked from a small process, which has imported only the libraries and ``modules``.

    Raises:
        UserError: the process is killed.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES, *modules])
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            names = ", ".join(map(str, arguments))
            raise UserError(f"the process that measures {names} was killed; it may have been out of memory") from error
        except BaseException:  # an interrupt: do not wait until the process is ready
            for process in list(pool._processes.values()):
                process.kill()
            raise


def run_ranks(ranks: int, work: Callable[..., T], *arguments: Any) -> list[T]:
    """``work(*arguments)`` in ``ranks`` processes of one process group, started by torchrun."""
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
    """The cost of the model that ``make(*arguments)`` returns: GFLOPs (a multiplication and its addition count as two),
    median seconds, and how much the peak memory of this process, or of its GPU, rises, weights included. One step and
    one inference run before the timed ones: they warm up, and their operations are counted."""
    before = held_bytes()
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
        "peak_bytes": most_bytes() - before,
    }


def held_bytes() -> int:
    """What is held from here on: of a GPU's memory now, of the host's at most so far."""
    device = own_device()
    if device.type == "cpu":
        return peak_bytes()
    memory = torch.get_device_module(device)
    memory.reset_peak_memory_stats()
    return memory.memory_allocated()


def most_bytes() -> int:
    """The largest memory of this process since :func:`held_bytes`; where it has a GPU, of that."""
    device = own_device()
    return peak_bytes() if device.type == "cpu" else torch.get_device_module(device).max_memory_allocated()


def gflops(work: Callable[[], Any]) -> float:
    """Of matrix products, convolutions and attention, by torch's counter."""
    with counter() as flops:
        work()
    return flops.get_total_flops() / GIGA


def goal(name: str, measured: float, limit: float, at_least: bool = False) -> Figures:
    """A measured figure and its limit: at most ``limit``, or at least."""
    met = measured >= limit if at_least else measured <= limit
    return {"what": name, "measured": measured, "at_least" if at_least else "at_most": limit, "met": met}


def machine(**settings: Any) -> Figures:
    """The machine and the settings of a run. A load above 0 before the run means that other processes were working."""
    device = own_device()
    cards = {} if device.type == "cpu" else {"device": torch.get_device_module(device).get_device_name()}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        **cards,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        **settings,
    }


def measured(machine: Figures, rows: Sequence[Figures], goals: Iterable[Figures] = (), **figures: Any) -> Figures:
    """The result of a bench: the machine before the run, one row for each measured thing, and ``figures`` over all
    rows."""
    return {"machine": machine, **figures, "rows": list(rows), "goals": list(goals)}
