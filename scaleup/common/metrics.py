"""Measures of a head: their names, the one by which arms are compared, and average precision."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np


class Measure(NamedTuple):
    """How a measure is shown."""

    title: str
    scale: int = 1  # 100: a share, shown in %

    def text(self, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value * self.scale:.2f}" if self.scale > 1 else f"{value:.4g}"

    def words(self, value: float | None) -> str:
        return f"{value:.2%}" if self.scale > 1 and value is not None else self.text(value)

    @property
    def column(self) -> str:
        """The head of its column in a table."""
        return f"{self.title} %" if self.scale > 1 else self.title


MEASURES = {  # by their names in results, in the order of tables
    "map": Measure("mAP", 100),
    "top1": Measure("top-1", 100),
    "top5": Measure("top-5", 100),
    "r2": Measure("R2"),
    "mae": Measure("MAE"),
    "rmse": Measure("RMSE"),
}


def leading(score: Mapping[str, float | None]) -> str:
    """The measure by which a head is compared: mAP, R2 or top-1."""
    return next(name for name in ("map", "r2", "top1") if name in score)


def mean_of(names: Collection[str]) -> Measure:
    """What the mean over heads is that are compared by these measures."""
    measures = [measure for name, measure in MEASURES.items() if name in names] or [MEASURES["top1"]]
    title = " and ".join(measure.title for measure in measures)
    return Measure("mean of " * (len(measures) > 1) + title, min(measure.scale for measure in measures))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """The sum over thresholds of precision times the rise of recall; samples with equal scores pass a threshold
    together. nan if no sample is positive.

    Args:
        scores: (N,), the higher the surer.
        positive: (N,), whether a sample has the class.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last sample of each threshold
    hits = positive[order].cumsum()[ends]
    rises = np.diff(hits, prepend=0)
    return float((rises * hits / (ends + 1)).sum() / hits[-1]) if hits[-1] else float("nan")


def average_precisions(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The average precision of each class, nan for one that no sample has: (C,), from (N, C) both."""
    return np.array([average_precision(*columns) for columns in zip(scores.T, positive.T, strict=True)])


def mean_average_precision(
    precisions: np.ndarray, counts: np.ndarray, total: int
) -> tuple[float, float] | tuple[None, None]:
    """Mean of the average precisions (C,) over the classes that a sample has, and what random scores would give; None
    if no sample has a class.

    Args:
        counts: of ``total`` samples, how many have each class, (C,).
    """
    present = np.flatnonzero(counts)
    if not len(present):
        return None, None
    return float(np.mean(precisions[present])), float(counts[present].mean() / total)
