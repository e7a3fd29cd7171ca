"""Plots and pictures of tubes, as SVG inside a page: without network or scripts, at any size."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from scaleup.common.metrics import Measure
from scaleup.evaluation.depth_profile import DepthCurve
from scaleup.evaluation.overlay import token_boxes
from scaleup.model.build import patch_of
from scaleup.model.tubes import Size, TubeSpec, resize_kernel
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.run_records import Series

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
NAMED = 12  # most names in a legend; if there are more, the table shows their colours


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the same in all plots and tables."""
    return dict(zip(names, cycle(COLOURS)))  # noqa: B905  there may be more names than colours


def svg(name: str, draw: Callable[[Axes], Any], size: tuple[float, float] = SIZE) -> str:
    """The SVG of a plot that ``draw`` makes. ``name`` is read by screen readers and makes ids unique."""
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    content = re.sub(r'(width|height)="[\d.]+pt" ', "", out.getvalue()[out.getvalue().index("<svg") :], count=2)
    content = content.replace("'DejaVu Sans'", "system-ui")
    return content.replace("<svg ", f'<svg role="img" aria-label="{html.escape(name)}" ', 1)


def lines(title: str, unit: str, series: Mapping[str, Series], smooth: bool = False) -> str | None:
    """A curve for each name over steps, or None if there are no values."""
    curves, colour = {name: curve for name, curve in series.items() if curve[0]}, colours(list(series))

    def draw(axes: Axes) -> None:
        for name, (steps, values) in curves.items():
            marker = "" if len(steps) > 30 else "."
            axes.plot(steps, _smoothed(values) if smooth else values, color=colour[name], label=name, marker=marker)
        axes.set(xlabel="step", ylabel=unit)
        _finish(axes)

    return svg(title, draw) if curves else None


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


Points = Mapping[str, tuple[float | None, float | None]]  # of an arm: x, and its measure, a share as a share of 1


def against(
    title: str, label: str, runs: Mapping[str, Points], measure: Measure, probe: DepthCurve | None = None
) -> str | None:
    """The measure of every arm of the runs against another value of the arm.

    Args:
        probe: the accuracy of linear classifiers by depth.
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
                    look: Any = {"color": colour, "markersize": 9, "markeredgecolor": "white"}
                    axes.plot(x, measure.scale * y, marker, **look, label=name)
        axes.set(xlabel=label, ylabel=measure.column)
        axes.margins(0.1)
        if "blocks" in label:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(axes)

    return svg(title, draw)


def _draw_probe(axes: Axes, curve: DepthCurve) -> None:
    depths = [row.depth for row in curve.rows]
    middle, error = np.array([(100 * row.accuracy, 100 * row.standard_error) for row in curve.rows]).T
    axes.fill_between(depths, middle - error, middle + error, color="#94a3b8", alpha=0.3, linewidth=0)
    axes.plot(depths, middle, "--", color="#64748b", label="linear probe")
    axes.axhline(100 * curve.chance, color="#94a3b8", linestyle=":", linewidth=1.2, label="chance")


def matrix(title: str, values: np.ndarray, classes: list[str]) -> str:
    """A square table of shares in %; it has names at its sides if there is space to read them."""
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


CHANNELS = 8  # channels of a kernel that are drawn


def token_maps(model: TubeViT) -> dict[str, str]:
    """A picture for each tube, and for the frames: how many tokens see each pixel, and, in a strip, each frame."""
    size = (model.preprocess.frames, *model.preprocess.size)
    return {spec.name: _token_map(spec, size) for spec in model.tokenizer.specs(size)}


def _token_map(spec: TubeSpec, size: Size) -> str:
    cover = np.zeros(size)
    for box in token_boxes(spec, size):
        cover[box] += 1
    picture = cover.max(axis=0)  # (H, W)
    times = np.repeat(cover.max(axis=(1, 2))[None], max(2, size[1] // 8), axis=0)  # a strip below: frames

    def draw(axes: Axes) -> None:
        axes.imshow(picture, cmap="viridis", vmin=0, extent=(0, size[2], size[1], 0))
        strip = axes.inset_axes((0, -0.22, 1, 0.12))
        strip.imshow(times, cmap="viridis", vmin=0, aspect="auto", extent=(0, size[0], 0, 1))
        strip.set(yticks=[], xlabel="frame")
        axes.set(xticks=[], yticks=[], title=f"{spec.name}: {spec.tokens(size)}")

    return svg(f"where {spec.name} looks", draw, (2.2, 2.6))


@torch.no_grad()
def kernels(model: TubeViT) -> dict[str, str]:
    """Pictures of the first channels of each kernel (patches and tubes): a row for each channel, frames side by side.

    If a kernel has several places whose outputs are summed, these follow one after the other."""
    tubes, patch = model.tokenizer.tubes, patch_of(model.tokenizer.stem)
    weights = {} if patch is None else {"patches": patch.weight[:, :, None]}
    for spec in tubes.specs:
        kernel = tubes[spec.name].kernel if tubes.shared is None else resize_kernel(tubes.shared, spec.kernel)
        weights[spec.name] = kernel.unflatten(1, (spec.kernels, 3)).transpose(1, 2).flatten(2, 3)  # (c, 3, f*t, h, w)
    return {name: _kernel(name, weight) for name, weight in weights.items()}


def _kernel(name: str, weight: Tensor) -> str:
    """The picture of a kernel (c, 3, t, h, w)."""
    channels = len(weight)
    weight = weight[:CHANNELS].cpu()
    weight = weight[:, :, :: max(1, weight.shape[2] // 8)]  # at most eight frames
    span = weight.abs().amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-12)
    pictures = (0.5 + 0.5 * weight / span).permute(0, 3, 2, 4, 1)  # (c, h, t, w, 3)
    c, h, t, w, _ = pictures.shape
    framed = torch.ones(c, h + 1, t, w + 1, 3)
    framed[:, :h, :, :w] = pictures
    if t == 1:  # patches: channels side by side
        framed = framed.permute(2, 1, 0, 3, 4)
    rows, columns = framed.shape[0] * framed.shape[1], framed.shape[2] * framed.shape[3]

    def draw(axes: Axes) -> None:
        axes.imshow(framed.flatten(2, 3).flatten(0, 1).numpy(), interpolation="nearest")
        over = "" if t == 1 else ", over time"
        axes.set(xticks=[], yticks=[], title=f"{name}: {c} of {channels} channels{over}")

    return svg(f"kernel of {name}", draw, (4.7, min(6.0, 0.6 + 4.7 * rows / columns)))
