"""One page of HTML that needs no network: plots are SVG inside it, and it reads well on a phone."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

CSS = """
:root { color-scheme: light; --ink: #0f172a; --soft: #64748b; --line: #e2e8f0; --paper: #fff; --tint: #f1f5f9; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; margin: 0; color: var(--ink);
  background: var(--tint); }
header, main { max-width: 76rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.6rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; letter-spacing: -.005em; overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0 .8rem; color: var(--soft); overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; font-size: .9rem; }
a { color: #2563eb; text-decoration: none; } a:hover { text-decoration: underline; }
.chip { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; background: #dcfce7; color: #166534;
  font-size: .85rem; margin: 0 .4rem .3rem 0; }
.chip.open { background: #fef3c7; color: #92400e; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: .8rem; padding: 1.1rem 1.2rem;
  margin: 1rem 0; box-shadow: 0 1px 2px rgb(15 23 42 / 5%); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
  gap: .7rem; margin: .2rem 0 1rem; }
.tile { background: var(--tint); border-radius: .6rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3; overflow-wrap: anywhere; }
.tile span { color: var(--soft); font-size: .82rem; }
figure { margin: 0; min-width: 0; } figcaption { color: var(--soft); font-size: .85rem; }
svg { width: 100%; height: auto; display: block; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1.2rem 2rem; }
.small { grid-template-columns: repeat(auto-fill, minmax(min(46%, 12rem), 1fr)); }
.wide { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .82rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
.dot { display: inline-block; width: .65rem; height: .65rem; border-radius: 50%; margin-right: .45rem; }
details > summary { cursor: pointer; color: #2563eb; font-size: .92rem; }
pre { background: var(--tint); border-radius: .5rem; padding: .8rem; overflow-x: auto;
  font-size: .82rem; line-height: 1.45; }
"""


class Change(float):
    """A difference in points: better is green, worse is red, and the more of it the stronger."""


class Arm(NamedTuple):
    """A name with the colour that it has in plots."""

    name: str
    colour: str


def escaped(value: Any) -> str:
    return html.escape(str(value))


def document(title: str, states: Mapping[str, str], sections: Mapping[str, str], refresh: int | None = None) -> str:
    """A whole page.

    Args:
        states: of each run, in words that begin with ``complete`` where it is.
        sections: their titles and contents.
        refresh: seconds after which a browser reads it anew.
    """
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    chips = "".join(
        f'<span class="chip{"" if state.startswith("complete") else " open"}">{escaped(name)}: {escaped(state)}</span>'
        for name, state in states.items()
    )
    links = "".join(f'<a href="#s{number}">{escaped(name)}</a>' for number, name in enumerate(sections))
    parts = "".join(
        f'<section id="s{number}"><h2>{escaped(name)}</h2>{content}</section>'
        for number, (name, content) in enumerate(sections.items())
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}<title>{escaped(title)}</title>'
        f'<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head><body><header><h1>{escaped(title)}</h1>{chips}<nav>{links}</nav></header>"
        f"<main>{parts}</main></body></html>\n"
    )


def heading(words: str) -> str:
    return f"<h3>{escaped(words)}</h3>"


def text(words: str) -> str:
    return f"<p>{escaped(words)}</p>"


def tiles(values: Mapping[str, Any]) -> str:
    """The few numbers that matter most, large; None is left out."""
    shown = (
        f'<div class="tile"><b>{escaped(value)}</b><span>{escaped(name)}</span></div>'
        for name, value in values.items()
        if value is not None
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


def figures(plots: Mapping[str, str | None], small: bool = False) -> str:
    """Plots with captions, as many in a row as fit; what could not be drawn is left out."""
    drawn = [f"<figure>{plot}<figcaption>{escaped(name)}</figcaption></figure>" for name, plot in plots.items() if plot]
    return f'<div class="plots{" small" if small else ""}">{"".join(drawn)}</div>' if drawn else ""


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Cells are escaped; None is a dash."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, Change):
        colour, share = ("22 163 74" if value > 0 else "220 38 38"), min(45, 2 * abs(value))
        return f'<td style="background: rgb({colour} / {share:.0f}%)">{value:+.1f}</td>'
    if isinstance(value, Arm):
        return f'<td><span class="dot" style="background: {value.colour}"></span>{escaped(value.name)}</td>'
    return f"<td>{'-' if value is None else escaped(value)}</td>"


def folded(summary: str, content: str) -> str:
    """What is there for those who ask."""
    return f"<details><summary>{escaped(summary)}</summary>{content}</details>"


def code(content: str) -> str:
    return f"<pre>{escaped(content)}</pre>"
