"""What is known of errors that are not our own: of the machine, its memory, its disks, and processes that ended."""

from __future__ import annotations

import errno
import os
import re

from scaleup.errors import UserError

LESS = "fewer loader processes (data.workers, --workers) and a smaller batch (data.batch, --batch) need less"
DISK = "free some of it and start again"
SHARED = (
    "set data.workers=0 (--workers 0) or a smaller batch, or give more of it (containers: --shm-size=8g; elsewhere: "
    "mount -o remount,size=8g /dev/shm)"
)
HOST = f"the machine has no memory left; {LESS}"
OF_OS = {
    errno.ENOSPC: f"the disk is full; {DISK}",
    errno.EDQUOT: f"no more may be written to this disk, its quota is used up; {DISK}",
    errno.EACCES: "it is not for this user to read or write",
    errno.EPERM: "it is not for this user to read or write",
    errno.EROFS: "its file system is read-only",
    errno.EIO: "its disk or file system fails",
    errno.ESTALE: "its file system has gone; start again when it is back",
    errno.ENOTCONN: "its file system has gone; start again when it is back",
    errno.ENOMEM: HOST,
    errno.EMFILE: "too many files are open; allow more (ulimit -n 65536) or use fewer loader processes",
    errno.ENFILE: "too many files are open on this machine",
    errno.EAGAIN: "no more processes may be started here (ulimit -u, or the limit of the container)",
    errno.EPIPE: "what read the output has gone",
}
DEVICE = (
    "the device has no memory left; a smaller batch (data.batch, --batch), train.accumulate, "
    "arm.grad_checkpointing=true and trunk.placement=host need less"
)
LOADER = r"DataLoader worker \(pid\S* ([\d, ]+)\) "  # of torch
OF_TEXT = [  # the first that is found tells most
    (
        r"shared memory.*No space left|</torch_\w+>|signal: Bus error",
        f"shared memory (/dev/shm) is too small; {SHARED}",
    ),
    (LOADER + "is killed by signal: Killed", f"loader process {{}} was killed, most likely because {HOST}"),
    (LOADER + r"is killed by signal: (\w[\w ]*)", "loader process {} was ended by a signal: {}"),
    (LOADER + "exited unexpectedly", f"loader process {{}} has ended; if it said nothing of it, most likely {HOST}"),
    ("DefaultCPUAllocator|can't allocate memory|Cannot allocate memory", HOST),
    ("out of memory|CUBLAS_STATUS_ALLOC_FAILED", DEVICE),
    ("can't start new thread", OF_OS[errno.EAGAIN]),
    ("No space left on device|os error 28", OF_OS[errno.ENOSPC]),
    (r"Too many open files|received \d+ items of ancdata", OF_OS[errno.EMFILE]),
]


def sentence(error: BaseException) -> str | None:
    """What to tell people of an error; None of one whose cause is not known, which is for its traceback to tell."""
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


def _of_text(text: str) -> str | None:
    text = " ".join(text.split())
    for pattern, told in OF_TEXT:
        if found := re.search(pattern, text):
            return told.format(*found.groups()) + f" ({text[:200].rstrip('. ')})"
    return None
