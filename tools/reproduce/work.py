"""Runs tables on one desk: trains every row with every seed at its own learning rate, and estimates the remaining
time."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from reproduce.desk import Desk
from reproduce.runs import identity, trained
from reproduce.scores import Scores, file_name, image_chances, image_scores, scores
from reproduce.tables import RANDOM, TRANSPLANTS, Row, Source, Table
from reproduce.tasks import Plan, Task
from scaleup.common.files import read_json
from scaleup.config.schema import Arm, Recipe
from scaleup.data.shards import Shards

FACTORS = (0.3, 1.0, 3.0)  # factors of the recipe's learning rate that every row tries


class Entry(NamedTuple):
    """A row that trains, or its control."""

    row: Row
    source: Source
    tubes: str

    @property
    def control(self) -> bool:
        return self.tubes == "random"

    @property
    def name(self) -> str:
        return self.row.name + RANDOM * self.control


Trial = tuple[Entry, float]  # an entry at a factor of its learning rate


@dataclass
class Together:
    """Arms that train in one run."""

    recipe: Recipe
    arms: dict[Trial, Arm] = field(default_factory=dict)


Rates = Mapping[float, float]  # factor of a learning rate -> accuracy on the validation split


class Work:
    """Tables to run, and their remaining tasks.

    Args:
        tables: by name.
        tuned: name of a table -> name of a row -> its rates. Rows that are not there are tuned with the first seed.
    """

    def __init__(
        self, desk: Desk, seeds: Sequence[int], tables: Mapping[str, Table], tuned: Mapping[str, Mapping[str, Rates]]
    ) -> None:
        self.desk, self.seeds, self.tables, self.tuned = desk, list(seeds), tables, tuned
        self.plan = Plan(desk, [task for name in tables for task in self._tasks(name)])

    def _tasks(self, name: str) -> Iterator[Task]:
        """The tasks of a table that take time."""
        table, (first, *others) = self.tables[name], self.seeds
        sources = dict[str, Source]()
        for entry in self.entries(table):
            source, tubes, steps = entry.source, entry.tubes, float(self.desk.steps(entry.source))
            sources.setdefault(entry.row.name, source)
            yield from (Task(source, first, tubes, (factor,), steps) for factor in self._factors(name, entry))
            yield from (Task(source, seed, tubes, FACTORS, steps) for seed in others)
        for row in table.rows:
            if row.of:
                file = file_name("videos-test", row.views, row.strides)
                steps = self.desk.test_steps(sources[row.of], row.views)
                yield from (Task(sources[row.of], seed, "folded", FACTORS, steps, file) for seed in self.seeds)

    def _factors(self, name: str, entry: Entry) -> Sequence[float]:
        """The factors with which the first seed trains an entry of table ``name``."""
        rates = self.tuned.get(name, {}).get(entry.name)
        return (_best(rates),) if rates else FACTORS

    def entries(self, table: Table) -> Iterator[Entry]:
        """The rows that train. A row that starts from the paper's transplant is followed by its control."""
        for row, source in table.trained():
            yield Entry(row, source, row.tubes)
            if row.tubes == "folded" and self.desk.is_transplant(source):
                yield Entry(row, source, "random")

    def table(self, name: str) -> dict[str, Any]:
        """Run a table. Results that are on disk are read."""
        table, (first, *others) = self.tables[name], self.seeds
        entries = list(self.entries(table))
        grid = self._trained(table, [(each, factor) for each in entries for factor in self._factors(name, each)], first)
        rates = self._rates(name, entries, grid)
        best = [(entry, _best(rates[entry.name])) for entry in entries]
        models = {first: grid} | {seed: self._trained(table, best, seed) for seed in others}
        rows = {entry.name: self._described(entry, rates[entry.name]) for entry in entries}
        rows |= {row.name: rows[row.of] | _evaluated(row) for row in table.rows if row.of}
        rows |= {row.name: _evaluated(row) | {"lr": None, "steps": 0} for row in table.untrained()}
        tested = {seed: self._tested(table, models[seed], best, seed) for seed in self.seeds}
        for title, row in rows.items():
            row["seeds"] = {str(seed): shares[title] for seed, shares in tested.items() if title in shares}
        order = [title for row in table.rows for title in (row.name, row.name + RANDOM) if title in rows]
        return {
            "title": table.title,
            "head": table.head,
            "seeds": self.seeds,
            "samples": self.desk.samples,
            "chance": self._chance(table),
            "rows": {title: rows[title] for title in order},
        }

    def _trained(self, table: Table, trials: list[Trial], seed: int) -> dict[Trial, Path]:
        """Train arms, together where they can, and return their directories, without those that diverged."""
        models: dict[Trial, Path] = {}
        for run in self._runs(trials, seed):
            self._say(f"{table.title}, seed {seed}: {', '.join(f'{e.name} x{f:g}' for e, f in run.arms)}")
            names = {f"{number}": trial for number, trial in enumerate(run.arms)}
            paths = trained(run.recipe, {name: run.arms[trial] for name, trial in names.items()}, self.desk.runs)
            models |= {names[name]: path for name, path in paths.items() if path is not None}
        return models

    def _runs(self, trials: Iterable[Trial], seed: int) -> Iterable[Together]:
        runs: dict[str, Together] = {}
        for entry, factor in trials:
            recipe, arm = self.desk.read(entry.source, seed, entry.tubes)
            run = runs.setdefault(identity(recipe), Together(recipe))
            run.arms[entry, factor] = replace(arm, lr=arm.lr * factor)
        return runs.values()

    def _rates(self, name: str, entries: Iterable[Entry], grid: Mapping[Trial, Path]) -> dict[str, Rates]:
        """The rates of each row: as they are known, or as the first seed trained it."""
        known = self.tuned.get(name, {})
        trained = {trial: path for trial, path in grid.items() if trial[0].name not in known}
        found = self._validated(self.tables[name], trained, self.seeds[0])
        tried = {each.name: {factor: found.get((each, factor), 0.0) for factor in FACTORS} for each in entries}
        return tried | {row: rates for row, rates in known.items() if row in tried}

    def _validated(self, table: Table, models: Mapping[Trial, Path], seed: int) -> dict[Trial, float]:
        """Accuracy of the table's head on the validation split; 0 for a trial that does not have this head."""
        names = {f"{number}": trial for number, trial in enumerate(models)}
        paths = {name: models[trial] for name, trial in names.items()}
        shares = scores(paths, self.desk.data(seed) / "videos-val")
        return {names[name]: heads.get(table.head, 0.0) for name, heads in shares.items()}

    def _tested(self, table: Table, models: Mapping[Trial, Path], best: list[Trial], seed: int) -> dict[str, Scores]:
        """Accuracy of every row on the test split, and alpha for a row with a gate."""
        self._say(f"{table.title}, seed {seed}: test split")
        test = self.desk.data(seed) / "videos-test"
        paths = {trial[0].name: models[trial] for trial in best if trial in models}
        rows = scores(paths, test)
        for name, path in paths.items():
            alpha = read_json(path / "report.json")["training"]["alpha"]
            rows[name] |= {} if alpha is None else {"alpha": alpha}
        for row in table.rows:
            if row.of in paths:
                rows |= scores({row.name: paths[row.of]}, test, row.views, row.strides)
        if table.images:
            paths |= {
                row.name: self.desk.make_model(next(iter(TRANSPLANTS)), seed, row.tubes) for row in table.untrained()
            }
            for name, shares in image_scores(paths, self.desk.data(seed)).items():
                rows[name] = rows.get(name, {}) | shares
        return rows

    def _described(self, entry: Entry, rates: Rates) -> dict[str, Any]:
        recipe, arm = self.desk.read(entry.source, self.seeds[0], entry.tubes)
        source = entry.source
        return {
            "paper": None if entry.control else entry.row.paper,
            "recipe": " ".join([f"{source.recipe}.yaml", "scale=desk", *source.choices, *self.desk.changes]),
            "arm": source.arm or None,
            "steps": recipe.train.steps,
            "batch": recipe.data.batch,
            "lr": arm.lr * _best(rates),
            "validation": {f"{arm.lr * factor:g}": accuracy for factor, accuracy in rates.items()},
            "views": "1x1",
        }

    def _chance(self, table: Table) -> dict[str, float]:
        """The accuracy by chance, for each head."""
        data = self.desk.data(self.seeds[0])
        classes = Shards.open(data / "videos-test").classes
        chances = {head: 1 / len(classes[head]) for head in dict.fromkeys([table.head, *classes])}
        return chances | (image_chances(data) if table.images else {})

    def _say(self, title: str) -> None:
        print(f"[{self.plan.progress()}] {title}", file=sys.stderr)


def _best(rates: Rates) -> float:
    """The factor with the highest accuracy."""
    return max(rates, key=lambda factor: rates[factor])


def _evaluated(row: Row) -> dict[str, Any]:
    return {"paper": row.paper, "views": row.views, "strides": dict(row.strides)}
