"""Runs that log to Weights & Biases (offline) and to trackio (its local database)."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tools import script, tool

from scaleup.config import recipe as recipes
from scaleup.config.schema import Recipe
from scaleup.training import run

Tiny = Callable[..., Recipe]
BLOCK = 32768


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # of an earlier test in this process


def offline_records(out: Path) -> list[Any]:
    """All that W&B has written of a run, in the order of its starts."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    paths = sorted(out.glob("wandb/offline-run-*/*.wandb"))
    return [Record.FromString(data) for path in paths for data in chunks(path.read_bytes())]


def chunks(log: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB, whose first block begins with a header of 7 bytes."""
    place, whole = 7, b""
    while place + 7 <= len(log):
        if BLOCK - place % BLOCK < 7:  # too short for a record: padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        whole += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def wandb_steps(records: list[Any]) -> list[int]:
    return [record.history.step.num for record in records if record.WhichOneof("record_type") == "history"]


def in_two_starts(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, but the first start fails after its third step, of which the checkpoint has two."""
    whole = run.Run.step

    def fail(self: run.Run, step: int, fed: Any) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return whole(self, step, fed)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.Run, "step", fail)
        run.train(recipe)
    run.train(recipe)


def test_wandb_has_every_step_once_in_one_run_with_the_recipe(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    recipe = tiny("train.log=wandb", "train.log_every=1", "train.save_every=2")
    in_two_starts(recipe, monkeypatch)
    out = Path(recipe.out)
    records = offline_records(out)
    begun = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {each.run_id for each in begun} == {json.loads((out / "trackers.json").read_text())["id"]}
    assert {each.display_name for each in begun} == {recipe.out} and {each.project for each in begun} == {"scaleup"}
    assert len(list(out.glob("wandb/offline-run-*"))) == 2
    assert wandb_steps(records) == [0, 1, 2, 3]
    config = {each.key: json.loads(each.value_json) for each in begun[0].config.update}
    assert {key: config[key] for key in recipes.resolved(recipe)} == recipes.resolved(recipe)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [each["arms/model/loss"] for each in logged] == [line["arms"]["model"]["loss"] for line in lines]
    assert not (out / "tensorboard").exists()


def test_one_rank_of_two_logs(tiny_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = tool("train", tiny_path, f"out={tmp_path / 'out'}", "train.log=wandb", "train.log_every=1", ranks=2)
    assert done.returncode == 0, done.stderr
    records = offline_records(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("wandb/offline-run-*"))) == 1 and wandb_steps(records) == [0, 1, 2, 3]


KILLED = """
import sys
from pathlib import Path

import psutil

from scaleup.training.log import Metrics

metrics = Metrics(Path(sys.argv[1]), 1, log=["wandb"])
metrics.log({"step": 0, "loss": 1.0})
(service,) = [each for each in psutil.Process().children(recursive=True) if "wandb-core" in str(each.cmdline())]
service.kill()
service.wait()
for step in range(1, 4):
    metrics.log({"step": step, "loss": 1.0})
metrics.close()
"""


def test_a_service_that_dies_does_not_end_the_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = script(KILLED, tmp_path)
    assert done.returncode == 0 and (tmp_path / "metrics.jsonl").read_text().count("\n") == 4, done.stderr
    assert done.stderr.count("wandb gets no more metrics, training goes on: ") == 1, done.stderr


def test_without_login_and_network_the_start_is_refused_in_a_sentence(tiny_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    alone = "import os; os.environ.pop('WANDB_MODE', 0); os.environ['HOME'] = os.environ['NETRC'] = '/nonexistent'"
    done = tool("train", tiny_path, f"out={tmp_path / 'out'}", "train.log=wandb", before=alone)
    assert done.returncode == 2 and "error: train.log wandb cannot begin: " in done.stderr, done.stderr
    assert "WANDB_MODE=offline" in done.stderr and "Traceback" not in done.stderr


def test_trackio_has_every_step_once_in_one_run_with_the_recipe(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    recipe = tiny("train.log=[trackio]", "train.log_every=1", "train.save_every=2")
    in_two_starts(recipe, monkeypatch)
    (name,) = SQLiteStorage.get_runs("scaleup")
    assert name.startswith(f"{recipe.out} ")
    rows = SQLiteStorage.get_logs("scaleup", name)
    lines = [json.loads(line) for line in (Path(recipe.out) / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["arms/model/loss"]) for row in rows] == [
        (line["step"], line["arms"]["model"]["loss"]) for line in lines
    ]
    assert SQLiteStorage.get_run_config("scaleup", name)["seed"] == recipe.seed
