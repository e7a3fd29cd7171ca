"""Tools of this project, each run in processes of its own, forked from one that has imported what takes seconds.

What only a fresh start can show is seen by the tests that start Python: of the tutorial, of launchers, of mistakes.
"""

import faulthandler
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")  # of two ranks, in fresh processes
SECONDS = 600  # far more than anything takes, also on a busy machine: what has not ended then, hangs
AT_ONCE = "from scaleup.sweeps import costs; costs.waves = lambda recipe, arms, *_: [arms]"  # a plan takes seconds

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["support.preload"])


class Running:
    """A tool that runs: one process, or one for each rank, each the first of a group of its own."""

    def __init__(
        self,
        command: list[str],
        ranks: int = 1,
        stdin: bytes = b"",
        before: str = "",
        place: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
        ignored: Sequence[int] = (),
    ) -> None:
        self.command, self.directory = command, Path(tempfile.mkdtemp(prefix="tool-"))
        self.files = [self.directory / stream for stream in ("stdin", "stdout", "stderr")]
        self.files[0].write_bytes(stdin)
        together = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
        self.processes = [
            process(
                _run_tool,
                (command, self.files, str(place or Path.cwd())),
                dict(os.environ if environment is None else environment)
                | (together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
                before,
                ignored,
            )
            for rank in range(ranks)
        ]

    @property
    def pids(self) -> list[int]:
        return [each.pid for each in self.processes]  # type: ignore[misc]

    @property
    def alive(self) -> bool:
        return all(each.exitcode is None for each in self.processes)

    def send(self, number: signal.Signals) -> None:
        """A signal to all processes of the job, as schedulers and terminals send them."""
        for pid in self.pids:
            os.killpg(pid, number)

    def wait(self, seconds: float = SECONDS) -> subprocess.CompletedProcess:
        """What it printed, and the first exit code that is not 0."""
        codes = self.codes(seconds)
        if None in codes:
            for each in self.processes:
                each.kill()
            raise TimeoutError(f"{self.command} takes longer than {seconds} s: {self.files[2].read_text()[-2000:]}")
        stdout, stderr = (file.read_text() if file.exists() else "" for file in self.files[1:])
        shutil.rmtree(self.directory)
        return subprocess.CompletedProcess(self.command, next(filter(None, codes), 0), stdout, stderr)

    def codes(self, seconds: float = SECONDS) -> list[int | None]:
        """The exit codes; None of a process that does not end."""
        end = time.monotonic() + seconds
        for each in self.processes:
            each.join(max(end - time.monotonic(), 0))
        return [each.exitcode for each in self.processes]


def start(name: str, *args: object, ranks: int = 1, stdin: bytes = b"", before: str = "") -> Running:
    """Begin ``tools/NAME.py ARGS`` in this directory, with this environment.

    Args:
        before: lines of Python that are executed first, which make something fail, or take less time.
    """
    return Running([str(TOOLS / f"{name}.py"), *map(str, args)], ranks, stdin, before)


def tool(name: str, *args: object, ranks: int = 1, stdin: bytes = b"", before: str = "") -> subprocess.CompletedProcess:
    """``tools/NAME.py ARGS`` in this directory, with this environment."""
    return start(name, *args, ranks=ranks, stdin=stdin, before=before).wait()


def script(code: str, *args: object, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """What ``python -c CODE ARGS`` does, where nothing has to be imported anew."""
    return Running(["-c", code, *map(str, args)], stdin=stdin).wait()


def left(session: int | None, named: str = "") -> list[int]:
    """The processes of a session, or with ``named`` in their command, that do not end; they are killed."""
    end = time.monotonic() + 10
    while (found := [int(at.name) for at in Path("/proc").glob("[0-9]*") if _is_of(at, session, named)]) and (
        time.monotonic() < end
    ):
        time.sleep(0.1)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return found


def _is_of(at: Path, session: int | None, named: str) -> bool:
    try:
        state, _, _, theirs = (at / "stat").read_text().rpartition(")")[2].split()[:4]
        command = (at / "cmdline").read_text()
    except OSError:
        return False
    return state != "Z" and (int(theirs) == session or bool(named) and named in command)


def process(
    function: Callable,
    args: tuple,
    environment: Mapping[str, str],
    before: str = "",
    ignored: Sequence[int] = (),
) -> ForkServerProcess:
    """A process forked from the one that has imported everything; it begins with signals ignored, as by its parent."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [path])])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)
    made = forked.Process(target=_begin, args=(function, args, dict(environment), before, ignored))
    made.start()
    return made


def fork_server() -> None:
    """Let tools be forked from a process that is itself forked from this one, and imports nothing a second time."""
    for name in ("support.preload", "peft", "matplotlib.pyplot"):
        import_module(name)
    resource_tracker.ensure_running()
    with mock.patch.object(util, "spawnv_passfds", _serve):
        forkserver.ensure_running()


def _serve(_: str, args: list, files: Sequence[int]) -> int:
    """Do in a forked process what Python would do if it were started with these arguments; returns its id."""
    if pid := os.fork():
        return pid
    try:
        faulthandler.disable()
        for first, last in pairwise([2, *sorted(files), os.sysconf("SC_OPEN_MAX")]):
            os.closerange(first + 1, last)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: PTH123, SIM115
        exec(args[-1], {})
    finally:
        os._exit(0)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return str(probe.getsockname()[1])


def _begin(function: Callable, args: tuple, environment: dict[str, str], before: str, ignored: Sequence[int]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.set_start_method(None, force=True)  # as where no test has begun the tool
    os.environ.clear()
    os.environ.update(environment)
    exec(before, {})
    function(*args)


def _run_tool(command: list[str], files: list[Path], directory: str) -> None:
    for number, (file, how) in enumerate(zip(files, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        os.dup2(os.open(file, how | os.O_APPEND | os.O_CREAT), number)
    sys.stdin = open(0, closefd=False)  # noqa: PTH123, SIM115  multiprocessing has closed it
    os.chdir(directory)
    how, *rest = command
    sys.argv = {"-m": rest, "-c": ["-c", *rest[1:]]}.get(how, command)
    try:
        if how == "-c":
            exec(rest[0], vars(sys.modules["__main__"]))
        else:
            (runpy.run_module if how == "-m" else runpy.run_path)(sys.argv[0], run_name="__main__")
    finally:
        if "RANK" in os.environ:  # Python would, at its end
            from scaleup.common.distributed import leave

            leave()
