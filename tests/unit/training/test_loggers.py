import json
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scaleup.common.errors import UserError
from scaleup.training import loggers
from scaleup.training.log import Metrics
from scaleup.training.run import train


class Fake:
    """A run of a tracker that notes what it gets."""

    steps: list[int] = []

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.steps.append(step)

    def finish(self) -> None:
        pass


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids under which runs of wandb began."""
    began: list[str] = []
    monkeypatch.setattr(Fake, "steps", [])
    monkeypatch.setitem(loggers.KINDS, "wandb", lambda out, id, settings: began.append(id) or Fake())
    return began


def log(out: Path, start: int, end: int, **rest: Any) -> None:
    metrics = Metrics(out, 1, start, ["wandb"])
    for step in range(start, end):
        metrics.log({"step": step, "loss": 1.0})
    metrics.close()


def test_a_run_that_was_killed_twice_goes_on_in_one_run_that_gets_no_step_twice(tmp_path: Path, ids: list[str]) -> None:
    for start, end in ((0, 6), (2, 4), (2, 8)):  # checkpoints at 0 and 2; the second start logs less than the first
        log(tmp_path, start, end)
    assert Fake.steps == list(range(8)) and len(ids) == 3 and len(set(ids)) == 1
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(8))


def test_another_run_has_another_id(tmp_path: Path, ids: list[str]) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        log(tmp_path / name, 0, 1)
    assert len(set(ids)) == 2


def test_a_logger_that_fails_is_named_and_the_run_goes_on(
    tmp_path: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Fake, numbers: dict, step: int) -> None:
        if step > 0:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Fake, "log", full)
    log(tmp_path, 0, 4)
    said = capsys.readouterr().err
    assert said == "wandb gets no more metrics, training goes on: [Errno 28] No space left on device\n"
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 4


def test_a_logger_that_does_not_begin_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("No API key configured")

    monkeypatch.setitem(loggers.KINDS, "wandb", refused)
    with pytest.raises(UserError, match="train.log wandb cannot begin: No API key configured; WANDB_MODE=offline"):
        Metrics(tmp_path, 1, 0, ["wandb"])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_is_named_before_anything_is_written(
    name: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = SimpleNamespace(missing=lambda package: None if package == name else util.find_spec(package))
    monkeypatch.setattr(loggers, "find_spec", present.missing)
    with pytest.raises(UserError, match=rf"train.log {name} needs .* pip install 'scaleup\[{name}\]'"):
        train(tiny(f"train.log=[tensorboard,{name}]"))
    assert not (tmp_path / "out").exists()


def test_without_loggers_there_are_the_lines_alone(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 1, log=[])
    metrics.log({"step": 0, "loss": 1.0})
    metrics.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
