"""What is wrong with the arguments of a tool is said before torch is loaded, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from support.tools import SECONDS

TOOLS = Path(__file__).parents[2] / "tools"
MISTAKES = [
    "cache RECIPE arm.frozen_depth=1 --out x --limit lots",
    "check_shards .",
    "evaluate model shards --heads motion",
    "evaluate hub/id shards --record",
    "make_shards nowhere --out x",
    "make_shards shapes --out x --videos train=x",
    "plan RECIPE --memory lots",
    "plan RECIPE arm.frozen_depth=0 --views 2",
    "predict model nowhere.mp4",
    "evaluate model shards --batch 0",
    "predict model x.mp4 --top 0",
    "predict model x.mp4 --hop 0",
    "probe model train test --out .",
    "probe model train test --save x",
    "probe model train test --steps 9",
    "probe model train test --read attentive --out x",
    "report runs --out x --watch 0",
    "sweep RECIPE --machines 2",
    "sweep RECIPE --where local",
    "sweep RECIPE --where local --machines 2 --slurm time=10",
    "train RECIPE --stop-after 2",
    "train RECIPE train.step=2",
    "transplant small vit_h",
    "transplant small vit_h --out x --weights big.pt --random-init",
]
WITHOUT_TORCH = """
import importlib, json, os, runpy, sys

sys.modules["torch"] = None
from scaleup import cli
from scaleup.config import recipe

for verb in cli.VERBS:
    importlib.import_module(f"scaleup.cli.{verb}")
for place, name, *args in json.loads(sys.argv[1]):
    if not os.fork():  # each in a process of its own, which imports nothing a second time
        os.chdir(place)
        os.dup2(os.open(place + ".log", os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = [name, *args]
        runpy.run_path(name, run_name="__main__")
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


class End(NamedTuple):
    code: int
    said: str
    left: list[Path]


@pytest.fixture(scope="module")
def ends(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, End]:
    """How a tool ends that is called in an empty directory, for each of the mistakes."""
    places, calls = [tmp_path_factory.mktemp("mistake") for _ in MISTAKES], []
    for place, words in zip(places, MISTAKES, strict=True):
        name, *args = words.replace("RECIPE", str(tiny_path)).split()
        calls.append([str(place), str(TOOLS / f"{name}.py"), *args])
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(calls)]
    codes = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS).stdout.split()
    said = [Path(f"{place}.log").read_text() for place in places]
    ended = map(End, map(int, codes), said, [list(place.iterdir()) for place in places])
    return dict(zip(MISTAKES, ended, strict=True))


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_said_at_once(words: str, ends: dict[str, End]) -> None:
    code, said, left = ends[words]
    assert code == 2 and said.startswith("error: ") and not left, said
