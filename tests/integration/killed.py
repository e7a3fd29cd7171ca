"""A script that runs a tool in forked ranks and kills them with SIGKILL at random points, until one run gets through.

What takes seconds to import is imported once, before the forks. Prints one JSON object: the steps resumed at.
"""

import argparse
import json
import os
import random
import runpy
import signal
import socket
import sys
import time
from importlib import import_module
from pathlib import Path

from scaleup.training import engine, run

assert run and engine._deepspeed()  # imported here, not in each rank
import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # ZeRO does, and it takes seconds


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return str(probe.getsockname()[1])


def start(tool: list[str], rank: int, ranks: int, port: str, log: Path) -> int:
    """Fork a rank; returns its process id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if ranks > 1:
            address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)} | address
        sys.argv = tool
        runpy.run_path(tool[0], run_name="__main__")
    except SystemExit as done:
        code = done.code
    finally:
        sys.stderr.flush()
        os._exit(code)


def lines(out: Path) -> int:
    return sum(
        path.read_text().count("\n") for path in (*out.glob("metrics.jsonl"), *out.glob("parts/*/metrics.jsonl"))
    )


def exit_code(pid: int, seconds: float = 60) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    raise AssertionError("a rank hangs after another one died")


def kill(pids: list[int], out: Path, source: random.Random) -> None:
    """Kill all ranks while they start, or one of them some steps on: then the others must end by themselves."""
    victims = pids
    if source.random() < 0.2:
        time.sleep(source.uniform(0, 1))
    else:
        victims = [source.choice(pids)]
        goal, end = lines(out) + source.randint(1, 3), time.monotonic() + 30
        while lines(out) < goal and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(source.uniform(0, 0.06))
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    codes = {pid: exit_code(pid) for pid in pids}
    assert all(codes[pid] == -signal.SIGKILL for pid in victims), "the run got through before it was killed: add steps"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--ranks", type=int, default=1)
    args, tool = parser.parse_known_args()
    source, log = random.Random(args.ranks), args.out.with_suffix(".log")

    def ranks() -> list[int]:
        port = free_port()
        return [start(tool, rank, args.ranks, port, log) for rank in range(args.ranks)]

    for _ in range(args.kills):
        kill(ranks(), args.out, source)
    codes = [exit_code(pid, 240) for pid in ranks()]
    assert not any(codes), f"the last start ended with {codes}:\n{log.read_text()[-2000:]}"
    resumed = [int(line.split()[3]) for line in log.read_text().splitlines() if line.startswith("resuming at step")]
    print(json.dumps({"resumed": resumed}))


if __name__ == "__main__":
    main()
