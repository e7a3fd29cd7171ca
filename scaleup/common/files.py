"""Files and directories that get their name only when they are complete; locks between processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import IO, Any

from scaleup.common.errors import UserError

LAST = {".json", ".yaml"}  # moved last: index, config, manifest or recipe show that a directory is complete
UNKNOWN = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}  # not supported by a file system
PATIENCE = 5.0  # seconds to wait for a lock; processes of a killed run end about a second after it
HALF = ".half"  # ends the name of a directory that is being written
_without_locks: set[int] = set()  # file systems without locks, for which a warning was printed


def refuse_existing(out: Path, overwrite: bool) -> None:
    """UserError if ``out`` exists and ``overwrite`` is not set. It is called before any work is done, and again before
    ``out`` is replaced."""
    if out.exists() and not overwrite:
        raise UserError(
            f"'{out}' exists, and going on with it is not possible; name another, or overwrite it (--overwrite)"
        )
    if overwrite and real(out) in (here := Path.cwd(), *here.parents):
        raise UserError(f"'{out}' would take the place of the directory in which this runs; name another")


@contextmanager
def new_directory(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory, which is renamed to ``out`` when the block ends, and removed if the block fails.

    Raises:
        UserError: ``out`` exists and ``overwrite`` is not set, or it cannot be written.
    """
    out = Path(out)
    refuse_existing(out, overwrite)
    try:
        with _half_directory(real(out)) as half:
            yield half
            refuse_existing(out, overwrite)  # it may be there by now
            swap_in(half, out)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}") from error


@contextmanager
def _half_directory(place: Path) -> Iterator[Path]:
    """A new directory beside ``place``, locked for this process, and removed at the end unless it was renamed.

    Those that killed processes have left there are removed before.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{escape(place.name)}-*{HALF}"):
        _remove_abandoned(left)
    half = Path(tempfile.mkdtemp(HALF, f".{place.name}-", place.parent))
    try:
        with _opened(half) as number:
            with suppress(OSError):  # where there are no locks, nothing counts as abandoned
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield half
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _remove_abandoned(half: Path) -> None:
    """Remove a directory that no process has locked, unless it is so new that its process may not have come to it."""
    with suppress(OSError), _opened(half) as number:
        if time.time() - half.stat().st_mtime > PATIENCE:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(half)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """The number under which the system has a directory open."""
    number = os.open(directory, os.O_RDONLY)
    try:
        yield number
    finally:
        os.close(number)


@contextmanager
def partial_directory(out: Path, plan: str) -> Iterator[Path]:
    """The directory ``.OUT.partial``, locked for this process. It is renamed to ``out`` when the block ends.

    If the block is interrupted, the content stays for the next call with the same ``plan``. With another plan the
    directory is emptied.

    Args:
        plan: a text that contains everything that the content depends on.

    Raises:
        UserError: another process is writing, or the directory cannot be written.
    """
    directory = partial_name(out)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "plan").open("a+") as file:
            if not locked(file, PATIENCE) or not (directory / "plan").exists():  # another process may have finished it
                raise UserError(f"another process is writing '{out}'")
            file.seek(0)
            if (before := file.read()) != plan:
                if before:
                    print("the files or options have changed: starting again", file=sys.stderr)
                clear_directory(directory, {"plan"})
                file.truncate(0)
                file.write(plan)
                file.flush()
            yield directory
            (directory / "plan").unlink()
            swap_in(directory, out)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}") from error


def partial_name(out: Path) -> Path:
    """Beside ``out``, or beside what it links to."""
    return (out := real(out)).with_name(f".{out.name}.partial")


def real(out: Path) -> Path:
    """The path without links; it need not exist."""
    return Path(os.path.realpath(out))


def clear_directory(directory: Path, names: set[str]) -> None:
    """Remove everything in a directory except ``names``."""
    for path in directory.iterdir():
        if path.name not in names:
            remove(path)


def swap_in(temporary: Path, out: Path) -> None:
    """Rename ``temporary`` to ``out``, or to what it links to. An existing ``out`` is removed only after that."""
    make_readable(temporary)  # mkdtemp made it private
    out, old = real(out), temporary.with_name(temporary.name + "-old")
    if out.exists():
        if old.exists():  # of a call that was killed while it removed this
            remove(old)
        move(out, old)
    move(temporary, out)
    if old.exists():
        remove(old)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def make_readable(path: Path) -> None:
    """Give a private file or directory the usual permissions, if the file system has permissions."""
    with suppress(OSError):  # object stores and network shares may refuse; then nothing is lost
        path.chmod(0o755 if path.is_dir() else 0o644)


def move(path: Path, to: Path) -> None:
    """Rename; if the file system cannot, move file by file. The files that mark a complete directory are moved last."""
    try:
        path.rename(to)
    except OSError:
        if path.is_dir():
            to.mkdir()
            for each in sorted(path.iterdir(), key=lambda each: each.suffix in LAST):
                move(each, to / each.name)
            path.rmdir()
        else:
            shutil.copyfile(path, to)
            path.unlink()


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it cannot be read, is not JSON, or an object in it has a key twice.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_distinct)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({error})") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it has the key {name!r} twice")
    return content


def json_value(result: Any) -> dict[str, Any]:
    """A dataclass as a dict; the field ``class_`` becomes the key ``class``."""
    return asdict(result, dict_factory=lambda pairs: {name.removesuffix("_"): value for name, value in pairs})


@contextmanager
def growing_lines(out: Path, overwrite: bool = False) -> Iterator[Callable[[Any], None]]:
    """A function that writes a dataclass as a line of JSON to ``.OUT.partial``, which becomes ``out`` when the block
    ends, and is removed if it fails.

    Raises:
        UserError: ``out`` exists and ``overwrite`` is not set, or it cannot be written.
    """
    if out.is_dir():
        raise UserError(f"'{out}' is a directory; name a file")
    refuse_existing(out, overwrite)
    partial = partial_name(out)
    try:
        with partial.open("w") as file:
            yield lambda value: print(json.dumps(value, default=json_value), file=file)
        refuse_existing(out, overwrite)  # another may have written it
        partial.replace(real(out))
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # there is none, or there never was a directory for it
            partial.unlink()


def write_json(path: Path, content: Any) -> None:
    """As :func:`write_bytes`, indented."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, content.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a temporary file and rename it to ``path`` when it is complete. Until then an existing file stays."""
    half = path.with_name(f".{path.name}.tmp")
    half.write_bytes(content)
    move(half, path)


def sync(file: int) -> None:
    """Flush a file or directory to the disk (fsync), if the file system can."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise


def locked(file: IO[str], patience: float) -> bool:
    """Lock a file for this process and its forks. False if another process has the lock for ``patience`` seconds.

    The lock ends with the processes that have it. Forks of a killed process may live a little longer than it. If the
    file system has no locks, a warning is printed and the file counts as locked.

    Raises:
        UserError: it cannot be locked for another reason.
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
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise UserError(f"'{file.name}' cannot be locked: {error.strerror}") from error
            _say_no_locks(file)
            return True


def _say_no_locks(file: IO[str]) -> None:
    if (device := os.fstat(file.fileno()).st_dev) not in _without_locks:
        _without_locks.add(device)
        where = f"the file system of '{Path(file.name).parent}'"
        print(f"{where} has no locks: two runs could write to the same place at once", file=sys.stderr)
