"""Taking turns: what is compared is measured alternately, in this process or in processes of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple, TypeVar

from scaleup.errors import UserError

T = TypeVar("T")

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


class Measured(NamedTuple):
    """What sides gave so far; ``what`` says of what, where a bench compares several things."""

    what: str
    sides: dict[str, list[Any]]


_measured: list[Measured] = []  # by this process, for a bench that does not come to its end


def alternated(
    ours: Callable[[], T], other: Callable[[], T], repeats: int, warmup: int = 1, what: str = ""
) -> list[tuple[T, T]]:
    """:func:`rotated` for two sides."""
    turns = rotated({"ours": ours, "other": other}, repeats, warmup, what)
    return [(turn["ours"], turn["other"]) for turn in turns]


def rotated(sides: Mapping[str, Callable[[], T]], repeats: int, warmup: int = 1, what: str = "") -> list[dict[str, T]]:
    """What each side returns at each turn, which begins with another side each time. The first ``warmup`` turns do not
    count. What was measured stays in :func:`so_far`."""
    names, turns = list(sides), []
    measured = Measured(what, {name: [] for name in names})
    _measured.append(measured)
    for turn in range(warmup + repeats):
        first = turn % len(names)
        taken = {}
        for name in names[first:] + names[:first]:
            taken[name] = sides[name]()
            if turn >= warmup:
                measured.sides[name].append(taken[name])
        turns.append(taken)
    return turns[warmup:]


def so_far() -> dict[str, Any]:
    """``{"rows", "missing"}``: medians of what was measured, how often it was, and sides that were not."""
    rows, missing = [], []
    for what, sides in _measured:
        for name, results in sides.items():
            side = f"{what}: {name}" if what else name
            if results:
                rows.append({"side": side, "turns": len(results), **_medians(results)})
            else:
                missing.append(side)
    return {"rows": rows, "missing": missing}


def _medians(results: list[Any]) -> dict[str, Any]:
    """Of seconds, or of the numbers in dicts and named tuples."""
    one = results[0]
    if isinstance(one, int | float):
        return {"seconds": median(results)}
    each = [result if isinstance(result, Mapping) else result._asdict() for result in results]
    return {key: median(r[key] for r in each) for key, value in each[0].items() if isinstance(value, int | float)}


def compared(turns: list[tuple[float, float]]) -> dict[str, float]:
    """Median seconds of both sides, and the median over the turns of ours / other."""
    ours, other = zip(*turns, strict=True)
    return {
        "seconds": median(ours),
        "other_seconds": median(other),
        "ratio": median(one / two for one, two in turns),
    }


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


def goal(what: str, measured: float, limit: float, at_least: bool = False) -> dict[str, Any]:
    """A figure beside what it should be at most, or at least."""
    met = measured >= limit if at_least else measured <= limit
    return {"what": what, "measured": measured, "at_least" if at_least else "at_most": limit, "met": met}


def machine() -> dict[str, Any]:
    """Where the figures come from; a load above 0 before the run means that others worked too."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }
