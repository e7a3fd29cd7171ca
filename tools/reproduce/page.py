"""The document: every table's rows beside the paper's, and which of its orderings are seen."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reproduce.judge import RULE, Verdict, judge
from reproduce.table import RANDOM, Claim, Table
from scaleup.common.files import read_json
from scaleup.common.text import markdown

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
