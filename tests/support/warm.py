"""A ``python`` that gives tools, ranks and jobs of submitit to :mod:`support.tools`, and all else to Python.

What it starts hears the signals that are sent to it, and ends with it.
"""

import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from support.tools import Running

CLIENT = """
import json, os, signal, socket, sys

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGUSR2

def forward(number, _):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    server.sendall(json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ), ignored]).encode() + b"\\n")
    answers = server.makefile()
    pids = json.loads(answers.readline())
    for number in SIGNALS:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    code, out, err = json.loads(answers.readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.stdout.flush()
sys.stderr.flush()
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""
PYTHON = """#!/bin/sh
case "$*" in
"-u -m submitit"*|"-u "*.py*) shift ;;
"-m torch.distributed.run"*|*.py*) ;;
*) exec '{python}' "$@" ;;
esac
exec '{python}' -I -S '{client}' '{address}' "$@"
"""


@contextmanager
def warm_python(directory: Path, before: str = "") -> Iterator[Path]:
    """Put ``python`` into a directory; it serves as long as the block lasts, and executes ``before`` first in all that
    it forks."""
    directory.mkdir()
    client, address, python = (directory / name for name in ("client.py", "socket", "python"))
    client.write_text(CLIENT)
    python.write_text(PYTHON.format(python=sys.executable, client=client, address=address))
    python.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        Thread(target=_serve, args=(listener, before), daemon=True).start()
        yield python


def _serve(listener: socket.socket, before: str) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # it is closed
            return
        Thread(target=_answer, args=(connection, before), daemon=True).start()


def _answer(connection: socket.socket, before: str) -> None:
    with connection, connection.makefile("rw") as asked:
        command, place, environment, ignored = json.loads(asked.readline())
        running = Running(command, before=before, place=place, environment=environment, ignored=ignored)
        with suppress(BrokenPipeError):
            _tell(asked, running.pids)
            over = Event()
            Thread(target=_end_with, args=(connection, running, over), daemon=True).start()
            done = running.wait()
            over.set()
            _tell(asked, [done.returncode, done.stdout, done.stderr])


def _tell(asked: Any, content: Any) -> None:
    asked.write(json.dumps(content) + "\n")
    asked.flush()


def _end_with(connection: socket.socket, running: Running, over: Event) -> None:
    """Kill what was started where nobody waits for it any more."""
    with suppress(OSError):
        if not connection.recv(1) and not over.is_set():
            running.send(signal.SIGKILL)
