"""One page of HTML that needs no network: plots are SVG inside it, and it reads well on a phone."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; color: #1c1c1e; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
figure { margin: 0; } figcaption { color: #555; font-size: .9rem; }
svg { width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
pre { background: #f6f6f8; padding: .8rem; overflow-x: auto; font-size: .85rem; }
.up { color: #1a7f37; } .down { color: #b42318; }
"""


def escaped(value: Any) -> str:
    return html.escape(str(value))


def document(title: str, sections: Iterable[str], refresh: int | None = None) -> str:
    """A whole page; with ``refresh`` a browser reads it anew every so many seconds."""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}<title>{escaped(title)}</title>'
        f'<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head><body><h1>{escaped(title)}</h1>{''.join(sections)}</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    return f"<h2>{escaped(title)}</h2>{''.join(parts)}"


def text(words: str) -> str:
    return f"<p>{escaped(words)}</p>"


def figures(plots: Mapping[str, str | None], small: bool = False) -> str:
    """Plots with captions, as many in a row as fit; what could not be drawn is left out."""
    drawn = [f"<figure>{plot}<figcaption>{escaped(name)}</figcaption></figure>" for name, plot in plots.items() if plot]
    return f'<div class="plots{" small" if small else ""}">{"".join(drawn)}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Cells are escaped; None is a dash."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, Change):
        return f'<td class="{"up" if value > 0 else "down"}">{value:+.1f}</td>'
    return f"<td>{'-' if value is None else escaped(value)}</td>"


class Change(float):
    """A difference: better is green, worse is red."""


def code(content: str) -> str:
    return f"<pre>{escaped(content)}</pre>"
