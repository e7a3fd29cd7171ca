"""Work spread over processes ends, whatever happens to them; what hangs is killed by the test."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, time
from multiprocessing.connection import Connection
from scaleup.common import processes as parallel
from scaleup.common.errors import UserError

parallel.PATIENCE = 0.2

def killed(number):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number

def killed_while_it_hands_over(number):
    def half(self, content, write=os.write):
        os.write(self.fileno(), bytes(content)[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        Connection._send = half
    return bytes(1000)

def long(number):
    time.sleep(600 * (number > 0))

def consumed(function):
    for _ in parallel.parallel(function, range(20), 2):
        if function is long:
            raise UserError("the disk is full")

try:
    consumed({})
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("killed", "one of 2 processes was killed; most likely the machine has no memory left"),
        ("killed_while_it_hands_over", "one of 2 processes was killed"),
        ("long", "the disk is full"),
    ],
)
def test_what_is_spread_ends(function: str, said: str) -> None:
    """Where a process is killed, or what they gave cannot be used while they are at long tasks."""
    command = [sys.executable, "-c", SCRIPT.format(function)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "") and said in done.stdout
