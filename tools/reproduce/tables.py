"""The tables of the paper, read from tables.yaml: rows, and orderings of them that are claimed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

RANDOM = " (random tubes)"  # after the name of a row whose tubes are a control's


@dataclass(frozen=True)
class Source:
    """A recipe in recipes/paper with its variants, such as ``row=joint``, and one of its arms where it has several."""

    recipe: str
    choices: tuple[str, ...] = ()
    arm: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table: what a source trains, the model of another row evaluated in another way, or, without either,
    the transplant that others begin from.

    Args:
        paper: what the paper reports, in per cent; None of a row that is not the paper's.
        source: what trains it.
        tubes: of the transplant that it begins from, if it does: see ``TUBES`` in :mod:`reproduce.desk`.
        of: the row whose model is evaluated.
        views: of the evaluation.
        strides: of tubes in the evaluation, where they are others than in training.
    """

    name: str
    paper: float | None = None
    source: Source | None = None
    tubes: str = "folded"
    of: str = ""
    views: str = "1x1"
    strides: Mapping[str, list[int]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Claim:
    """That a row is better than another."""

    better: str
    worse: str
    ours: bool = False  # not a claim of the paper's
    head: str = ""  # the accuracy that is compared, where it is not the table's

    def __str__(self) -> str:
        return f"{self.better} > {self.worse}" + (f" by {self.head}" if self.head else "")


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        note: what is different here.
        head: the accuracy by which rows are tuned and compared.
        images: rows are judged on images too, see :func:`reproduce.scores.image_scores`.
        remarks: claim, such as "full > fc" -> a sentence that says what to make of it where that is not seen.
    """

    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    note: str = ""
    head: str = "place_motion"
    images: bool = False
    remarks: Mapping[str, str] = field(default_factory=dict)

    def trained(self) -> Iterator[tuple[Row, Source]]:
        """Rows that train a model of their own."""
        return ((row, row.source) for row in self.rows if row.source is not None)

    def untrained(self) -> list[Row]:
        """Rows that are the transplant that others begin from."""
        return [row for row in self.rows if row.source is None and not row.of]


def chain(names: str, ours: bool = False) -> tuple[Claim, ...]:
    """``"a > b > c"``: each row better than the one after it; ``"a > b by HEAD"``."""
    rows, _, head = names.partition(" by ")
    pairs = itertools.pairwise(rows.split(" > "))
    return tuple(Claim(better, worse, ours, head) for better, worse in pairs)


def _source(recipe: str, choices: Sequence[str] = (), arm: str = "") -> Source:
    return Source(recipe, tuple(choices), arm)


def _row(name: str, entry: Mapping[str, Any]) -> Row:
    """An entry of the file; a key that a row has not is an error."""
    source = {key: entry[key] for key in ("recipe", "choices", "arm") if key in entry}
    others = {key: value for key, value in entry.items() if key not in source}
    return Row(name, source=_source(**source) if source else None, **others)


def _table(rows: Mapping[str, Any], claims: Sequence[str], ours: bool = False, **others: Any) -> Table:
    lines = tuple(_row(name, entry) for name, entry in rows.items())
    return Table(rows=lines, claims=tuple(claim for names in claims for claim in chain(names, ours)), **others)


_content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
STAGES = {name: _source(**entry) for name, entry in _content["stages"].items()}  # models that rows begin from
TRANSPLANTS = {name: (each["small"], each["large"]) for name, each in _content["transplants"].items()}
TABLES = {name: _table(**entry) for name, entry in _content["tables"].items()}
