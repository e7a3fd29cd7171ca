"""Installs scaleup with everything that its tests need, and says how far it is. Run by make.

    python install.py FOLDER [CONSTRAINTS]

FOLDER becomes a virtual environment, and FOLDER/installed is there once it is complete. CONSTRAINTS is a file of
versions; without it the newest are installed.
"""

import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

EVERY = 10  # seconds between two signs of progress
SHOWN = 40  # lines of a pip that failed
START = time.monotonic()


def main(folder: Path, constraints: list[str]) -> int:
    done, python = folder / "installed", str(folder / "bin" / "python")
    print(f"Installing into {folder}: 6 GB; 1 to 4 minutes, more on a busy machine or a slow network.", flush=True)
    if not done.exists() and (code := subprocess.call([sys.executable, "-m", "venv", "--clear", str(folder)])):
        return code
    done.unlink(missing_ok=True)  # until all is there; what is interrupted may lack files and begins anew
    pip = [python, "-m", "pip", "install", "--progress-bar", "off"]  # a bar is no line
    pip += [word for file in constraints for word in ("--constraint", file)]
    for wanted in (["--upgrade", "pip"], ["--editable", ".[dev]"]):
        if code := run([*pip, *wanted], folder):
            print(f"{folder} is not complete. The same command starts again.", file=sys.stderr)
            return code
    done.touch()
    return 0


def run(command: list[str], folder: Path) -> int:
    """The exit code of pip. Its last line is printed now and then; its last lines if it fails."""
    lines: deque[str] = deque(["Starting pip"], maxlen=SHOWN)
    ended = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        threading.Thread(target=report, args=(lines, folder, ended), daemon=True).start()
        assert pip.stdout
        lines.extend(line.strip() for line in pip.stdout if not line.startswith("WARNING: "))
    ended.set()
    if pip.returncode:
        print(*lines, sep="\n", file=sys.stderr)
    return pip.returncode


def report(lines: deque, folder: Path, ended: threading.Event) -> None:
    while not ended.wait(EVERY):
        packages = len(list(folder.glob("lib/*/site-packages/*.dist-info")))
        print(f"{time.monotonic() - START:5.0f} s, {packages:3} packages: {lines[-1][:80]}", flush=True)


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 (nothing has checked it yet)
        sys.exit("scaleup needs Python 3.10 or newer. With another: make PYTHON=python3.12")
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2:3]))
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command starts again.")
