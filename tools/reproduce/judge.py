"""Whether an ordering that is claimed is seen, judged by what differs from seed to seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

RULE = """Rows of one seed share data and beginnings, so they are compared seed by seed. A claim *holds* where the mean
difference is above 0 by more than its 95 % interval (Student's t over the seeds), *does not hold* where it is below 0
by as much, and is *within noise* otherwise; of a single seed nothing is said."""
# Student's t, two-sided 95 %, for 1, 2, 3 ... degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


class Verdict(NamedTuple):
    """``word`` says what ``difference`` +- ``interval``, both as shares of 1, amounts to."""

    word: str  # holds | does not hold | within noise | one seed | not measured
    difference: float | None = None
    interval: float | None = None


def judge(better: Mapping[str, float], worse: Mapping[str, float]) -> Verdict:
    """Accuracies by seed of the row that should be better and of the one that should be worse; seeds that both have
    count."""
    differences = [better[seed] - worse[seed] for seed in better if seed in worse]
    if not differences:
        return Verdict("not measured")
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return Verdict("one seed", mean)
    interval = _interval(differences)
    if abs(mean) <= interval:
        return Verdict("within noise", mean, interval)
    return Verdict("holds" if mean > 0 else "does not hold", mean, interval)


def _interval(values: Sequence[float]) -> float:
    freedom = min(len(values) - 1, len(STUDENT))
    return STUDENT[freedom - 1] * statistics.stdev(values) / math.sqrt(len(values))
