import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scaleup.training.log import Metrics


def entry(step: int) -> dict:
    return {"step": step, "dataset": "videos", "arms": {"model": {"loss": 2.0 - step, "alpha": None, "lr": 0.1}}}


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, log_every=10)
    for step in range(3):
        metrics.log(entry(step))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # nothing was closed or flushed by hand
        assert [json.loads(line) for line in lines] == [entry(number) for number in range(step + 1)]
    metrics.close()


def test_tensorboard_gets_every_nth_step_and_numbers_only(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, log_every=2)
    for step in range(5):
        metrics.log(entry(step))
    metrics.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == {"arms/model/loss", "arms/model/lr"}
    assert [(event.step, event.value) for event in board.Scalars("arms/model/loss")] == [(0, 2), (2, 0), (4, -2)]


def test_tensorboard_gets_every_validation(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, log_every=2)
    for step in range(4):
        metrics.log({"step": step, "arms": {"model": {"loss": 1.0, "valid": {"accuracy": step / 4}}}})
    metrics.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("arms/model/valid/accuracy")] == [
        (step, step / 4) for step in range(4)
    ]
    assert [event.step for event in board.Scalars("arms/model/loss")] == [0, 2]


def test_a_resumed_run_takes_back_what_it_will_write_again(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, log_every=1)
    for step in range(5):
        metrics.log(entry(step))
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "dat')  # killed
    metrics = Metrics(tmp_path, log_every=1, start=3)
    assert metrics.kept == [entry(0), entry(1), entry(2)]
    for step in (3, 4):
        metrics.log(entry(step) | {"again": True})
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [entry(0), entry(1), entry(2), entry(3) | {"again": True}, entry(4) | {"again": True}]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("arms/model/loss")] == [0, 1, 2, 3, 4]
