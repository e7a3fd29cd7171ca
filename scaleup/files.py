"""Directories and files that appear under their name only when they are complete, and whose turn it is to write."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from scaleup.errors import UserError


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Refuse to write over something, before any work is done."""
    if out.exists() and not overwrite:
        raise UserError(f"'{out}' exists; give another directory, or overwrite it on purpose (--overwrite)")


@contextmanager
def new_directory(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside ``out`` that takes its name when the block ends, and is removed if it fails.

    Raises:
        UserError: ``out`` exists and ``overwrite`` is not set, or the disk refuses to hold it.
    """
    out = Path(out)
    refuse_existing(out, overwrite)
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        yield temporary
        take_place(temporary, out)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def take_place(temporary: Path, out: Path) -> None:
    """Rename to ``out``; what stood there goes only after its successor is complete."""
    temporary.chmod(0o755)  # mkdtemp made it private
    if not out.exists():
        temporary.rename(out)
        return
    old = out.rename(temporary.with_name(temporary.name + "-old"))
    temporary.rename(out)
    shutil.rmtree(old) if old.is_dir() else old.unlink()


def write_text(path: Path, content: str) -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside its place and put it there when it is whole; what stood there stays until then."""
    half = path.with_name(f".{path.name}.tmp")
    half.write_bytes(content)
    half.replace(path)


def locked(file: IO[str], patience: float) -> bool:
    """Lock a file for this process and those that it forks; False where others hold it for ``patience`` seconds.

    A lock ends with the processes that hold it, however they end; those that a killed one forked outlive it a little.
    """
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
