"""The page of ``make real``: its figures between two marks, its picture, and its JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from real.claims import verdicts
from real.groups import ABLATIONS, title
from real.rows import Real, Row
from scaleup.common.files import write_json, write_text
from scaleup.common.text import around_marks, markdown

HEADS = ("film_motion", "object", "motion", "camera", "event", "film")  # as columns
TICKS = (2, 3, 5, 10, 20, 40)  # GFLOP
BEGIN, END = "<!-- figures: written by tools/real.py --docs -->\n", "<!-- figures end -->\n"


def write(real: Real, out: Path) -> None:
    """Write ``real.json``, ``real.png``, and the table as ``README.md`` into a directory."""
    write_json(out / "real.json", asdict(real))
    plot(real, out / "real.png")
    write_text(out / "README.md", "\n".join(figures(real)))


def rewrite(page: Path, real: Real) -> None:
    """Replace the figures of a page, and write its JSON and its picture beside it.

    Raises:
        UserError: the page does not exist, or has no marks.
    """
    before, after = around_marks(page, BEGIN, END)
    write_json(page.with_suffix(".json"), asdict(real))
    plot(real, page.with_suffix(".png"))
    write_text(page, before + BEGIN + "\n".join(figures(real)) + END + after)


def figures(real: Real) -> list[str]:
    """The lines between the marks."""
    chance = ", ".join(f"{head} {100 * share:.1f}" for head, share in real.chance.items())
    clips = "; ".join(f"{name}: {count:,}" for name, count in real.clips.items())
    seeds = f"seed{'s' * (len(real.seeds) > 1)} {', '.join(map(str, real.seeds))}"
    seeds += f"; a row without a range has seed {real.seeds[0]} alone" if len(real.seeds) > 1 else ""
    exact = ", ".join(f"{side}: {value:g}" for side, value in real.exact.items())
    return [
        *table(real),
        "",
        *_ablations(real),
        f"Top-1 in %, one view; {seeds}. Chance: {chance}.",
        "",
        *_claims(real),
        "",
        f"Clips and images: {clips}.",
        "",
        f"Largest difference of an image's features to timm's own model, by side in pixels: {exact}.",
        "",
        *markdown(["frozen blocks in", "features move by", "same first class", "film_motion"], _moved(real)),
        "",
        *markdown(["an image's features in", "move by", "object, by ridge regression"], _told(real)),
        "",
        f"Seconds of the stages, all seeds together: {_seconds(real)}.",
        "",
    ]


def _claims(real: Real) -> list[str]:
    """Each claim with its verdict, as a Markdown table."""
    rows = []
    for about, claim, verdict in verdicts(real):
        measured = f"{100 * (verdict.difference or 0):+.1f}"
        measured += f" ± {100 * verdict.interval:.1f}" if verdict.interval is not None else ""
        rows.append([about, claim.better, claim.worse, claim.head, measured, verdict.word])
    return markdown(["", "is better", "than", "by", "points", "verdict"], rows, to_right=[4])


def _moved(real: Real) -> list[list[str]]:
    """The rows of the precisions of the arm ``attentive``."""
    return [
        [name, *(f"{100 * each[key]:.1f} %" for key in ("drift", "same", "top1"))]
        for name, each in real.precisions.items()
    ]


def _told(real: Real) -> list[list[str]]:
    """The rows of an image's features, by precision and program."""
    return [[name, *(f"{100 * each[key]:.2g} %" for key in ("drift", "top1"))] for name, each in real.features.items()]


def _ablations(real: Real) -> list[str]:
    """The rows that differ from others in one thing, if they were measured."""
    rows = [row for row in real.rows if _is_ablation(row)]
    return ["With one thing changed:", "", *_table(rows), ""] if rows else []


def _is_ablation(row: Row) -> bool:
    return row.group in ABLATIONS or (row.group == "small" and row.name != "small")


def _seconds(real: Real) -> str:
    """Seconds by stage, over all seeds."""
    sums: dict[str, float] = {}
    for name, seconds in sorted(real.seconds.items()):
        stage = re.sub(r"-\d+$", "", name)
        sums[stage] = sums.get(stage, 0) + seconds
    return "; ".join(f"{stage} {seconds:.0f}" for stage, seconds in sums.items())


def figure(values: Sequence[float]) -> str:
    """Per cent: ``61.2``, or with several seeds ``61.2 (60.1 to 62.4)``."""
    mean = f"{100 * sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def table(real: Real) -> list[str]:
    """The rows but ablations as a Markdown table: top-1 in per cent, and costs."""
    return _table([row for row in real.rows if not _is_ablation(row)])


def _table(every: Sequence[Row]) -> list[str]:
    header = ["model", *HEADS, "trained", "GFLOP / step", "GFLOP / clip", "ms / clip", "cache kB / clip"]
    rows = []
    for row in every:
        scores = [figure(row.top1[head]) if head in row.top1 else "-" for head in HEADS]
        cache = "-" if row.cache_bytes is None else f"{row.cache_bytes / 1000:.0f}"
        cost = f"{row.step_gflop:.1f}", f"{row.clip_gflop:.1f}", f"{1000 * row.seconds:.0f}", cache
        rows.append([title(row.group, row.name), *scores, f"{row.trained_parameters:,}", *cost])
    return markdown(header, rows, to_right=range(1, len(header)))


MARKERS = {
    "small": ("small model, trained from scratch", "tab:gray", "s"),
    "transplanted": ("its tubes in the frozen DINOv2-S", "tab:blue", "o"),
    "longer": ("its tubes, 4 times the steps", "tab:purple", "*"),
    "matched": ("its tubes, as strong as the ViT's own tokens", "tab:cyan", "D"),
    "random": ("random tubes instead", "tab:orange", "x"),
    "frames": ("frames one by one, the same DINOv2-S", "tab:green", "^"),
}


def plot(real: Real, path: Path, heads: Sequence[str] = ("film_motion", "object")) -> None:
    """Accuracy against the cost of a step, a panel for each of a few heads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(heads), figsize=(6 * len(heads), 5), layout="constrained", squeeze=False)
    for axes, head in zip(panels[0], heads, strict=True):
        for group, (label, colour, marker) in MARKERS.items():
            rows = [row for row in real.rows if row.group == group and (group != "small" or row.name == "small")]
            points = [row.step_gflop for row in rows], [100 * row.mean(head) for row in rows]
            axes.plot(*points, linestyle="none", marker=marker, color=colour, label=label if rows else None)
            for row, cost, share in zip(rows, *points, strict=True):
                if group != "small":
                    axes.annotate(
                        row.name, (cost, share), (4, 3), textcoords="offset points", fontsize=6.5, color=colour
                    )
        axes.axhline(100 * real.chance[head], color="gray", linestyle=":", label="chance")
        axes.set(xscale="log", xlabel="GFLOP of a training step, one clip", ylabel="top-1 (%)", title=head)
        axes.set(xlim=(2, 80), ylim=(0, 100), xticks=TICKS, xticklabels=TICKS)
        axes.minorticks_off()
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
