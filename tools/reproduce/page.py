"""The document: every table's rows beside the paper's, and which of its orderings are seen, judged by what differs from
seed to seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reproduce.tables import RANDOM, Claim, Table
from scaleup.common.files import read_json
from scaleup.common.text import markdown

RULE = """Rows of one seed share data and beginnings, so they are compared seed by seed. A claim *holds* where the mean
difference is above 0 by more than its 95 % interval (Student's t over the seeds), *does not hold* where it is below 0
by as much, and is *within noise* otherwise; of a single seed nothing is said."""
# Student's t, two-sided 95 %, for 1, 2, 3 ... degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)

EDGE = "*"  # after a learning rate beyond which a better one may lie
WORDS = ("holds", "within noise", "does not hold")
INTRODUCTION = f"""# The paper's tables at desk scale

Written from `docs/reproduction/*.json` by `python tools/reproduce.py TABLE... --write`, which runs what is missing;
`--plan` says how long that takes. Not here are Tables 1 to 4, where the paper compares itself with other methods.

The paper trains on Kinetics and ImageNet for weeks; here its rows train for minutes on embedded videos and images of 32
pixels (`tools/make_shards.py shapes --places`). Numbers are not to be compared with the paper's; the *orderings* are.

One quarter of the frame shows a shape and each of the others a dot; all of them move. `place_motion` is the motion of
the shape together with its quarter, 24 classes: a frame tells only the quarter, and what moves, without positions, only
the motion. Seeds differ in everything: data, the models that rows begin from, order and initialisation. Rows of a table
have the same steps and batch, and each its own learning rate, the best of three on the validation split with the first
seed, marked {EDGE} where it is the largest or the smallest of them. Reported is the test split: mean (lowest to
highest) over the seeds, in per cent. A row whose tubes come from a small model has a control with random ones.

{RULE} Of so many claims a few are misjudged by chance.
"""


def document(tables: Mapping[str, Table], results: Path) -> str:
    """The page as Markdown, from one JSON file a table in ``results``."""
    paths = {name: results / f"{name}.json" for name in tables}
    sections = [section(name, table, paths[name]) for name, table in tables.items()]
    return "\n".join([INTRODUCTION, *_overview(tables, paths), "", *sections])


def _overview(tables: Mapping[str, Table], paths: Mapping[str, Path]) -> list[str]:
    """How many claims of each table hold."""
    rows = []
    for name, table in tables.items():
        cells = ["not run", *["-"] * len(WORDS)]
        if paths[name].exists():
            result = read_json(paths[name])
            words = [_verdict(claim, table.head, result["rows"]).word for claim in claims(table, result["rows"])]
            cells = [str(len(result["seeds"])), *(str(words.count(word)) for word in WORDS)]
        rows.append([f"`{name}`", table.title, *cells])
    return markdown(["`tools/reproduce.py`", "", "seeds", *WORDS], rows)


def section(name: str, table: Table, path: Path) -> str:
    """A table's part of the page, which says so where nothing was measured."""
    lines = [f"## {table.title}", ""]
    if table.note:
        lines += [table.note, ""]
    if not path.exists():
        return "\n".join([*lines, f"Not run yet: `python tools/reproduce.py {name}`.", ""])
    result = read_json(path)
    return "\n".join([*lines, _setting(result), "", *_rows(table, result), "", *_claims(table, result), ""])


def _setting(result: Mapping[str, Any]) -> str:
    chance = ", ".join(f"{head} {share:.1%}" for head, share in result["chance"].items())
    batches = sorted({row["batch"] for row in result["rows"].values() if "batch" in row})
    data = f"{result['samples']:,} training videos, batches of {', '.join(map(str, batches))}"
    return f"Seeds {', '.join(map(str, result['seeds']))}; {data}. Chance: {chance}."


def _rows(table: Table, result: Mapping[str, Any]) -> list[str]:
    others = [head for head in result["chance"] if head != table.head]
    heads = [table.head, *others]
    rows = []
    for name, row in result["rows"].items():
        paper = "-" if row["paper"] is None else f"{row['paper']:.1f}"
        values = [_spread([seed[head] for seed in row["seeds"].values() if head in seed]) for head in heads]
        rows.append([name, paper, *values, _rate(row), row["steps"]])
    return markdown(["row", "paper", *heads, "learning rate", "steps"], rows)


def _rate(row: Mapping[str, Any]) -> str:
    if row["lr"] is None:
        return "-"
    tried = [float(rate) for rate in row["validation"]]
    inside = min(tried) * 1.01 < row["lr"] < max(tried) / 1.01
    return f"{row['lr']:.0e}" + ("" if inside else EDGE)


def _spread(shares: list[float]) -> str:
    """Mean (lowest to highest) in per cent."""
    if not shares:
        return "-"
    mean = f"{100 * statistics.fmean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def _claims(table: Table, result: Mapping[str, Any]) -> list[str]:
    return [_claim(claim, table, result["rows"]) for claim in claims(table, result["rows"])]


def claims(table: Table, rows: Iterable[str]) -> list[Claim]:
    """The table's claims, and of each row that has a control that it is better than that."""
    controls = [Claim(name.removesuffix(RANDOM), name, ours=True) for name in rows if name.endswith(RANDOM)]
    return [*table.claims, *controls]


def _claim(claim: Claim, table: Table, rows: Mapping[str, Any]) -> str:
    verdict = _verdict(claim, table.head, rows)
    measured = "" if verdict.difference is None else f" ({100 * verdict.difference:+.1f}"
    measured += "" if verdict.interval is None else f" ± {100 * verdict.interval:.1f}"
    measured += ")" if measured else ""
    whose = " (not the paper's)" if claim.ours else ""
    remark = table.remarks.get(str(claim), "") if verdict.word in ("does not hold", "within noise") else ""
    return f"- {claim}{whose}: **{verdict.word}**{measured}. {remark}".rstrip()


def _verdict(claim: Claim, head: str, rows: Mapping[str, Any]) -> Verdict:
    head = claim.head or head
    better, worse = (
        {seed: found[head] for seed, found in rows.get(name, {"seeds": {}})["seeds"].items() if head in found}
        for name in (claim.better, claim.worse)
    )
    return judge(better, worse)


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
