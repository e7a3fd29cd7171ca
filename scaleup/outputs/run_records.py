"""Reads run directories: of complete and unfinished runs, in one or several parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from scaleup.checkpoint.model_directory import read_report
from scaleup.common.errors import UserError
from scaleup.common.metrics import Measure, leading, mean_of
from scaleup.config.recipe import load_saved, sweep_arms, to_yaml
from scaleup.config.schema import Arm, Recipe, run_steps, schedule
from scaleup.training.arm_trainer import ArmResult
from scaleup.training.log import read_lines
from scaleup.training.run_directory import RESULT, RunResult, read_result

Series = tuple[list[int], list[float]]  # steps and values
Json = dict[str, Any]
SINGLE = "model"  # name of the arm of a run that is not a sweep


class Scores(NamedTuple):
    """Top-1 by arm and head, as shares of 1, or the measure that ``measures`` says of a head; ``words`` says on which
    samples it was measured."""

    words: str
    arms: dict[str, dict[str, float]]
    measures: dict[str, str]

    @classmethod
    def of(cls, words: str, arms: dict[str, Json]) -> Scores:
        """From what was measured of each arm; what could not be is left out."""
        leads = {arm: {h: (leading(s), s[leading(s)]) for h, s in each["heads"].items()} for arm, each in arms.items()}
        known = {arm: {h: value for h, (_, value) in each.items() if value is not None} for arm, each in leads.items()}
        return cls(words, known, {head: name for each in leads.values() for head, (name, _) in each.items()})


@dataclass
class Facts:
    """A run, complete or not."""

    name: str
    directory: Path
    recipe: Recipe  # resolved
    places: list[Path]  # its directory and those of its parts
    entries: list[Json]  # the lines of metrics.jsonl of all places
    ended: dict[str, ArmResult]  # arms that have ended
    result: RunResult | None  # of a complete run

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """All arms in the order of the recipe, also those that have not begun."""
        named = sweep_arms(self.recipe) if self.recipe.arms or self.recipe.grid else {}
        single = SINGLE in self.ended or any(SINGLE in entry["arms"] for entry in self.entries)
        return named if named and not (single and SINGLE not in named) else {SINGLE: self.recipe.arm}

    @property
    def state(self) -> str:
        """The state as text: complete, or the steps so far."""
        if self.result is not None:
            return f"complete, {self.result.steps} steps"
        parts = self.places[1:]
        if not parts:
            steps = max((entry["step"] + 1 for entry in self.entries), default=0)
            return f"unfinished: {steps} of {run_steps(self.arms.values(), self.recipe.train)} steps so far"
        done = sum((part / RESULT).exists() for part in parts)
        share = f"{sum(map(self.steps, self.arms))} of {sum(map(self.planned, self.arms))} steps of all arms"
        return f"unfinished: {done} of {len(parts)} parts are complete, {share} so far"

    def steps(self, arm: str) -> int:
        """Steps that an arm has trained so far."""
        return max((entry["step"] + 1 for entry in self.entries if arm in entry["arms"]), default=0)

    def planned(self, arm: str) -> int:
        return schedule(self.arms[arm], self.recipe.train)[0]

    def stands(self, arm: str) -> str:
        """How an arm ended, which of its heads stayed at chance or have a gap to validation, or how far it is."""
        if arm in self.ended:
            result = self.ended[arm]
            at_chance = [f"{head} at chance" for head in result.at_chance]
            gaps = [f"{head} {gap.train - gap.valid:.2f} better in training" for head, gap in result.gaps.items()]
            return ", ".join([str(result.ended), *at_chance, *gaps])
        return f"step {self.steps(arm)} of {self.planned(arm)}" if self.steps(arm) else "not begun"

    def series(self, arm: str, *path: str) -> Series:
        """The values at a path of an arm's entries, by step; entries without it are left out."""
        values = [(entry["step"], _at(entry["arms"].get(arm, {}), path)) for entry in self.entries]
        numbers = [(step, value) for step, value in values if isinstance(value, int | float)]
        return [step for step, _ in numbers], [float(value) for _, value in numbers]

    def seconds(self, arm: str) -> float | None:
        """Seconds of a step of the arm alone, with the trunk: the mean of the second half of the run."""
        entries = [entry for entry in self.entries if arm in entry["arms"]]
        late = [entry["trunk_seconds"] + entry["arms"][arm]["seconds"] for entry in entries[len(entries) // 2 :]]
        return sum(late) / len(late) if late else None

    def trained_parameters(self, arm: str) -> int | None:
        """None for an arm that has not ended."""
        return self.ended[arm].trained_parameters if arm in self.ended else None

    def loss(self, arm: str) -> float | None:
        """The loss at the end, or at the last step so far."""
        losses, result = self.series(arm, "loss")[1], self.ended.get(arm)
        return ((result and result.loss) or losses[-1]) if losses else None

    @cached_property
    def scores(self) -> Scores:
        """The evaluation that was recorded for most arms, the latest of several such.

        If more arms were validated than evaluated, the best validation of each arm.
        """
        recorded = {arm: self._evaluations(arm) for arm in self.arms}
        sets = [entry["on"] for entries in recorded.values() for entry in entries]
        valid = {arm: best for arm in self.arms if (best := self._validated(arm))}
        most = max(map(sets.count, sets), default=0)
        if most < max(1, len(valid)):
            return Scores.of("validation, one view, at its best", valid)
        on = [entry for entry in sets if sets.count(entry) == most][-1]
        words = f"{on['shards']}, {on['views']} views, list {on['list_sha256'][:12]}"
        same = {arm: [entry for entry in entries if entry["on"] == on] for arm, entries in recorded.items()}
        return Scores.of(words, {arm: entries[-1] for arm, entries in same.items() if entries})

    def _evaluations(self, arm: str) -> list[Json]:
        """The evaluations of an arm that tools/evaluate.py recorded."""
        reports = (read_report(place / arm) for place in self.places)
        return next(filter(None, reports), {}).get("evaluations", [])

    @property
    def validated(self) -> Measure:
        """What its arms were validated by."""
        valid = (arm["valid"] for entry in self.entries for arm in entry["arms"].values() if "valid" in arm)
        return mean_of({leading(score) for score in next(valid, {"heads": {}})["heads"].values()})

    def _validated(self, arm: str) -> Json | None:
        valid = [entry["arms"][arm]["valid"] for entry in self.entries if "valid" in entry["arms"].get(arm, {})]
        known = [each for each in valid if each["accuracy"] is not None]
        return max(known, key=lambda each: each["accuracy"], default=None)

    @property
    def yaml(self) -> str:
        """The resolved recipe."""
        return to_yaml(self.recipe)

    @property
    def heads(self) -> Iterator[str]:
        """The names of all heads that were trained."""
        yield from dict.fromkeys(
            head for entry in self.entries for arm in entry["arms"].values() for head in arm.get("heads", ())
        )


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def read(run: str | Path) -> Facts:
    """Read a run directory.

    Raises:
        UserError: it is not a run directory, or its files cannot be read.
    """
    run = Path(run)
    if not (run / "recipe.yaml").is_file():
        near = ", ".join(str(path.parent) for path in sorted(run.glob("*/recipe.yaml"))[:5])
        raise UserError(
            f"'{run}' is not the directory of a run, it has no recipe.yaml" + (f"; below it: {near}" * bool(near))
        )
    recipe = load_saved(run / "recipe.yaml")
    places = [run, *sorted(path.parent for path in run.glob("parts/**/recipe.yaml"))]
    places = [place for place in places if place == run or not (place / "parts").exists()]
    entries = [entry for place in places for entry in read_lines(place / "metrics.jsonl")]
    results = [read_result(place) for place in places]
    ended = {name: arm for result in reversed(results) if result for name, arm in result.arms.items()}
    return Facts(run.resolve().name, run, recipe, places, entries, ended, results[0])
