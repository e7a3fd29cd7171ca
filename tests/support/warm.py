"""A ``python`` that gives tools and jobs of submitit to :mod:`support.tools`, and all else to Python."""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from support.tools import Running

CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    server.sendall(json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    code, out, err = json.loads(server.makefile().read())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""
PYTHON = """#!/bin/sh
case "$1 $2 $3" in
tools/*.py*) exec '{python}' -I -S '{client}' '{address}' "$@" ;;
"-u -m submitit"*) shift; exec '{python}' -I -S '{client}' '{address}' "$@" ;;
*) exec '{python}' "$@" ;;
esac
"""


@contextmanager
def warm_python(directory: Path) -> Iterator[None]:
    """Put ``python`` into a directory; it serves as long as the block lasts."""
    directory.mkdir()
    client, address, python = (directory / name for name in ("client.py", "socket", "python"))
    client.write_text(CLIENT)
    python.write_text(PYTHON.format(python=sys.executable, client=client, address=address))
    python.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        Thread(target=_serve, args=(listener,), daemon=True).start()
        yield


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # it is closed
            return
        Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection, connection.makefile("rw") as asked:
        command, place, environment = json.loads(asked.readline())
        done = Running(command, place=place, environment=environment).wait()
        json.dump([done.returncode, done.stdout, done.stderr], asked)
