"""Whether a claim, that one row is better than another, holds: compared seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Student's t, two-sided 95 %, for 1, 2, 3 ... degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
WORDS = ("holds", "within noise", "does not hold")


class Verdict(NamedTuple):
    """Whether a claim holds: ``word``, from ``difference`` +- ``interval`` (shares of 1)."""

    word: str  # holds | does not hold | within noise | one seed | not measured
    difference: float | None = None
    interval: float | None = None


def judge(better: Mapping[str, float], worse: Mapping[str, float]) -> Verdict:
    """Judge a claim.

    Args:
        better: seed -> accuracy of the row that should be better.
        worse: seed -> accuracy of the row that should be worse. Only seeds that both rows have count.
    """
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
