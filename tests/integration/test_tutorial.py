"""Every command of docs/tutorial.md, in its order, in one shell, on clips and images of a few pixels."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from support.marks import at_length
from support.tools import AT_ONCE
from support.warm import warm_python
from timm.models import save_for_hf

from scaleup.data.shapes import make_sample

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.M | re.S)
VARIABLES = {"CLIPS": "clips", "IMAGES": "images", "BACKBONE": "backbone", "SCALE": "desk"}
STANDS_FOR = {  # what is not done as it stands, because tests install nothing
    "make .venv/installed": f"make --dry-run --file '{ROOT}/Makefile' .venv/installed",
    "source .venv/bin/activate": f"export PATH=$PWD/warm:'{Path(sys.executable).parent}':$PATH",
}
CLASSES = {"clips": ("video", "mp4", ["grow", "turn"]), "images": ("image", "png", ["round", "square"])}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A clone, as far as it is needed, with two classes of clips and of images, and a backbone with weights."""
    for name in ("tools", "recipes", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    for folder, (modality, ending, names) in CLASSES.items():
        for number in range(2 * (6 + 2)):
            split, name = ("train", "val")[number >= 12], names[number % 2]
            file = tmp_path / folder / split / name / f"{number}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(make_sample(modality, 0, "train", number, 64, 16).media)
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_vit"), tmp_path / "backbone", safe_serialization=True)
    return tmp_path


def script() -> str:
    """The page as one script of the shell; Python is put into a file and given to Python."""
    blocks = BLOCK.findall(PAGE.read_text())
    text = "".join(
        code if kind == "bash" else f"cat > block.py <<'CODE'\n{code}CODE\npython block.py\n" for kind, code in blocks
    )
    for command, other in STANDS_FOR.items():
        assert text.count(f"{command}\n") == 1, f"{command} is no line of the tutorial any more"
        text = text.replace(f"{command}\n", f"{other}\n")
    return text


@pytest.mark.parametrize("python", [partial(warm_python, before=AT_ONCE), *at_length(nullcontext)])
def test_every_command_of_the_tutorial_runs(place: Path, python: Callable[[Path], AbstractContextManager]) -> None:
    """And leaves what the page says that it leaves."""
    with python(place / "warm"):
        run(place)


def run(place: Path) -> None:
    told = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        ["bash", "-ex", "-o", "pipefail", "-c", script()],
        cwd=place,
        env=told | VARIABLES | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "delta.safetensors" in done.stdout and re.search(r"\{'grow': [01]\.\d+, 'turn': [01]\.\d+\}", done.stdout)
    for name in re.findall(r"`(runs/tutorial/[\w./-]+)`", PAGE.read_text()):
        assert (place / name).exists(), name
