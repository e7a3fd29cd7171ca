"""Shard directories that grow beside their place, a finished tar at a time, and go on where they were cut off."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaleup.common.files import locked
from scaleup.data.shards import file_sha256
from scaleup.errors import UserError

PATIENCE = 5.0  # seconds: processes that read for one that was killed outlive it by one


@contextmanager
def partial_directory(out: Path, plan: str) -> Iterator[Path]:
    """The directory ``.OUT.partial``, this process's alone; emptied if it was begun with another ``plan``, a text of
    everything that its content depends on. What is in it stays when the block is cut off.

    Raises:
        UserError: another process has it, or the disk refuses to hold it.
    """
    partial = partial_name(out)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with (partial / "plan").open("a+") as file:
            if not locked(file, PATIENCE) or not (partial / "plan").exists():  # it may have been finished meanwhile
                raise UserError(f"another process is writing '{out}'")
            file.seek(0)
            if (found := file.read()) != plan:
                if found:
                    print("the files or options have changed: beginning anew", file=sys.stderr)
                clear_partial(partial, {"plan"})
                file.truncate(0)
                file.write(plan)
                file.flush()
            yield partial
    except OSError as error:
        raise UserError(f"'{out}' cannot be written: {error.strerror or error}") from error


def partial_name(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def clear_partial(directory: Path, kept: set[str]) -> None:
    """Remove everything in it but what is called as in ``kept``."""
    for path in directory.iterdir():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def read_finished(directory: Path, number: int) -> dict[str, Any] | None:
    """What is known of shard ``number``, if it is as it was written."""
    try:
        part: dict[str, Any] = json.loads((directory / f"{number:06d}.json").read_bytes())
        if file_sha256(directory / f"{number:06d}.tar") == part["shard"]["sha256"]:
            return part
        print(f"shard {number:06d}.tar is not as it was written; it is made again", file=sys.stderr)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
