import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scaleup.training.metrics import Metrics


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
