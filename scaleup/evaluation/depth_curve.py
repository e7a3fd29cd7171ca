"""Curves of accuracy by depth: in words, as a plot, and as a directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaleup.common.files import new_directory

WIDTH = 40  # characters of a bar that stands for 100 %


def suggest_depths(rows: Sequence[Mapping[str, Any]]) -> int:
    """The smallest depth above which no accuracy is higher by more than the standard error; a heuristic."""
    for index, row in enumerate(rows):
        if max(above["accuracy"] for above in rows[index:]) <= row["accuracy"] + row["standard_error"]:
            return row["depth"]
    raise AssertionError("the last depth has none above it")


def describe_suggestion(label: str, curve: Mapping[str, Any]) -> str:
    """What :func:`suggest_depths` found, as a sentence."""
    row = next(row for row in curve["rows"] if row["depth"] == curve["suggested_depth"])
    return (
        f"{label}: above depth {row['depth']} accuracy rises by no more than its standard error "
        f"({row['standard_error']:.1%}), so freezing more should stop paying there (a heuristic; a sweep decides)"
    )


def lines(result: Mapping[str, Any]) -> list[str]:
    """A result of :func:`scaleup.evaluation.depth_profile.probe` for people."""
    text = []
    for label, curve in result["labels"].items():
        text += [f"{label} (chance {curve['chance']:.1%})", "depth   train    test"]
        text += [
            f"{row['depth']:5d}  {row['train_accuracy']:6.1%}  {row['accuracy']:6.1%}  "
            + "█" * round(WIDTH * row["accuracy"])
            for row in curve["rows"]
        ]
        text += [describe_suggestion(label, curve), ""]
    for split in ("train", "test"):
        seen = result[split]
        text += [
            f"{split}: {seen['samples']} samples, {len(seen['failures'])} failures, {seen['views']} views",
            f"list {seen['list_sha256']}",
        ]
    drift = result["trunk"]["drift"].items()
    precision = result["trunk"]["precision"]
    return text + [
        f"trunk in {precision}: h after block {depth} moves by {moved:.2%} of its RMS" for depth, moved in drift
    ]


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy on the test split by depth, with its standard error; suggested depths are ringed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for label, curve in result["labels"].items():
        points = {row["depth"]: 100 * row["accuracy"] for row in curve["rows"]}
        errors = [100 * row["standard_error"] for row in curve["rows"]]
        drawn = axes.errorbar(list(points), list(points.values()), errors, marker="o", capsize=3, label=label)
        colour, depth = drawn.lines[0].get_color(), curve["suggested_depth"]
        axes.plot(depth, points[depth], marker="o", markersize=14, fillstyle="none", color=colour)
        axes.axhline(100 * curve["chance"], color=colour, linestyle=":")
    title = f"Linear classifiers, {result['test']['samples']} samples; dotted: chance"
    axes.set(xlabel=f"blocks (of {result['model']['depth']})", ylabel="top-1 (%)", ylim=(0, 100), title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(result: Mapping[str, Any], out: Path, overwrite: bool = False) -> None:
    """``probe.json`` and ``probe.png`` in a directory that appears when both are complete."""
    with new_directory(out, overwrite) as directory:
        (directory / "probe.json").write_text(json.dumps(result, indent=2) + "\n")
        plot(result, directory / "probe.png")
