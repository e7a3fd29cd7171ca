"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scaleup.common.eta import Rate

console = Console(stderr=True)  # stdout belongs to results


def speaks() -> bool:
    """Whether this process prints: of several that run together, the first does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr with elapsed and remaining time; yields ``advance(steps=1, note="")``.

    Off a terminal one plain line stands for every tenth part, so that logs stay short. Steps that an earlier run did
    are given in the first call.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
        TextColumn("{task.fields[note]}"),
    )
    rate, tenth, leads = Rate(), max(1, total // 10), speaks()
    with Progress(*columns, console=console, disable=not (console.is_terminal and leads)) as bars:
        task = bars.add_task(title, total=total, eta="", note="")

        def advance(steps: int = 1, note: str = "") -> None:
            before = bars.tasks[0].completed
            rate.count(steps)
            done = before + steps
            eta = rate.eta(total - done)
            bars.update(task, advance=steps, eta=eta, note=note)
            if leads and not console.is_terminal and int(before // tenth) != int(done // tenth):
                print(f"{title}: {done:.0f}/{total} {eta} {note}".rstrip(), file=sys.stderr)

        yield advance
