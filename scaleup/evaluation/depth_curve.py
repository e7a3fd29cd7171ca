"""Curves of accuracy by depth: in words, as a plot, and as a directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaleup.common.files import new_directory
from scaleup.evaluate import Coverage

WIDTH = 40  # characters of a bar that stands for 100 %


@dataclass
class DepthAccuracy:
    """How often a linear classifier after so many blocks is right: shares of 1."""

    depth: int  # 0: what enters block 1
    train_accuracy: float
    accuracy: float  # on the test split
    standard_error: float  # of that
    penalty: float  # of the ridge regression


@dataclass
class DepthCurve:
    """The classifiers of one label."""

    classes: int
    chance: float  # accuracy of guessing
    rows: list[DepthAccuracy]  # in rising order of depth
    suggested_depth: int  # see suggest_depths


@dataclass
class DepthProfile:
    """What linear classifiers read from a frozen model, depth by depth; probe.json holds it."""

    labels: dict[str, DepthCurve]
    train: Coverage  # shards: the path
    test: Coverage
    train_scored: int  # training samples that train_accuracy is taken on
    pool: str  # how tokens become features, in words
    model: dict[str, Any]  # sha256 of its tensors, depth, and what of its config makes the tokens
    trunk: dict[str, Any]  # see scaleup.model.build.prepare_trunks
    seconds: float


def suggest_depths(rows: Sequence[DepthAccuracy]) -> int:
    """The smallest depth above which no accuracy is higher by more than the standard error; a heuristic."""
    for index, row in enumerate(rows):
        if max(above.accuracy for above in rows[index:]) <= row.accuracy + row.standard_error:
            return row.depth
    raise AssertionError("the last depth has none above it")


def describe_suggestion(label: str, curve: DepthCurve) -> str:
    """What :func:`suggest_depths` found, as a sentence."""
    row = next(row for row in curve.rows if row.depth == curve.suggested_depth)
    return (
        f"{label}: above depth {row.depth} accuracy rises by no more than its standard error "
        f"({row.standard_error:.1%}), so freezing more should stop paying there (a heuristic; a sweep decides)"
    )


def lines(profile: DepthProfile) -> list[str]:
    """A profile for people."""
    text = []
    for label, curve in profile.labels.items():
        text += [f"{label} (chance {curve.chance:.1%})", "depth   train    test"]
        text += [
            f"{row.depth:5d}  {row.train_accuracy:6.1%}  {row.accuracy:6.1%}  " + "█" * round(WIDTH * row.accuracy)
            for row in curve.rows
        ]
        text += [describe_suggestion(label, curve), ""]
    for split, coverage in (("train", profile.train), ("test", profile.test)):
        text += [
            f"{split}: {coverage.samples} samples, {len(coverage.failures)} failures, {coverage.views} views",
            f"list {coverage.list_sha256}",
        ]
    drift, precision = profile.trunk["drift"].items(), profile.trunk["precision"]
    return text + [
        f"trunk in {precision}: h after block {depth} moves by {moved:.2%} of its RMS" for depth, moved in drift
    ]


def plot(profile: DepthProfile, path: Path) -> None:
    """Accuracy on the test split by depth, with its standard error; suggested depths are ringed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for label, curve in profile.labels.items():
        points = {row.depth: 100 * row.accuracy for row in curve.rows}
        errors = [100 * row.standard_error for row in curve.rows]
        drawn = axes.errorbar(list(points), list(points.values()), errors, marker="o", capsize=3, label=label)
        colour, depth = drawn.lines[0].get_color(), curve.suggested_depth
        axes.plot(depth, points[depth], marker="o", markersize=14, fillstyle="none", color=colour)
        axes.axhline(100 * curve.chance, color=colour, linestyle=":")
    title = f"Linear classifiers, {profile.test.samples} samples; dotted: chance"
    axes.set(xlabel=f"blocks (of {profile.model['depth']})", ylabel="top-1 (%)", ylim=(0, 100), title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(profile: DepthProfile, out: Path, overwrite: bool = False) -> None:
    """``probe.json`` and ``probe.png`` in a directory that appears when both are complete."""
    with new_directory(out, overwrite) as directory:
        (directory / "probe.json").write_text(json.dumps(asdict(profile), indent=2) + "\n")
        plot(profile, directory / "probe.png")
