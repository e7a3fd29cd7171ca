"""One page of HTML that needs no network: plots are SVG inside it, and it reads well on a phone.

The page is page.html beside this file, filled in by jinja2, which escapes all that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader

GREEN, RED = "22 163 74", "220 38 38"


class Change(float):
    """A difference in points: better is green, worse is red, and the more of it the stronger."""

    @property
    def colour(self) -> str:
        return GREEN if self > 0 else RED

    @property
    def strength(self) -> int:
        """Of the colour, in %."""
        return round(min(45, 2 * abs(self)))

    def __str__(self) -> str:
        return f"{float(self):+.1f}"


@dataclass
class Arm:
    """A name with the colour that it has in plots."""

    name: str
    colour: str


@dataclass
class Text:
    words: str
    tag: str = "p"  # or h3, a heading; pre, as it is


@dataclass
class Tiles:
    """The few numbers that matter most, large, by their names; None is left out."""

    values: Mapping[str, Any]


@dataclass
class Figures:
    """Plots (SVG) by their captions, as many in a row as fit; what could not be drawn (None) is left out."""

    plots: Mapping[str, str | None]
    small: bool = False


@dataclass
class Table:
    """Cells are text, a :class:`Change`, an :class:`Arm` or None, which is shown as a dash."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Folded:
    """A block that is shown to those who ask."""

    summary: str
    content: Block


Block = Text | Tiles | Figures | Table | Folded


def document(
    title: str, states: Mapping[str, str], sections: Mapping[str, Sequence[Block]], refresh: int | None = None
) -> str:
    """A whole page.

    Args:
        states: of each run, in words that begin with ``complete`` where it is.
        sections: their titles and contents.
        refresh: seconds after which a browser reads it anew.
    """
    page = Environment(loader=PackageLoader("scaleup.outputs", "."), autoescape=True, trim_blocks=True)
    for kind in (Change, Arm, *Block.__args__):
        page.tests[kind.__name__.lower()] = lambda value, kind=kind: isinstance(value, kind)
    filled = page.get_template("page.html").render(title=title, states=states, sections=sections, refresh=refresh)
    return filled + "\n"
