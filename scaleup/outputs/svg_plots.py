"""Plots as SVG that stands inside a page: it needs no network, no script, and scales with the screen."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np

from scaleup.outputs.run_records import Series

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#db2777", "#475569")
MARKERS = "osD^vPX*"
INK, GRID = "#334155", "#e2e8f0"
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "lines.linewidth": 1.8,
}
SIZE = (4.7, 3.2)  # inches: text keeps its size on a phone
NAMED = 12  # names that a legend holds; of more arms the table tells the colours


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the same in all plots and tables."""
    return dict(zip(names, cycle(COLOURS)))  # noqa: B905  there may be more names than colours


def svg(name: str, draw: Callable[[Axes], Any], size: tuple[float, float] = SIZE) -> str:
    """What ``draw`` puts on axes; ``name`` is what a screen reader says, and keeps ids apart."""
    with plt.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
        plt.close(figure)
    content = re.sub(r'(width|height)="[\d.]+pt" ', "", out.getvalue()[out.getvalue().index("<svg") :], count=2)
    content = content.replace("'DejaVu Sans'", "system-ui")
    return content.replace("<svg ", f'<svg role="img" aria-label="{html.escape(name)}" ', 1)


def lines(title: str, unit: str, series: Mapping[str, Series], smooth: bool = False) -> str | None:
    """A curve for each name over steps; None where there is nothing to draw."""
    shown, colour = {name: each for name, each in series.items() if each[0]}, colours(list(series))

    def draw(axes: Axes) -> None:
        for name, (steps, values) in shown.items():
            marker = "" if len(steps) > 30 else "."
            axes.plot(steps, _smoothed(values) if smooth else values, color=colour[name], label=name, marker=marker)
        axes.set(xlabel="step", ylabel=unit)
        _finish(axes)

    return svg(title, draw) if shown else None


def _finish(axes: Axes) -> None:
    axes.grid()
    handles, names = axes.get_legend_handles_labels()
    if 1 < len(names) <= NAMED:
        columns = 3 if max(map(len, names)) < 14 else 2
        axes.figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)  # type: ignore[union-attr]


def _smoothed(values: list[float]) -> np.ndarray:
    """A running mean over a twentieth of the steps."""
    width = max(1, len(values) // 20)
    sums = np.cumsum(np.insert(np.asarray(values), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


Points = Mapping[str, tuple[float | None, float | None]]  # of an arm: where it stands, and its accuracy as a share of 1


def against(title: str, label: str, runs: Mapping[str, Points], probe: Mapping[str, Any] | None = None) -> str | None:
    """Accuracy of every arm of the runs against something else of it.

    Args:
        probe: what linear classifiers read by depth: ``labels`` of :func:`scaleup.evaluation.depth_profile.probe`.
    """
    if not any(None not in point for points in runs.values() for point in points.values()):
        return None

    def draw(axes: Axes) -> None:
        if probe is not None:
            _draw_probe(axes, probe)
        for marker, (run, points) in zip(cycle(MARKERS), runs.items()):  # noqa: B905
            for (arm, (x, y)), colour in zip(points.items(), colours(list(points)).values(), strict=True):
                if x is not None and y is not None:
                    name = arm if len(runs) == 1 else f"{run}/{arm}"
                    axes.plot(x, 100 * y, marker, color=colour, markersize=9, markeredgecolor="white", label=name)
        axes.set(xlabel=label, ylabel="top-1, %")
        axes.margins(0.1)
        if "blocks" in label:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(axes)

    return svg(title, draw)


def _draw_probe(axes: Axes, curve: Mapping[str, Any]) -> None:
    rows = curve["rows"]
    depths = [row["depth"] for row in rows]
    middle, error = (np.array([100 * row[key] for row in rows]) for key in ("accuracy", "standard_error"))
    axes.fill_between(depths, middle - error, middle + error, color="#94a3b8", alpha=0.3, linewidth=0)
    axes.plot(depths, middle, "--", color="#64748b", label="linear probe")
    axes.axhline(100 * curve["chance"], color="#94a3b8", linestyle=":", linewidth=1.2, label="chance")


def matrix(title: str, values: np.ndarray, classes: list[str]) -> str:
    """Shares in % in a square, with names at its sides where they can be read."""
    named = len(classes) <= 40
    side = min(9.0, 1.7 + 0.36 * len(classes)) if named else 6.0

    def draw(axes: Axes) -> None:
        axes.imshow(values, cmap="Blues", vmin=0, vmax=100)
        axes.set_xticks(range(len(classes)) if named else [], classes if named else [], rotation=90)
        axes.set_yticks(range(len(classes)) if named else [], classes if named else [])
        axes.set(xlabel="predicted", ylabel="is")
        for row, column in np.ndindex(*values.shape) if len(classes) <= 20 else ():
            if values[row, column] >= 0.5:
                colour = "white" if values[row, column] > 60 else INK
                axes.text(column, row, f"{values[row, column]:.0f}", ha="center", va="center", fontsize=9, color=colour)

    return svg(title, draw, (side, side))
