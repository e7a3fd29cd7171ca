"""The page: the rows of every table with the paper's figures, and which of the paper's orderings hold."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reproduce.tables import RANDOM, Claim, Table
from reproduce.verdict import WORDS, Verdict, judge
from scaleup.common.files import read_json
from scaleup.common.text import markdown

RULE = """Rows of one seed share data and start models, so they are compared seed by seed. A claim *holds* if the mean
difference is above 0 by more than its 95 % interval (Student's t over the seeds). It *does not hold* if the difference
is below 0 by as much. Otherwise it is *within noise*. With a single seed, no claim is judged."""
EDGE = "*"  # marks the lowest or highest learning rate that was tried: a better one may lie beyond it
SHOWN = "†"  # marks a row of another table
INTRODUCTION = f"""# The paper's tables at desk scale

`python tools/reproduce.py TABLE... --write` writes this page from `docs/reproduction/*.json`, and runs what is missing;
`--plan` prints how long that takes. With `--published-rates` a row trains at its rate below alone, two thirds of the
work. Tables 1 to 4 compare the paper with other methods, and are not here.

The paper trains on Kinetics and ImageNet for weeks. Here its rows train for minutes on generated videos and images of
32 pixels (`tools/make_shards.py shapes --places`). So compare the *orderings* with the paper's, not the numbers.

One quarter of the frame shows a shape, each of the others shows a dot, and all of them move. `place_motion` is the
motion of the shape together with its quarter, 24 classes. A single frame shows only the quarter. A model without
positions sees only the motion. Seeds differ in everything: data, start models, order and initialisation. All rows of a
table have the same steps and batch. Each row has its own learning rate, the best of three on the validation split with
the first seed; {EDGE} marks it if it is the largest or the smallest of the three. Figures are of the test split: mean
(lowest to highest) over the seeds, in per cent. A row whose tubes come from a small model has a control with random
tubes.

{RULE} With so many claims, a few are misjudged by chance.
"""


def document(tables: Mapping[str, Table], results: Path) -> str:
    """The page as Markdown, from the JSON files of the tables in directory ``results``."""
    paths = {name: results / f"{name}.json" for name in tables}
    sections = [section(name, table, paths[name]) for name, table in tables.items()]
    return "\n".join([INTRODUCTION, *_overview(tables, paths), "", *sections])


def _overview(tables: Mapping[str, Table], paths: Mapping[str, Path]) -> list[str]:
    """For each table, how many claims hold."""
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
    """A table's part of the page. It says so if the table was not run."""
    lines = [f"## {table.title}", ""]
    if table.note:
        lines += [table.note, ""]
    if not path.exists():
        return "\n".join([*lines, f"Not run yet: `python tools/reproduce.py {name}`.", ""])
    result = read_json(path)
    rows = _rows(table, result, result["rows"] | _shown(table, path.parent))
    return "\n".join([*lines, _setting(result), "", *rows, "", *_claims(table, result), ""])


def _shown(table: Table, results: Path) -> dict[str, Any]:
    """The rows of other tables, each with its control, that the page shows in this one too."""
    shown: dict[str, Any] = {}
    for row in table.rows:
        if row.shown_from and (path := results / f"{row.shown_from}.json").exists():
            rows = read_json(path)["rows"]
            shown |= {f"{name} {SHOWN}": rows[name] for name in (row.name, row.name + RANDOM)}
    return shown


def _setting(result: Mapping[str, Any]) -> str:
    chance = ", ".join(f"{head} {share:.1%}" for head, share in result["chance"].items())
    batches = sorted({row["batch"] for row in result["rows"].values() if "batch" in row})
    data = f"{result['samples']:,} training videos, batches of {', '.join(map(str, batches))}"
    return f"Seeds {', '.join(map(str, result['seeds']))}; {data}. Chance: {chance}."


def _rows(table: Table, result: Mapping[str, Any], rows: Mapping[str, Any]) -> list[str]:
    heads = [table.head, *(head for head in result["chance"] if head != table.head)]
    lines = []
    for name, row in rows.items():
        paper = "-" if row["paper"] is None else f"{row['paper']:.1f}"
        values = [_spread([seed[head] for seed in row["seeds"].values() if head in seed]) for head in heads]
        lines.append([name, paper, *values, _rate(row), row["steps"]])
    return markdown(["row", "paper", *heads, "learning rate", "steps"], lines)


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
    """The table's claims, and one for each row with a control: that the row is better."""
    controls = [Claim(name.removesuffix(RANDOM), name, in_paper=False) for name in rows if name.endswith(RANDOM)]
    return [*table.claims, *controls]


def _claim(claim: Claim, table: Table, rows: Mapping[str, Any]) -> str:
    verdict = _verdict(claim, table.head, rows)
    measured = "" if verdict.difference is None else f" ({100 * verdict.difference:+.1f}"
    measured += "" if verdict.interval is None else f" ± {100 * verdict.interval:.1f}"
    measured += ")" if measured else ""
    whose = "" if claim.in_paper else " (not the paper's)"
    remark = table.remarks.get(str(claim), "") if verdict.word in ("does not hold", "within noise") else ""
    return f"- {claim}{whose}: **{verdict.word}**{measured}. {remark}".rstrip()


def _verdict(claim: Claim, head: str, rows: Mapping[str, Any]) -> Verdict:
    head = claim.head or head
    better, worse = (
        {seed: scores[head] for seed, scores in rows.get(name, {"seeds": {}})["seeds"].items() if head in scores}
        for name in (claim.better, claim.worse)
    )
    return judge(better, worse)
