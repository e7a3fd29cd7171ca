"""Plots as SVG that stands inside a page: it needs no network, no script, and scales with the screen."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import numpy as np

from scaleup.report.facts import Facts, Series

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

STYLE: Any = {"svg.fonttype": "none", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


def svg(name: str, draw: Callable[[Axes], Any], size: tuple[float, float] = (6.4, 3.6)) -> str:
    """What ``draw`` puts on axes; ``name`` is what a screen reader says, and keeps ids apart."""
    with plt.rc_context({**STYLE, "svg.hashsalt": name}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=False)
        plt.close(figure)
    content = re.sub(r'(width|height)="[\d.]+pt" ', "", out.getvalue()[out.getvalue().index("<svg") :], count=2)
    return content.replace("<svg ", f'<svg role="img" aria-label="{html.escape(name)}" ', 1)


def lines(title: str, unit: str, series: Mapping[str, Series], smooth: bool = False) -> str | None:
    """A curve for each name over steps; None where there is nothing to draw."""
    shown = {name: each for name, each in series.items() if each[0]}

    def draw(axes: Axes) -> None:
        for name, (steps, values) in shown.items():
            axes.plot(steps, _smoothed(values) if smooth else values, label=name, marker="" if len(steps) > 30 else ".")
        axes.set(xlabel="step", ylabel=unit)
        axes.legend(fontsize=9, frameon=False)
        axes.grid(alpha=0.25)

    return svg(title, draw) if shown else None


def _smoothed(values: list[float]) -> np.ndarray:
    """A running mean over a twentieth of the steps."""
    width = max(1, len(values) // 20)
    sums = np.cumsum(np.insert(np.asarray(values), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (sums[ends] - sums[starts]) / (ends - starts)


def against(title: str, label: str, runs: list[Facts], value: Callable[[Facts, str], float | None]) -> str | None:
    """Accuracy of every arm of the runs against something else of it."""
    points = [
        (run, arm, x, 100 * y)
        for run in runs
        for arm in run.arms
        if (x := value(run, arm)) is not None and (y := run.accuracy(arm)) is not None
    ]

    def draw(axes: Axes) -> None:
        for run in runs:
            own = sorted((x, y, arm) for each, arm, x, y in points if each is run)
            axes.plot([x for x, *_ in own], [y for _, y, _ in own], "o", alpha=0.8, label=run.name)
            for x, y, arm in own:
                axes.annotate(arm, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=9)
        axes.set(xlabel=label, ylabel="validation accuracy, %")
        axes.margins(0.15)
        axes.grid(alpha=0.25)
        if len(runs) > 1:
            axes.legend(fontsize=9, frameon=False)

    return svg(title, draw) if points else None


def matrix(title: str, values: np.ndarray, classes: list[str], colours: str, limit: float) -> str:
    """A square of numbers with names at its sides."""
    side = min(10.0, 2.2 + 0.35 * len(classes))

    def draw(axes: Axes) -> None:
        axes.imshow(values, cmap=colours, vmin=-limit if colours == "RdBu" else 0, vmax=limit)
        axes.set_xticks(range(values.shape[1]), classes if values.shape[1] == len(classes) else [], rotation=90)
        axes.set_yticks(range(values.shape[0]), classes)
        axes.set(xlabel="predicted", ylabel="is")
        if len(classes) <= 20:
            for row, column in np.ndindex(*values.shape):
                if values[row, column]:
                    axes.text(column, row, f"{values[row, column]:.0f}", ha="center", va="center", fontsize=8)

    return svg(title, draw, (side, side))
