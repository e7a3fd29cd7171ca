"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from scaleup.common.errors import UserError, first_line
from scaleup.common.files import read_json, write_json

PROJECT = "scaleup"  # where the environment names none
TRACKERS = "trackers.json"


class Logger(Protocol):
    """Something that takes the numbers of a step."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass
class Tracking:
    """The run of a tracker that the starts of one training run share; in ``out/trackers.json``."""

    id: str
    until: int  # the last step that earlier starts logged; -1: none


def refuse_missing(names: Collection[str]) -> None:
    """UserError if the package of a logger is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"train.log {name} needs the package {name!r}: pip install 'scaleup[{name}]'")


def open_loggers(
    names: Collection[str], out: Path, start: int, last: int, settings: Mapping[str, Any]
) -> dict[str, Logger]:
    """The loggers of a run that goes on at step ``start``.

    Args:
        last: the last step that an earlier start logged, which may be after ``start``; -1: none.
        settings: the resolved recipe.

    Raises:
        UserError: a tracker does not begin, as W&B where nobody has logged in.
    """
    tracking = _tracking(out / TRACKERS, last) if set(names) - {"tensorboard"} else None
    loggers: dict[str, Logger] = {}
    for name in names:
        if tracking is None or name == "tensorboard":
            loggers[name] = TensorBoard(out, start)
            continue
        try:
            loggers[name] = Tracker(KINDS[name](out, tracking.id, settings), tracking.until)
        except Exception as error:  # of any kind: of the network, of the service, of its configuration
            raise UserError(f"train.log {name} cannot begin: {first_line(error)}{OFFLINE.get(name, '')}") from error
    return loggers


def _tracking(path: Path, last: int) -> Tracking:
    before = Tracking(**read_json(path)) if path.exists() else Tracking(secrets.token_hex(4), -1)
    tracking = Tracking(before.id, max(before.until, last))
    write_json(path, asdict(tracking))
    return tracking


class TensorBoard:
    """Event files in ``out/tensorboard``; steps from ``start`` on are taken back and written again."""

    def __init__(self, out: Path, start: int) -> None:
        self.board = SummaryWriter(out / "tensorboard", purge_step=start)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for path, number in numbers.items():
            self.board.add_scalar(path, number, step)

    def close(self) -> None:
        self.board.close()


class Tracker:
    """A run of W&B or of trackio. What it has cannot be taken back, so a resumed run logs no step up to ``until``
    again: these steps have the same numbers."""

    def __init__(self, run: Any, until: int) -> None:
        self.run, self.until = run, until

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        if step > self.until:
            self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


def _wandb(out: Path, id: str, settings: Mapping[str, Any]) -> Any:
    """Its files are in ``out/wandb``."""
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    own = wandb.Settings(console="off")  # else it would take the place of stdout and stderr
    return wandb.init(
        project=project, name=str(out), id=id, resume="allow", dir=out, config=dict(settings), settings=own
    )


def _trackio(out: Path, id: str, settings: Mapping[str, Any]) -> Any:
    """It finds a run by its name, so this has the id."""
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    return trackio.init(project=project, name=f"{out} {id}", resume="allow", config=dict(settings), embed=False)


KINDS = {"wandb": _wandb, "trackio": _trackio}
OFFLINE = {"wandb": "; WANDB_MODE=offline needs no network and no login"}
