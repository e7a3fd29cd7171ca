"""Processes: how child processes end, parallel work, causes of errors as sentences, and the machine."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import platform
import re
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import NoReturn, TypeVar
from weakref import WeakSet

from scaleup.common.errors import UserError

_known: WeakSet[BaseProcess] = WeakSet()  # child processes that are killed when Python ends


def follow(*ignored: signal.Signals) -> None:
    """Called in a child process: ignore signals that are sent to all processes of a job, because the main process
    handles them, and end at most a second after the main process."""
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
    """Kill the processes that start in this block when Python ends. Python itself would send SIGTERM, which
    :func:`follow` may ignore, and would wait for them for ever."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        _known.update(set(multiprocessing.active_children()) - before)
        _kill_known_at_exit(os.getpid())


@functools.cache
def _kill_known_at_exit(_: int) -> None:
    Finalize(None, lambda: _kill(_known), exitpriority=0)  # once in each process, because forks do not inherit it


def _kill(processes: WeakSet[BaseProcess] | list[BaseProcess]) -> None:
    with suppress(ValueError):  # only the main thread may set it
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would treat them as failures
    for process in processes:
        with suppress(ValueError):  # it is closed
            process.kill()


def end_all(code: int) -> NoReturn:
    """Kill the child processes and end this one at once. A normal end of Python would wait for threads and processes
    that may never end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    try:
        _kill(multiprocessing.active_children())
    finally:
        os._exit(code)


PACKAGES = ("scaleup", "torch", "timm", "open_clip_torch", "deepspeed", "peft", "webdataset", "av")


def environment() -> dict[str, str]:
    """Python, platform, processor or accelerator, and versions of the libraries."""
    import torch  # takes seconds, and tools import this module first

    device = torch.accelerator.current_accelerator(check_available=True)
    name = torch.cuda.get_device_name() if device is not None and device.type == "cuda" else str(device or "cpu")
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    about = {"python": platform.python_version(), "platform": platform.platform(), "device": f"{name}, {cores}"}
    return about | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    """The version of a package; it may be imported from a checkout, without an installation."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def cpu_facts() -> str:
    """What Linux says of the processors; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


LESS = "use fewer loader processes (data.workers, --workers) or a smaller batch (data.batch, --batch)"
DISK = "free some space and start again"
SHARED = (
    "set data.workers=0 (--workers 0) or a smaller batch, or make it larger (containers: --shm-size=8g; elsewhere: "
    "mount -o remount,size=8g /dev/shm)"
)
HOST = f"the machine has no memory left; {LESS}"
OF_OS = {
    errno.ENOSPC: f"the disk is full; {DISK}",
    errno.EDQUOT: f"the disk quota is used up; {DISK}",
    errno.EACCES: "this user may not read or write it",
    errno.EPERM: "this user may not read or write it",
    errno.EROFS: "its file system is read-only",
    errno.EIO: "its disk or file system has an error",
    errno.ESTALE: "its file system is gone; start again when it is back",
    errno.ENOTCONN: "its file system is gone; start again when it is back",
    errno.ENOMEM: HOST,
    errno.EMFILE: "too many files are open; allow more (ulimit -n 65536) or use fewer loader processes",
    errno.ENFILE: "too many files are open on this machine",
    errno.EAGAIN: "no more processes can be started here (ulimit -u, or the limit of the container)",
    errno.EPIPE: "the program that read the output has ended",
}
DEVICE = (
    "the device has no memory left; use a smaller batch (data.batch, --batch) or keep frozen blocks on the host "
    "(trunk.placement=host, --placement host)"
)
FULL = "out of memory|STATUS_ALLOC_FAILED"  # of torch's allocator, of CUDA, of its libraries
LOADER = r"DataLoader worker \(pid\S* ([\d, ]+)\) "  # torch's message
OF_TEXT = [  # pattern in an error's text -> cause; the first match counts
    (
        r"shared memory.*No space left|</torch_\w+>|signal: Bus error",
        f"shared memory (/dev/shm) is too small; {SHARED}",
    ),
    (LOADER + "is killed by signal: Killed", f"loader process {{}} was killed, most likely because {HOST}"),
    (LOADER + r"is killed by signal: (\w[\w ]*)", "loader process {} was ended by a signal: {}"),
    (LOADER + "exited unexpectedly", f"loader process {{}} has ended; if it printed no cause, most likely {HOST}"),
    ("DefaultCPUAllocator|can't allocate memory|Cannot allocate memory", HOST),
    (FULL, DEVICE),
    (
        "does not have a deterministic implementation",
        "the model has an operation without a deterministic algorithm on a GPU; set train.deterministic=false",
    ),
    (
        "no kernel image is available",
        "this torch has no programs for this GPU; install one that has, or compute on the CPU (CUDA_VISIBLE_DEVICES=)",
    ),
    ("can't start new thread", OF_OS[errno.EAGAIN]),
    ("No space left on device|os error 28", OF_OS[errno.ENOSPC]),
    (r"Too many open files|received \d+ items of ancdata", OF_OS[errno.EMFILE]),
]


def explain(error: BaseException) -> str | None:
    """The cause of an error as a sentence; None if the cause is not known, so that a traceback is needed."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return HOST
    if isinstance(error, OSError) and error.errno in OF_OS:
        place = f"'{error.filename}': " if error.filename else ""
        return f"{place}{os.strerror(error.errno)}: {OF_OS[error.errno]}"
    if isinstance(error, RuntimeError | OSError) or type(error).__name__ == "SafetensorError":
        return _of_text(str(error.__cause__)) or _of_text(str(error))  # torch: "exited", because of "killed"
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error says that memory of a device, or that it shares with the host, is used up."""
    return isinstance(error, RuntimeError) and re.search(FULL, str(error)) is not None


def _of_text(text: str) -> str | None:
    text = " ".join(text.split())
    for pattern, told in OF_TEXT:
        if found := re.search(pattern, text):
            return told.format(*found.groups()) + f" ({text[:200].rstrip('. ')})"
    return None


T = TypeVar("T")
R = TypeVar("R")
PATIENCE = 5.0  # seconds
KILLED = "the machine has no memory left; use fewer processes (--processes)"


def parallel(
    function: Callable[[T], R],
    tasks: Iterable[T],
    processes: int | None = None,
    context: BaseContext | None = None,
) -> Generator[R, None, None]:
    """``map`` over ``processes`` processes (default: one per core). Only a few results are computed in advance.

    Args:
        context: how processes start; a process that has computed with torch is not to be forked.

    Raises:
        UserError: one of the processes was killed.
    """
    processes = processes or os.cpu_count() or 1
    if processes == 1:
        yield from map(function, tasks)
        return
    pool = ProcessPoolExecutor(processes, context, initializer=follow, initargs=(signal.SIGINT,))
    pending: deque[Future[R]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > 3 * processes:
                yield _result(pool, pending.popleft())
        while pending:
            yield _result(pool, pending.popleft())
    except BrokenProcessPool as error:
        _kill_pool(pool)
        raise UserError(f"one of {processes} processes was killed; most likely {KILLED}") from error
    except BaseException:
        _kill_pool(pool)  # their results are not needed any more
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(pool: ProcessPoolExecutor, future: Future[R]) -> R:
    """The result of ``future``. (A pool does not notice a process that was killed while it sent a result.)"""
    while not wait([future], PATIENCE).done:
        if not all(process.is_alive() for process in pool._processes.values()):
            raise BrokenProcessPool
    return future.result()


def _kill_pool(pool: ProcessPoolExecutor) -> None:
    # Otherwise the pool would wait for the rest of a half-sent result.
    pool._result_queue._writer.close()  # type: ignore[attr-defined]
    for process in list(pool._processes.values()):
        process.kill()
