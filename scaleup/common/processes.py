"""Processes that work for another, the main one: they end with it, however it ends."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import NoReturn
from weakref import WeakSet

_known: WeakSet[BaseProcess] = WeakSet()  # those of this process that end when Python does


def follow(*ignored: signal.Signals) -> None:
    """To be called in a process that works for another: leave signals that are sent to all processes of a job to the
    main one, and end a second after it at most."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    parent, main = os.getppid(), multiprocessing.parent_process()

    def watch() -> None:
        while os.getppid() == parent and (main is None or main.is_alive()):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def end_with_python() -> Iterator[None]:
    """The processes that begin in the block are killed when Python ends. It would ask them by SIGTERM, which those that
    :func:`follow` may ignore, and wait for them for ever."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        _known.update(set(multiprocessing.active_children()) - before)
        _kill_known_at_exit(os.getpid())


@functools.cache
def _kill_known_at_exit(_: int) -> None:
    Finalize(None, lambda: _kill(_known), exitpriority=0)  # once in each process: forks do not inherit it


def _kill(processes: WeakSet[BaseProcess] | list[BaseProcess]) -> None:
    with suppress(ValueError):  # not the main thread, which alone is told of the deaths
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would take them for failures
    for process in processes:
        with suppress(ValueError):  # it is closed
            process.kill()


def leave(code: int) -> NoReturn:
    """End this process, and kill those that it began. What Python does when it ends would wait for threads and
    processes that may never answer."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    try:
        _kill(multiprocessing.active_children())
    finally:
        os._exit(code)
