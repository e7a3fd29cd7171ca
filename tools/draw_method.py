#!/usr/bin/env python
"""Draw the two pictures of the README: the method, and the demo's result (from the table in the README)."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, NamedTuple

from scaleup.cli import tool
from scaleup.common.errors import UserError

ROOT = Path(__file__).parents[1]
TRAINS, FROZEN, PLAIN = "#f6c38c", "#c3d5e8", "#f2f2f2"
TRANSPLANTED, RANDOM = "#d9822b", "#8fa3b8"
CHANCE = {"shape": 12.5, "motion": 16.7}
LABELS = {
    "head": "head\nalone",
    "attentive": "learned\nquery",
    "last1": "last\nblock",
    "last2": "last 2\nblocks",
    "last2_gate": "last 2,\ngated",
}
LABELS |= {"full": "all, tubes\ntrain too"}


class Score(NamedTuple):
    """Top-1 in per cent: mean, lowest and highest of the seeds."""

    mean: float
    low: float
    high: float


def scores(page: str) -> dict[tuple[str, str], dict[str, Score]]:
    """(arm, tubes) -> the scores of ``shape`` and ``motion``, read from the demo's table in the README.

    Raises:
        UserError: the page has no such table.
    """
    results = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        values = [re.fullmatch(r"(\d+) \((\d+) to (\d+)\)", cell) for cell in cells[-2:]]
        if len(cells) == 5 and all(values):
            numbers = [Score(*map(float, value.groups())) for value in values if value]
            results[cells[0].removeprefix("adapted: "), cells[1]] = dict(zip(CHANCE, numbers, strict=True))
    if missing := [arm for arm in LABELS if arm not in {arm for arm, _ in results}]:
        raise UserError(f"README.md has no table of the demo with a row for {', '.join(missing)}")
    return results


def draw_result(results: dict[tuple[str, str], dict[str, Score]], plt: Any) -> Any:
    """Bars of motion and shape for each arm, with transplanted and with random tubes; lines from lowest to highest."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for axis, head in zip(axes, ("motion", "shape"), strict=True):
        for number, arm in enumerate(LABELS):
            rows = [(tubes.split(",")[0], score[head]) for (name, tubes), score in results.items() if name == arm]
            for place, (tubes, score) in enumerate(rows):
                x = number + (place - (len(rows) - 1) / 2) * 0.38
                errors = [[score.mean - score.low], [score.high - score.mean]]
                colour = TRANSPLANTED if tubes == "transplanted" else RANDOM
                axis.bar(x, score.mean, 0.36, yerr=errors, color=colour, ecolor="#444444", capsize=2)
        axis.axhline(CHANCE[head], color="#444444", linestyle=":", linewidth=1)
        axis.text(len(LABELS) - 0.45, CHANCE[head], "chance", va="center", fontsize=8, color="#444444")
        axis.set(title=f"{head}, top-1 (%)", ylim=(0, 100), xlim=(-0.5, len(LABELS) - 0.5), xticks=range(len(LABELS)))
        axis.set_xticklabels(LABELS.values(), fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    bars = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (TRANSPLANTED, RANDOM)]
    legend = {"fontsize": 8, "loc": "outside lower center", "ncols": 2, "frameon": False}
    figure.legend(bars, ["transplanted tubes", "random tubes"], title="what trains in the large image ViT", **legend)
    return figure


def draw_method(plt: Any) -> Any:
    """The small joint model above, the large image ViT below, and the tubes that move from one to the other."""
    figure = plt.figure(figsize=(9.5, 4.3))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 19), ylim=(0, 8.6))
    axis.axis("off")

    def box(x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
        axis.add_patch(plt.Rectangle((x, y), width, height, facecolor=colour, edgecolor="#444444", linewidth=0.8))
        axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5)

    def arrow(*points: tuple[float, float], colour: str = "#444444", width: float = 1.0) -> None:
        for begin, end in zip(points[:-2], points[1:-1], strict=True):
            axis.plot(*zip(begin, end, strict=True), color=colour, linewidth=width, solid_capstyle="round")
        style = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", xy=points[-1], xytext=points[-2], arrowprops=style)

    def words(x: float, y: float, text: str, size: float = 8.5, **how: Any) -> None:
        axis.text(x, y, text, ha=how.pop("ha", "center"), va="center", fontsize=size, **how)

    def tokens_of(y: float, upper: str, lower: str, colour: str) -> None:
        """Images and videos to tokens."""
        box(0.3, y - 0.7, 1.9, 1.4, "images,\nvideos", PLAIN)
        box(3.1, y + 0.15, 2.3, 0.8, upper, colour)
        box(3.1, y - 0.95, 2.3, 0.8, lower, colour)
        box(6.3, y - 0.7, 0.9, 1.4, "$z_0$", PLAIN)
        for side in (-1, 1):
            arrow((2.2, y + 0.25 * side), (3.1, y + 0.55 * side))
            arrow((5.4, y + 0.55 * side), (6.3, y + 0.25 * side))

    words(0.3, 8.2, "1  Small ViT, trained on images and videos together", 10, ha="left", weight="bold")
    tokens_of(6.9, "patches", "video tubes", TRAINS)
    box(8.0, 6.2, 7.2, 1.4, "all blocks", TRAINS)
    box(16.2, 6.2, 2.5, 1.4, "norm, pool,\nheads", TRAINS)
    arrow((7.2, 6.9), (8.0, 6.9))
    arrow((15.2, 6.9), (16.2, 6.9))

    arrow((4.25, 5.95), (4.25, 2.95), colour=TRANSPLANTED, width=2.5)
    words(4.7, 5.2, "2  Tubes move into the large ViT by space-to-depth", 10, ha="left", weight="bold")
    words(4.7, 4.55, "one token = c channels of the small kernel at f places, side by side:", ha="left")
    for number in range(4):
        box(13.2 + 0.6 * number, 4.35, 0.55, 0.4, "c", TRAINS)
    words(15.75, 4.55, "= width D", ha="left")

    words(4.7, 3.45, "3  Large image ViT: early blocks frozen, late blocks train", 10, ha="left", weight="bold")
    tokens_of(2.0, "moved tubes", "patches", FROZEN)
    box(8.0, 1.3, 2.9, 1.4, "frozen blocks", FROZEN)
    axis.add_patch(plt.Circle((12.0, 2.0), 0.36, facecolor=TRAINS, edgecolor="#444444", linewidth=0.8))
    words(12.0, 1.98, "+", 12)
    box(13.1, 1.3, 2.3, 1.4, "late blocks", TRAINS)
    box(16.2, 1.3, 2.5, 1.4, "norm, pool,\nheads", TRAINS)
    arrow((7.2, 2.0), (8.0, 2.0))
    arrow((10.9, 2.0), (11.64, 2.0))
    arrow((12.36, 2.0), (13.1, 2.0))
    arrow((15.4, 2.0), (16.2, 2.0))
    words(11.2, 2.3, "$h$", 9)
    arrow((6.75, 1.3), (6.75, 0.65), (12.0, 0.65), (12.0, 1.64))
    words(9.3, 0.33, r"gate: $h + \tanh(\alpha)\, z_0$, where $\alpha$ starts at 0", 9)

    for x, colour, text in ((13.6, TRAINS, "trains"), (15.9, FROZEN, "frozen")):
        box(x, 0.25, 0.5, 0.35, "", colour)
        words(x + 0.7, 0.42, text, ha="left")
    return figure


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, "tools/draw_method.py --out docs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures (default docs)")
    return parser


def run(args: argparse.Namespace) -> dict[str, str]:
    results = scores((ROOT / "README.md").read_text())
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "scaleup"  # the same bytes every time
    method, result = args.out / "method.svg", args.out / "result.png"
    draw_method(plt).savefig(method, metadata={"Date": None}, facecolor="white")
    draw_result(results, plt).savefig(result, dpi=110, metadata={"Software": None}, facecolor="white")
    return {"method": str(method), "result": str(result)}


def show(result: dict[str, str]) -> None:
    print(*result.values(), sep="\n")


if __name__ == "__main__":
    tool.main(run, arguments().parse_intermixed_args(), show)
