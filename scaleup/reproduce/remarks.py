"""What to make of claims that were not seen: table -> claim -> a sentence, which the page prints where it is not seen.

Figures in them are of seeds 0, 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping

REMARKS: Mapping[str, Mapping[str, str]] = {
    "table6": {
        "last8_gate > last8": "The gate is better with every seed, by 1.7, 3.0 and 4.1 points (the paper: 2.9), which "
        "three seeds cannot settle; its alpha ends at 0.9 to 1.0, so it is open.",
        "full > full (random tubes)": "The transplant is better with every seed, by 24, 25 and 48 points; what is wide "
        "is the spread.",
    },
    "table9": {
        "all > all (random tubes)": "The transplant is better with every seed, by 24, 25 and 48 points; what is wide "
        "is the spread.",
    },
    "table7a": {
        "cosine > cosine_no_stride": "A quarter of the frame and a direction can be told from a token's number in its "
        "tube as well as from its place in pixels; the paper's gap of 7 points needs tasks that are finer, or tubes "
        "that differ more.",
        "relative > none": "Distances between tokens do not say in which quarter of the frame they are, and the motion "
        "alone is told without any positions (87 %).",
    },
}
