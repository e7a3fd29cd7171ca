"""What a run directory says of a run, complete or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from scaleup.errors import UserError
from scaleup.training.metrics import read_lines
from scaleup.training.result import RESULT

Series = tuple[list[int], list[float]]  # steps and values


@dataclass
class Facts:
    """A run: its resolved recipe, its lines of metrics, and its result where it is complete."""

    directory: Path
    recipe: dict[str, Any]
    entries: list[dict[str, Any]]
    result: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def arms(self) -> list[str]:
        names = dict.fromkeys(name for entry in self.entries for name in entry["arms"])
        return list(names) or (list(self.result["arms"]) if self.result else [])

    @property
    def state(self) -> str:
        """In words: complete, or how far it has come."""
        if self.result is not None:
            return f"complete, {self.result['steps']} steps"
        return f"unfinished: {len(self.entries)} of {self.recipe['train']['steps']} steps so far"

    def series(self, arm: str, *path: str) -> Series:
        """The value at a path of an arm's entries, where there is one, by step."""
        found = [(entry["step"], _at(entry["arms"].get(arm, {}), path)) for entry in self.entries]
        kept = [(step, value) for step, value in found if isinstance(value, int | float)]
        return [step for step, _ in kept], [float(value) for _, value in kept]

    def frozen_depth(self, arm: str) -> int:
        own = self.recipe.get("arms", {}).get(arm, {})
        made = (self.result or {}).get("arms", {}).get(arm, {})
        return made.get("frozen_depth", own.get("frozen_depth", self.recipe["arm"]["frozen_depth"]))

    def accuracy(self, arm: str) -> float | None:
        """The best that validation found, as a share; None where there was none."""
        values = self.series(arm, "valid", "accuracy")[1]
        return max(values) if values else None

    def seconds(self, arm: str) -> float | None:
        """Of a step if the arm were alone: the trunk and the arm, the mean of the later half."""
        entries = [entry for entry in self.entries if arm in entry["arms"]]
        late = [entry["trunk_seconds"] + entry["arms"][arm]["seconds"] for entry in entries[len(entries) // 2 :]]
        return sum(late) / len(late) if late else None


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def read(run: str | Path) -> Facts:
    """The facts of a run directory.

    Raises:
        UserError: it is none, or what it holds cannot be read.
    """
    run = Path(run)
    if not (run / "recipe.yaml").is_file():
        near = ", ".join(str(path.parent) for path in sorted(run.glob("*/recipe.yaml"))[:5])
        raise UserError(
            f"'{run}' is not the directory of a run, it has no recipe.yaml" + (f"; below it: {near}" * bool(near))
        )
    try:
        recipe = OmegaConf.to_container(OmegaConf.load(run / "recipe.yaml"))
        result = json.loads((run / RESULT).read_text()) if (run / RESULT).exists() else None
    except Exception as error:  # YAML and JSON have errors of their own
        raise UserError(f"'{run}' cannot be read: {' '.join(str(error).split())}") from error
    return Facts(run, cast(dict[str, Any], recipe), read_lines(run / "metrics.jsonl"), result)


def heads(facts: Facts) -> Iterator[str]:
    """Every head that was trained, once."""
    yield from dict.fromkeys(
        head for entry in facts.entries for arm in entry["arms"].values() for head in arm.get("heads", ())
    )
