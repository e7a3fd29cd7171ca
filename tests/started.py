"""Tools of this project, each run in a process of its own, forked from one that has imported what takes seconds.

What only a fresh start can show is seen by the tests that start Python: of the tutorial, of launchers, of mistakes.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = Path(__file__).parents[1] / "tools"
SECONDS = 240

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["scaleup.evaluation.predictor", "scaleup.evaluate"])


def tool(name: str, *args: object, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """``tools/NAME.py ARGS`` in this directory, with this environment."""
    command = [str(TOOLS / f"{name}.py"), *map(str, args)]
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / stream for stream in ("stdin", "stdout", "stderr")]
        files[0].write_bytes(stdin)
        process = _server.Process(target=_run, args=(command, files, str(Path.cwd()), dict(os.environ)))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{command} takes longer than {SECONDS} s")
        return subprocess.CompletedProcess(command, process.exitcode, *(file.read_text() for file in files[1:]))


def _run(command: list[str], files: list[Path], directory: str, environment: dict[str, str]) -> None:
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = open(0, closefd=False)  # noqa: PTH123, SIM115  multiprocessing has closed it
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
