"""The tables of the paper, read from tables.yaml: rows, and claims about their order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

RANDOM = " (random tubes)"  # follows the name of a row in the name of its control


@dataclass(frozen=True)
class Source:
    """A recipe in recipes/paper, its variants, such as ``row=joint``, and one of its arms if it has several."""

    recipe: str
    choices: tuple[str, ...] = ()
    arm: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    It is a model that ``source`` trains, or the model of row ``of``, evaluated in another way, or a row of the table
    ``shown_from``, which the page shows here too. Otherwise it is the transplant that other rows start from.

    Args:
        paper: the paper's accuracy in per cent; None if the paper does not have this row.
        source: the recipe that trains it.
        tubes: kind of tubes of the transplant that it starts from: see ``TUBES`` in :mod:`reproduce.desk`.
        of: the row whose model is evaluated.
        views: views of the evaluation.
        strides: strides in the evaluation that differ from those of training.
        shown_from: the name of another table, whose row of this name the page shows here too.
    """

    name: str
    paper: float | None = None
    source: Source | None = None
    tubes: str = "folded"
    of: str = ""
    views: str = "1x1"
    strides: Mapping[str, list[int]] = field(default_factory=dict, hash=False)
    shown_from: str = ""


@dataclass(frozen=True)
class Claim:
    """The claim that one row is better than another."""

    better: str
    worse: str
    in_paper: bool = True
    head: str = ""  # the head whose accuracy is compared; by default the table's

    def __str__(self) -> str:
        return f"{self.better} > {self.worse}" + (f" by {self.head}" if self.head else "")


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        note: how this table differs from the paper's.
        head: the head whose accuracy tunes and compares rows.
        images: rows are evaluated on images too, see :func:`reproduce.scores.image_scores`.
        remarks: claim, such as "full > fc" -> an explanation, for a claim that does not hold.
    """

    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    note: str = ""
    head: str = "place_motion"
    images: bool = False
    remarks: Mapping[str, str] = field(default_factory=dict)

    def trained(self) -> Iterator[tuple[Row, Source]]:
        """The rows that train a model."""
        return ((row, row.source) for row in self.rows if row.source is not None)

    def untrained(self) -> list[Row]:
        """The rows that are a transplant, from which others start."""
        return [row for row in self.rows if not (row.source or row.of or row.shown_from)]


def chain(names: str, in_paper: bool = True) -> tuple[Claim, ...]:
    """The claims of ``"a > b > c"``: each row is better than the next one. ``"a > b by HEAD"`` names the head."""
    rows, _, head = names.partition(" by ")
    pairs = itertools.pairwise(rows.split(" > "))
    return tuple(Claim(better, worse, in_paper, head) for better, worse in pairs)


def _source(recipe: str, choices: Sequence[str] = (), arm: str = "") -> Source:
    return Source(recipe, tuple(choices), arm)


def _row(name: str, entry: Mapping[str, Any]) -> Row:
    """A row from its entry in the file. An unknown key is an error."""
    source = {key: entry[key] for key in ("recipe", "choices", "arm") if key in entry}
    others = {key: value for key, value in entry.items() if key not in source}
    return Row(name, source=_source(**source) if source else None, **others)


def _table(rows: Mapping[str, Any], claims: Sequence[str], in_paper: bool = True, **others: Any) -> Table:
    lines = tuple(_row(name, entry) for name, entry in rows.items())
    return Table(rows=lines, claims=tuple(claim for names in claims for claim in chain(names, in_paper)), **others)


_content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
STAGES = {name: _source(**entry) for name, entry in _content["stages"].items()}  # models that rows start from
TRANSPLANTS = {name: (parents["small"], parents["large"]) for name, parents in _content["transplants"].items()}
TABLES = {name: _table(**entry) for name, entry in _content["tables"].items()}
