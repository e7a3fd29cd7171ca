"""Work spread over processes, results in order."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def parallel(function: Callable[[T], R], tasks: Iterable[T], processes: int | None = None) -> Iterator[R]:
    """``map`` over ``processes`` processes (default: one a core), never more than a few results ahead."""
    processes = processes or os.cpu_count() or 1
    if processes == 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(processes, initializer=_follow, initargs=(os.getpid(),))
    pending: deque[Future[R]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > 3 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _follow(parent: int) -> None:
    """Leave Ctrl-C to the main process, and end soon after it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
