"""What the rows of ``make real`` are asked: whether one is better than another by the accuracy of a head."""

from __future__ import annotations

from dataclasses import dataclass

from real.groups import title
from real.rows import Real
from reproduce.verdict import Verdict, judge


@dataclass(frozen=True)
class Claim:
    """That a row is better than another one.

    Args:
        source: a table of the paper, or what else is asked.
        better, worse: titles of rows.
        head: whose accuracy is compared.
    """

    source: str
    better: str
    worse: str
    head: str


CLAIMS = (
    Claim("Table 6", "last3", "head", "film_motion"),
    Claim("Table 6, the gate", "last3_gate", "last3", "film_motion"),
    Claim("Table 6, the gate", "last3_gate", "last3", "motion"),
    Claim("heads that read all tokens", "attentive", "head", "film_motion"),
    Claim("heads that read all tokens", "attentive_taps", "attentive", "film_motion"),
    Claim("heads that read all tokens", "last3", "attentive_taps", "film_motion"),
    Claim("transplanted against random tubes", "attentive", "attentive, random tubes", "film_motion"),
    Claim("transplanted against random tubes", "attentive", "attentive, random tubes", "camera"),
    Claim("transplanted against random tubes", "last3", "last3, random tubes", "film_motion"),
    Claim("transplanted against random tubes", "last3", "last3, random tubes", "motion"),
    Claim("Table 6", "last6", "last3", "film_motion"),
    Claim("Table 6, the gate", "last6_gate", "last6", "film_motion"),
    Claim("Table 6, the gate", "last6_gate", "last6", "motion"),
    Claim("strong tubes against matched ones", "last3", "last3, matched tubes", "film_motion"),
    Claim("strong tubes against matched ones", "attentive", "attentive, matched tubes", "object"),
    Claim("strong tubes against matched ones", "last3", "last3, matched tubes", "object"),
    Claim("heir against donor", "last3", "small model", "film_motion"),
    Claim("heir against donor", "attentive_taps", "small model", "camera"),
    Claim("heir against donor", "attentive", "small model", "object"),
    Claim("tubes against frames", "last3", "2 frames, late", "film_motion"),
    Claim("tubes against frames", "last3", "4 frames, late", "film_motion"),
    Claim("tubes against frames", "last3", "8 frames, late", "film_motion"),
    Claim("tubes against frames", "attentive_taps", "16 frames, attentive", "film_motion"),
    Claim("tubes against frames", "attentive", "1 frame, attentive", "object"),
    Claim("more frames", "16 frames, attentive", "8 frames, attentive", "object"),
    Claim("budget", "attentive, 4 times the steps", "attentive", "object"),
    Claim("budget", "attentive_taps, 4 times the steps", "attentive_taps", "object"),
    Claim("budget", "attentive_taps, 4 times the steps", "attentive_taps", "film_motion"),
    Claim("heir against donor", "attentive_taps, 4 times the steps", "small model", "object"),
    Claim("heir against donor", "attentive_taps, 4 times the steps", "small model", "film_motion"),
    Claim("heir against donor", "attentive_taps, with images", "small model", "object"),
    Claim(
        "tubes against frames",
        "attentive_taps, 4 times the steps",
        "8 frames, attentive, 4 times the steps",
        "object",
    ),
    Claim("Table 5", "attentive, with images", "attentive", "object"),
    Claim("Table 5", "attentive_taps, with images", "attentive_taps", "object"),
    Claim("Table 5", "attentive_taps, with images", "attentive_taps", "film_motion"),
    Claim("Table 7a", "small model, films alone", "small model, films, learned positions", "film_motion"),
    Claim("Table 7a", "attentive", "attentive, cosine positions", "film_motion"),
    Claim("Table 7a", "attentive", "attentive, cosine positions", "object"),
    Claim("Table 7a", "attentive_taps", "attentive_taps, cosine positions", "film_motion"),
    Claim("Table 7a", "attentive_taps", "attentive_taps, cosine positions", "object"),
    Claim("Table 7b", "small model, films alone", "small model, films, one tube", "film_motion"),
    Claim("Table 7b", "attentive_taps, films alone", "attentive_taps, films, one tube", "film_motion"),
    Claim("Table 7c", "small model, films, tubes folded in time", "small model, films alone", "film_motion"),
    Claim("Table 7c", "attentive_taps, films, tubes folded in time", "attentive_taps, films alone", "film_motion"),
    Claim("a width that divides", "small model, films alone", "small model, films, width 160", "film_motion"),
    Claim(
        "a width that divides",
        "attentive_taps, films alone",
        "attentive_taps, films, width 160",
        "film_motion",
    ),
    Claim("random crops", "attentive, random crops", "attentive", "film_motion"),
    Claim("random crops", "attentive_taps, random crops", "attentive_taps", "film_motion"),
    Claim("random crops", "attentive_taps, random crops", "attentive_taps", "object"),
    Claim("align against fold", "attentive, aligned tubes", "attentive", "film_motion"),
    Claim("align against fold", "attentive_taps, aligned tubes", "attentive_taps", "film_motion"),
    Claim("align against fold", "attentive, aligned tubes", "attentive", "object"),
    Claim("align against fold", "attentive_taps, aligned tubes", "attentive_taps", "object"),
)


def verdicts(real: Real) -> list[tuple[Claim, Verdict]]:
    """The claims about rows that were measured."""
    rows = {title(row.group, row.name): row.top1 for row in real.rows}
    measured = [claim for claim in CLAIMS if claim.better in rows and claim.worse in rows]
    return [(claim, _judge(rows[claim.better][claim.head], rows[claim.worse][claim.head])) for claim in measured]


def _judge(better: list[float], worse: list[float]) -> Verdict:
    """The verdict on two rows, by seed. A row of one seed, such as a small model's, is compared with each seed."""
    seeds = max(len(better), len(worse))
    pairs = (shares if len(shares) > 1 else shares * seeds for shares in (better, worse))
    return judge(*({str(seed): share for seed, share in enumerate(shares)} for shares in pairs))
