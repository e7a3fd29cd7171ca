"""A tool that is killed with SIGKILL, until one start gets through."""

import random
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from support.tools import AT_ONCE, SECONDS, Running, start


def killed(
    points: Iterable[int | None], ranks: int, out: Path, name: str, *args: object, before: str = AT_ONCE
) -> list[int]:
    """Start a tool that writes to ``out``, kill it at each of the points, start it once more.

    Args:
        points: numbers of steps that are logged; None: somewhere soon, at random.
        before: see :func:`support.tools.start`.

    Returns: the steps at which it resumed.
    """
    source, said = random.Random(ranks), ""
    for point in points:
        said += kill(start(name, *args, f"out={out}", ranks=ranks, before=before), out, source, point)
    last = start(name, *args, f"out={out}", ranks=ranks, before=before).wait()
    assert last.returncode == 0, f"the last start ended with {last.returncode}:\n{last.stderr[-2000:]}"
    return [int(step) for step in re.findall(r"^resuming at step (\d+)", said + last.stderr, re.M)]


def kill(running: Running, out: Path, source: random.Random, point: int | None) -> str:
    """Kill all ranks while they start, or one of them some steps on: then the others must end by themselves.

    Returns: what they printed.
    """
    victims = running.processes
    if point is None and source.random() < 0.2:
        time.sleep(source.uniform(0, 1))
    else:
        victims = [source.choice(running.processes)]
        goal = lines(out) + source.randint(1, 3) if point is None else point
        end = time.monotonic() + SECONDS
        while lines(out) < goal and time.monotonic() < end and running.alive:
            time.sleep(0.002)
        time.sleep(source.uniform(0, 0.06))
    for victim in victims:
        victim.kill()
    assert None not in running.codes(), "a rank hangs after another one died"
    assert all(each.exitcode == -signal.SIGKILL for each in victims), "it got through before it was killed: add steps"
    return running.wait().stderr


def lines(out: Path) -> int:
    """Steps that are logged, of all parts together."""
    logs = (*out.glob("metrics.jsonl"), *out.glob("parts/*/metrics.jsonl"))
    return sum(path.read_text().count("\n") for path in logs)
