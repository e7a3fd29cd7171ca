"""What is wrong with the arguments of a tool is said before torch is loaded, which takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "words",
    [
        "cache RECIPE arm.frozen_depth=1 --out x --limit lots",
        "check_shards .",
        "evaluate model shards --heads motion",
        "evaluate hub/id shards --record",
        "make_shards nowhere --out x",
        "make_shards shapes --out x --videos train=x",
        "plan RECIPE --memory lots",
        "predict model nowhere.mp4",
        "predict model x.mp4 --top 0",
        "probe model train test --out .",
        "report runs --out x --watch 0",
        "sweep RECIPE --machines 2",
        "sweep RECIPE --where local",
        "train RECIPE --stop-after 2",
        "train RECIPE train.step=2",
        "transplant small vit_h",
    ],
)
def test_mistakes_are_said_at_once(words: str, tiny_path: Path, tmp_path: Path) -> None:
    name, *args = words.replace("RECIPE", str(tiny_path)).split()
    command = [sys.executable, "-c", WITHOUT_TORCH, TOOLS / f"{name}.py", *args]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert not list(tmp_path.iterdir())
