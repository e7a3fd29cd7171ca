"""One HTML page, without links to other files: plots are SVG inside the page. It can be read on a phone.

jinja2 fills in the template page.html beside this file, and escapes all values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader

GREEN, RED = "22 163 74", "220 38 38"


class Change(float):
    """A difference in points, in colour: green if better, red if worse; the larger, the stronger."""

    @property
    def colour(self) -> str:
        return GREEN if self > 0 else RED

    @property
    def strength(self) -> int:
        """The strength of the colour, in %."""
        return round(min(45, 2 * abs(self)))

    def __str__(self) -> str:
        return f"{float(self):+.1f}"


@dataclass
class Arm:
    """The name of an arm, with its colour in the plots."""

    name: str
    colour: str


@dataclass
class Text:
    words: str
    tag: str = "p"  # p: paragraph; h3: heading; pre: preformatted


@dataclass
class Tiles:
    """The most important numbers, in large type, by name; None is left out."""

    values: Mapping[str, Any]


@dataclass
class Figures:
    """Plots (SVG) by caption, as many in a row as fit; None is left out."""

    plots: Mapping[str, str | None]
    small: bool = False


@dataclass
class Table:
    """Cells are text, a :class:`Change`, an :class:`Arm` or None, which is shown as a dash."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Folded:
    """A block that is closed until the reader opens it."""

    summary: str
    content: Block


Block = Text | Tiles | Figures | Table | Folded


def document(
    title: str, states: Mapping[str, str], sections: Mapping[str, Sequence[Block]], refresh: int | None = None
) -> str:
    """The whole page.

    Args:
        states: the state of each run, a text that begins with ``complete`` if the run is complete.
        sections: titles and contents.
        refresh: the browser loads the page again after this many seconds.
    """
    page = Environment(loader=PackageLoader("scaleup.outputs", "."), autoescape=True, trim_blocks=True)
    for kind in (Change, Arm, *Block.__args__):
        page.tests[kind.__name__.lower()] = lambda value, kind=kind: isinstance(value, kind)
    filled = page.get_template("page.html").render(title=title, states=states, sections=sections, refresh=refresh)
    return filled + "\n"
