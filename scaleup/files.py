"""Results that appear whole or not at all: written beside their place under another name, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scaleup.errors import UserError


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Refuse to write over something, before any work is done."""
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; give another --out, or --overwrite")


@contextmanager
def new_directory(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A directory to fill, which takes the place of ``out`` when the block ends well and vanishes when it does not."""
    out = Path(out)
    refuse_existing(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(out):
            temporary.mkdir()
            yield temporary
        _replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden place into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG):
            raise UserError(f"{out} could not be written: {os.strerror(error.errno)}; nothing was left behind") from error
        raise


def _replace(temporary: Path, out: Path) -> None:
    if out.exists():
        old = out.with_name(f".{out.name}.{os.getpid()}.old")
        out.rename(old)
        temporary.rename(out)
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    else:
        temporary.rename(out)
