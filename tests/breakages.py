#!/usr/bin/env python
"""Break the package on purpose, one line at a time, and see that a test goes red: tests/breakages.md.

Usage: python tests/breakages.py 12 40-45    python tests/breakages.py all    (--mark: write down what was seen)

The tree is copied to a temporary directory and broken there; the tree itself stays as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "tests" / "breakages.md"
LINE = re.compile(r"(\d+)\. `(.+?)`: `(.+?)` => `(.+?)`: `(.+?)`(, seen red)?", re.M)
HEAVY = ("pytest", "torch", "timm", "peft", "deepspeed")  # imported once; scaleup is not, which is what changes
SECONDS, GREEN = 300, "GREEN: nobody noticed"


class Breakage(NamedTuple):
    number: int
    file: str
    old: str
    new: str
    test: str


def breakages() -> list[Breakage]:
    return [Breakage(int(number), *rest) for number, *rest, _ in LINE.findall(PAGE.read_text())]


@contextlib.contextmanager
def copy() -> Iterator[Path]:
    """A copy of the files of the tree, those too that git does not know yet."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as place:
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(place) / name)
        yield Path(place)


def outcome(breakage: Breakage, place: Path) -> str:
    """``red``, as it should be; else what came of it."""
    if (whole := before(breakage.test, place)) != GREEN:
        return f"nothing is broken yet, and the test is not green: {whole}"
    file = place / breakage.file
    text = file.read_text()
    if text.count(breakage.old) != 1:
        return f"the line is there {text.count(breakage.old)} times"
    file.write_text(text.replace(breakage.old, breakage.new))
    try:
        return tried(breakage.test, place)
    finally:
        file.write_text(text)


@functools.cache
def before(test: str, place: Path) -> str:
    return tried(test, place)


def tried(test: str, place: Path) -> str:
    """What a test comes to, as make test would run it, in a process forked from this one."""
    log = place / "breakage.log"
    if not (child := os.fork()):
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.chdir(place)
        os.environ |= {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path.insert(0, str(place))
        pytest = import_module("pytest")
        options = ["-x", "-q", "-m", "not slow and not all", "-p", "no:cacheprovider"]
        os._exit(pytest.main([*test.split(), *options]))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            codes = {0: GREEN, 1: "red"}
            return codes.get(code := os.waitstatus_to_exitcode(status), f"pytest ended with {code}: {tail(log)}")
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"hangs for {SECONDS} s"


def tail(log: Path) -> str:
    return " ".join(log.read_text().split())[-300:]


def chosen(words: Iterable[str]) -> Iterator[int]:
    for word in words:
        first, dash, last = word.partition("-")
        yield from range(int(first), int(last if dash else first) + 1)


def mark(number: int, red: bool) -> None:
    lines = PAGE.read_text().splitlines(keepends=True)
    for index, line in enumerate(lines):
        if line.startswith(f"{number}. "):
            lines[index] = line.rstrip("\n").removesuffix(", seen red") + (", seen red" if red else "") + "\n"
    PAGE.write_text("".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="+", help="such as 12, 40-45, or all")
    parser.add_argument("--mark", action="store_true", help="note in the list which were seen red")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            import_module(name)
    everything = breakages()
    wanted = {each.number for each in everything} if args.numbers == ["all"] else set(chosen(args.numbers))
    missed = 0
    with copy() as place:
        for breakage in everything:
            if breakage.number in wanted:
                began, found = time.monotonic(), outcome(breakage, place)
                print(f"{breakage.number}. {breakage.file}: {found} ({time.monotonic() - began:.0f} s)", flush=True)
                missed += found != "red"
                if args.mark:
                    mark(breakage.number, found == "red")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
