"""The document: every table's rows beside the paper's, and which of its orderings are seen."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaleup.reproduce.judge import RULE, judge
from scaleup.reproduce.table import RANDOM, Claim, Table

INTRODUCTION = f"""# The paper's tables at desk scale

Written from `docs/reproduction/*.json` by `python tools/reproduce.py TABLE... --write`, which runs what is missing.

The paper trains on Kinetics and ImageNet for weeks; here its rows train for minutes on embedded videos and images of 32
pixels (`tools/make_shards.py shapes --places`). Numbers are not to be compared with the paper's; the *orderings* are.

One quarter of the frame shows a shape and each of the others a dot; all of them move. `place_motion` is the motion of
the shape together with its quarter, 24 classes: a frame tells only the quarter, and what moves, without positions, only
the motion. Seeds differ in everything: data, the models that rows begin from, order and initialisation. Rows of a table
have the same steps and batch, and each its own learning rate, the best of three on the validation split with the first
seed; reported is the test split: mean (lowest to highest) over the seeds, in per cent.

{RULE} Of so many claims a few are misjudged by chance.
"""


def document(tables: Mapping[str, Table], results: Path) -> str:
    """The page as Markdown, from one JSON file a table in ``results``."""
    return "\n".join(
        [INTRODUCTION, *(section(name, table, results / f"{name}.json") for name, table in tables.items())]
    )


def section(name: str, table: Table, path: Path) -> str:
    """A table's part of the page, which says so where nothing was measured."""
    lines = [f"## {table.title}", ""]
    if table.note:
        lines += [table.note, ""]
    if not path.exists():
        return "\n".join([*lines, f"Not run yet: `python tools/reproduce.py {name}`.", ""])
    result = json.loads(path.read_text())
    return "\n".join([*lines, _setting(result), "", *_rows(table, result), "", *_claims(table, result), ""])


def _setting(result: Mapping[str, Any]) -> str:
    chance = ", ".join(f"{head} {share:.1%}" for head, share in result["chance"].items())
    return f"Seeds {', '.join(map(str, result['seeds']))}; {result['samples']:,} training videos. Chance: {chance}."


def _rows(table: Table, result: Mapping[str, Any]) -> list[str]:
    others = [head for head in result["chance"] if head != table.head]
    heads = [table.head, *others]
    lines = [f"| row | paper | {' | '.join(heads)} | learning rate | steps |", "|---|---|" + "---|" * (len(heads) + 2)]
    for name, row in result["rows"].items():
        paper = "-" if row["paper"] is None else f"{row['paper']:.1f}"
        values = " | ".join(_spread([seed[head] for seed in row["seeds"].values() if head in seed]) for head in heads)
        rate = "-" if row["lr"] is None else f"{row['lr']:.0e}"
        lines.append(f"| {name} | {paper} | {values} | {rate} | {row['steps']} |")
    return lines


def _spread(shares: list[float]) -> str:
    """Mean (lowest to highest) in per cent."""
    if not shares:
        return "-"
    mean = f"{100 * statistics.fmean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def _claims(table: Table, result: Mapping[str, Any]) -> list[str]:
    return [_claim(claim, table.head, result["rows"]) for claim in claims(table, result["rows"])]


def claims(table: Table, rows: Mapping[str, Any]) -> list[Claim]:
    """The table's claims, and of each row that has a control that it is better than that."""
    controls = [Claim(name.removesuffix(RANDOM), name, ours=True) for name in rows if name.endswith(RANDOM)]
    return [*table.claims, *controls]


def _claim(claim: Claim, head: str, rows: Mapping[str, Any]) -> str:
    better, worse = (
        {seed: found[head] for seed, found in rows.get(name, {"seeds": {}})["seeds"].items() if head in found}
        for name in (claim.better, claim.worse)
    )
    verdict = judge(better, worse)
    measured = "" if verdict.difference is None else f" ({100 * verdict.difference:+.1f}"
    measured += "" if verdict.interval is None else f" ± {100 * verdict.interval:.1f}"
    measured += ")" if measured else ""
    whose = " (not the paper's)" if claim.ours else ""
    note = f" {claim.note}" if claim.note and verdict.word in ("does not hold", "within noise") else ""
    return f"- {claim.better} > {claim.worse}{whose}: **{verdict.word}**{measured}.{note}"
