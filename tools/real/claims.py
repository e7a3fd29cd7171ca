"""What the rows of ``make real`` are asked: whether one is better than another by the accuracy of a head."""

from __future__ import annotations

from real.groups import title
from real.rows import Real
from reproduce.tables import Claim, chain
from reproduce.verdict import Verdict, judge

# A table of the paper, or what else is asked -> claims about the titles of rows.
CLAIMS = {
    "Table 6": (
        "last3 > head by film_motion",
        "last6 > last3 by film_motion",
    ),
    "Table 6, the gate": (
        "last3_gate > last3 by film_motion",
        "last3_gate > last3 by motion",
        "last6_gate > last6 by film_motion",
        "last6_gate > last6 by motion",
    ),
    "heads that read all tokens": (
        "attentive > head by film_motion",
        "attentive_taps > attentive by film_motion",
        "last3 > attentive_taps by film_motion",
    ),
    "transplanted against random tubes": (
        "attentive > attentive, random tubes by film_motion",
        "attentive > attentive, random tubes by camera",
        "last3 > last3, random tubes by film_motion",
        "last3 > last3, random tubes by motion",
    ),
    "strong tubes against matched ones": (
        "last3 > last3, matched tubes by film_motion",
        "attentive > attentive, matched tubes by object",
        "last3 > last3, matched tubes by object",
    ),
    "heir against donor": (
        "last3 > small model by film_motion",
        "attentive_taps > small model by camera",
        "attentive > small model by object",
        "attentive_taps, 4 times the steps > small model by object",
        "attentive_taps, 4 times the steps > small model by film_motion",
        "attentive_taps, with images > small model by object",
    ),
    "tubes against frames": (
        "last3 > 2 frames, late by film_motion",
        "last3 > 4 frames, late by film_motion",
        "last3 > 8 frames, late by film_motion",
        "last3 > 16 frames, late by film_motion",
        "attentive_taps > 16 frames, attentive by film_motion",
        "attentive > 1 frame, attentive by object",
        "attentive_taps, 4 times the steps > 8 frames, attentive, 4 times the steps by object",
    ),
    "more frames": ("16 frames, attentive > 8 frames, attentive by object",),
    "budget": (
        "attentive, 4 times the steps > attentive by object",
        "attentive_taps, 4 times the steps > attentive_taps by object",
        "attentive_taps, 4 times the steps > attentive_taps by film_motion",
    ),
    "Table 5": (
        "attentive, with images > attentive by object",
        "attentive_taps, with images > attentive_taps by object",
        "attentive_taps, with images > attentive_taps by film_motion",
    ),
    "Table 7a": (
        "small model, films alone > small model, films, learned positions by film_motion",
        "attentive > attentive, cosine positions by film_motion",
        "attentive > attentive, cosine positions by object",
        "attentive_taps > attentive_taps, cosine positions by film_motion",
        "attentive_taps > attentive_taps, cosine positions by object",
    ),
    "Table 7b": (
        "small model, films alone > small model, films, one tube by film_motion",
        "attentive_taps, films alone > attentive_taps, films, one tube by film_motion",
    ),
    "Table 7c": (
        "small model, films, tubes folded in time > small model, films alone by film_motion",
        "attentive_taps, films, tubes folded in time > attentive_taps, films alone by film_motion",
    ),
    "a width that divides": (
        "small model, films alone > small model, films, width 160 by film_motion",
        "attentive_taps, films alone > attentive_taps, films, width 160 by film_motion",
    ),
    "random crops": (
        "attentive, random crops > attentive by film_motion",
        "attentive_taps, random crops > attentive_taps by film_motion",
        "attentive_taps, random crops > attentive_taps by object",
    ),
    "align against fold": (
        "attentive, aligned tubes > attentive by film_motion",
        "attentive_taps, aligned tubes > attentive_taps by film_motion",
        "attentive, aligned tubes > attentive by object",
        "attentive_taps, aligned tubes > attentive_taps by object",
    ),
}


def verdicts(real: Real) -> list[tuple[str, Claim, Verdict]]:
    """The claims about rows that were measured, each with what it is about."""
    rows = {title(row.group, row.name): row.top1 for row in real.rows}
    every = [(about, claim) for about, lines in CLAIMS.items() for line in lines for claim in chain(line)]
    return [
        (about, claim, _judge(rows[claim.better][claim.head], rows[claim.worse][claim.head]))
        for about, claim in every
        if claim.better in rows and claim.worse in rows
    ]


def _judge(better: list[float], worse: list[float]) -> Verdict:
    """The verdict on two rows, by seed. A row of one seed is compared with each seed of the other."""
    seeds = max(len(better), len(worse))
    pairs = (shares if len(shares) > 1 else shares * seeds for shares in (better, worse))
    return judge(*({str(seed): share for seed, share in enumerate(shares)} for shares in pairs))
