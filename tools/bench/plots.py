"""Plots of the benchmarks' rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from bench.measure import GIB, Figures
from scaleup.common.files import write_bytes

PANELS = {  # key of a row -> the title of its axis, and the unit
    "step_seconds": ("seconds of a training step", 1),
    "infer_seconds": ("seconds of inference", 1),
    "peak_bytes": ("peak memory, GiB", GIB),
    "gflop": ("GFLOPs of inference", 1),
}


def draw_bars(rows: list[Figures], path: Path) -> None:
    """One panel for each figure, with a bar for each row that has it. Our models have another colour."""
    plt = _pyplot()
    figure, panels = plt.subplots(
        1, len(PANELS), figsize=(16, 0.3 * len(rows) + 1.2), sharey=True, layout="constrained"
    )
    for panel, (key, (label, unit)) in zip(panels, PANELS.items(), strict=True):
        with_figure = [row for row in rows if row[key] is not None]
        colours = ["tab:blue" if row["ours"] else "tab:orange" for row in with_figure]
        values = [row[key] / unit for row in with_figure]
        bars = panel.barh([rows.index(row) for row in with_figure], values, color=colours)
        panel.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        panel.set(xlabel=label)
        panel.margins(x=0.25)
    panels[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
    panels[0].invert_yaxis()
    _save(figure, path)


def draw_curve(rows: list[Figures], key: str, label: str, path: Path) -> None:
    """Seconds of a step and peak memory, plotted against ``row[key]``."""
    figure, panels = _pyplot().subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    values = [row[key] for row in rows]
    for panel, cost in zip(panels, ("step_seconds", "peak_bytes"), strict=True):
        name, unit = PANELS[cost]
        panel.plot(values, [row[cost] / unit for row in rows], marker="o")
        panel.set(xlabel=label, ylabel=name, ylim=(0, None), xticks=values)
        panel.grid(alpha=0.3)
    _save(figure, path)


def draw_scale(rows: list[Figures], path: Path) -> None:
    """Seconds, and memory and size of the index, against the number of samples."""
    seconds = ("open_seconds", "first_batch_seconds", "resume_seconds")
    figure, panels = _pyplot().subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for panel, keys, label in zip(panels, (seconds, ("peak_mib", "index_mib")), ("seconds", "MiB"), strict=True):
        for key in keys:
            panel.loglog([row["samples"] for row in rows], [row[key] for row in rows], marker="o", label=key)
        panel.set(xlabel="samples", ylabel=label)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    figure.savefig(png := io.BytesIO(), dpi=110, format="png")
    _pyplot().close(figure)
    write_bytes(path, png.getvalue())
