"""Where shards are: a directory of this machine, or an address that fsspec knows, such as https:// or s3://."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

MAX_OPEN = 64  # files; shards are read a few at a time
TRIES = 3  # of a request, before a sample is taken to be unreadable
PAUSE = 0.2  # seconds between two of them


class Directory:
    """Files of this machine, opened where they are first read, so that it may be forked and pickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[str, BinaryIO] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_open": {}}

    def whole(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def part(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``, fewer at the end of the file; OSError."""
        if name not in self._open:
            if len(self._open) == MAX_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[name] = (self.path / name).open("rb")
        return os.pread(self._open[name].fileno(), size, offset)  # no file position, so forks may share the file

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """The file on this machine; FileNotFoundError."""
        if not (self.path / name).is_file():
            raise FileNotFoundError(name)
        yield self.path / name


class Remote:
    """Objects below an address; every read is one request for just its bytes."""

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")

    def whole(self, name: str) -> bytes:
        return self._asked(name, lambda files, address: files.cat_file(address))

    def part(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; OSError after a few tries."""
        return self._asked(name, lambda files, address: files.cat_file(address, start=offset, end=offset + size))

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A temporary copy of the file on this machine; OSError after a few tries."""
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / name
            self._asked(name, lambda files, address: files.get_file(address, str(copy)))
            yield copy

    def _asked(self, name: str, request: Callable[[Any, str], Any]) -> Any:
        for left in reversed(range(TRIES)):
            try:
                # Looked up in this process: forks share no socket.
                return request(*fsspec.core.url_to_fs(f"{self.path}/{name}"))
            except FileNotFoundError:
                raise
            except (ImportError, ValueError) as error:  # the protocol's own package is not there, or no such protocol
                raise OSError(f"{error}") from None
            except Exception as error:  # every protocol has its own
                if not left:
                    raise OSError(f"{type(error).__name__} {error}") from None
                time.sleep(PAUSE)
        raise AssertionError


Storage = Directory | Remote


def storage(path: str | Path) -> Storage:
    """What reads the files of ``path``."""
    return Remote(str(path)) if "://" in str(path) else Directory(Path(path))
