import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from support import tools
from support.marks import at_length
from support.runs import losses
from support.tools import LAUNCHER, SECONDS, TOOLS
from support.warm import warm_python

import scaleup
from scaleup.config import recipe
from scaleup.config.schema import Recipe
from scaleup.data.loader import classes_of

train = partial(tools.tool, "train")


def test_a_trained_model_loads_and_can_be_trained_on(tiny_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    done = train(tiny_path, f"out={out}", "train.steps=2", "--json", "--local_rank=0")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # nothing but the result on stdout
    assert result["arms"]["model"]["directory"] == str(out / "model")
    model = scaleup.load(out / "model")
    assert model.config.heads == classes_of(recipe.load(tiny_path).data)
    assert model(torch.zeros(1, 3, 8, 32, 32), head="motion").shape == (1, 6)

    later = tmp_path / "later.yaml"
    text = tiny_path.read_text()
    later.write_text(f"model: {{load: {out / 'model'}}}\n" + text[text.index("data:") :])
    changes = [f"out={tmp_path / 'late'}", "arm.frozen_depth=2", "arm.gate=true", "train.steps=2"]
    done = train(later, *changes, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arms"]["model"]["alpha"] != 0
    assert scaleup.load(tmp_path / "late" / "model").frozen_depth == 2


def test_a_plan_trains_and_writes_nothing(tiny_path: Path, tmp_path: Path) -> None:
    done = train(tiny_path, "data.train.images=null", f"out={tmp_path / 'out'}", "--plan")
    assert done.returncode == 0, done.stderr
    assert "tokens: image 17, video 41" in done.stdout and "parameters trained" in done.stdout
    assert not (tmp_path / "out").exists()


def test_mistakes_are_sentences_and_exit_code_2(tiny_path: Path, tmp_path: Path) -> None:
    done = train(tiny_path, f"out={tmp_path / 'out'}", "arm.lr=fast", "trian.steps=2")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert "arm.lr: 'fast'" in done.stderr and "nearest: 'train'" in done.stderr
    assert not (tmp_path / "out").exists()


@contextmanager
def cold_python(_: Path) -> Iterator[Path]:
    yield Path(sys.executable)


def launched(python: Path, *args: object) -> subprocess.CompletedProcess:
    """Two ranks by torch's launcher."""
    command = [*map(str, (python, *LAUNCHER, TOOLS / "train.py", *args))]
    environment = os.environ | {"PYTHON_EXEC": str(python)}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, env=environment)


@pytest.mark.parametrize(
    ("stage", "adapt", "python"),
    [(0, "full", warm_python), (2, "full", None), *at_length((1, "lora", None), (0, "full", cold_python))],
)
def test_two_processes_train_as_one_does(
    tiny: Callable[..., Recipe], tiny_path: Path, tmp_path: Path, stage: int, adapt: str, python: Callable | None
) -> None:
    """The same global batches: losses agree within rounding. No dropout, no mixup: each process draws its own.
    Started by the launcher, with a ``python`` that forks ranks or starts them as for users; or without it."""
    changes = ["train.mixup=0", "model.backbone.kwargs.proj_drop_rate=0", "model.backbone.kwargs.drop_path_rate=0"]
    changes += [f"train.zero_stage={stage}", f"arm.adapt={adapt}"]
    one = tiny(*changes)
    scaleup.train(one, {"model": one.arm})
    args = [tiny_path, f"out={tmp_path / 'two'}", *changes, "--json"]
    with python(tmp_path / "python") if python else nullcontext() as launches:
        done = launched(launches, *args) if launches else train(*args, ranks=2)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1  # the first process speaks for both
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "out"), rel=1e-4)
