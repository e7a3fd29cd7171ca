"""Work spread over processes, results in order."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from scaleup.common.processes import follow
from scaleup.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = 5.0  # seconds
KILLED = "the machine has no memory left; fewer of them (--processes) need less"


def parallel(function: Callable[[T], R], tasks: Iterable[T], processes: int | None = None) -> Generator[R, None, None]:
    """``map`` over ``processes`` processes (default: one a core), never more than a few results ahead.

    Raises:
        UserError: one of the processes was killed.
    """
    processes = processes or os.cpu_count() or 1
    if processes == 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(processes, initializer=follow, initargs=(signal.SIGINT,))
    pending: deque[Future[R]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > 3 * processes:
                yield _result(pool, pending.popleft())
        while pending:
            yield _result(pool, pending.popleft())
    except BrokenProcessPool as error:
        _kill(pool)
        raise UserError(f"one of {processes} processes was killed; most likely {KILLED}") from error
    except BaseException:
        _kill(pool)  # what they are at may take long, and nobody wants it any more
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(pool: ProcessPoolExecutor, future: Future[R]) -> R:
    """The pool itself does not notice a process that was killed while it handed over a result."""
    while not wait([future], PATIENCE).done:
        if not all(process.is_alive() for process in pool._processes.values()):
            raise BrokenProcessPool
    return future.result()


def _kill(pool: ProcessPoolExecutor) -> None:
    # Else the pool would wait for the rest of a result that was half handed over.
    pool._result_queue._writer.close()  # type: ignore[attr-defined]
    for process in list(pool._processes.values()):
        process.kill()
