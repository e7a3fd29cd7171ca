"""The paper's tables at desk scale: rows are trained with several seeds, each at its own learning rate, and compared.

Everything that takes time is kept on disk. So an interrupted call goes on, and tables share runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from reproduce.desk import Desk
from reproduce.page import document
from reproduce.tables import TABLES
from reproduce.tasks import Remaining
from reproduce.work import FACTORS, Rates, Work
from scaleup.common.errors import UserError, nearest
from scaleup.common.files import read_json, write_text
from scaleup.common.processes import parallel

DOCS = Path(__file__).parent.parent.parent / "docs"


def prepare(
    names: Sequence[str],
    out: Path,
    seeds: Sequence[int],
    changes: Sequence[str] = (),
    samples: int = 4000,
    published_rates: bool = False,
) -> Work:
    """The work for tables; its ``plan`` says what is left, and how long it takes.

    Args:
        changes: changes to all recipes, such as train.steps=2.
        samples: see :class:`reproduce.desk.Desk`.
        published_rates: rows take their learning rates from docs/reproduction; otherwise the first seed tries three.
    """
    names = chosen(names)
    tables = {name: TABLES[name] for name in names}
    return Work(Desk(out, changes, samples), seeds, tables, published(names) if published_rates else {})


def published(names: Sequence[str], results: Path = DOCS / "reproduction") -> dict[str, dict[str, Rates]]:
    """The published rates of the rows of tables, see :class:`reproduce.work.Work`."""
    paths = {name: results / f"{name}.json" for name in names}
    rows = {name: read_json(path)["rows"] for name, path in paths.items() if path.exists()}
    return {name: {title: _rates(row) for title, row in each.items() if row.get("lr")} for name, each in rows.items()}


def _rates(row: Mapping[str, Any]) -> Rates:
    return dict(zip(FACTORS, row["validation"].values(), strict=True))


def train_side_by_side(
    names: Sequence[str], out: Path, seeds: Sequence[int], changes: Sequence[str] = (), samples: int = 4000
) -> None:
    """Train what tables need at published rates: each seed in a process of its own, on its part of the cores. One small
    run cannot keep many cores busy.

    Raises:
        UserError: a name is not a table's, one of the processes was killed, or a recipe is wrong.
    """
    threads = max(1, (os.cpu_count() or 1) // len(seeds))
    train = partial(_train_seed, chosen(names), out, changes, samples, threads)
    list(parallel(train, seeds, len(seeds), get_context("spawn")))


def _train_seed(names: Sequence[str], out: Path, changes: Sequence[str], samples: int, threads: int, seed: int) -> None:
    torch.set_num_threads(threads)
    work = prepare(names, out, [seed], changes, samples, published_rates=True)
    for name in work.tables:
        work.table(name)


def reproduce(work: Work) -> dict[str, Any]:
    """Run tables, and write a JSON file for each, and reproduction.md, into the work's directory.

    Returns:
        The content of the JSON files, by table.
    """
    results, out = {}, work.desk.out
    out.mkdir(parents=True, exist_ok=True)
    print(describe(work.plan.total), file=sys.stderr)
    for name in work.tables:
        results[name] = work.table(name)
        write_text(out / f"{name}.json", json.dumps(results[name], indent=1) + "\n")
        write_text(out / "reproduction.md", document(TABLES, out))
    return results


def describe(remaining: Remaining) -> str:
    """The remaining work in words."""
    if not remaining.seconds:
        return "all models are trained"
    steps = f"{remaining.arm_steps:,} steps of arms in {remaining.runs} runs"
    return f"left: {steps}, about {remaining.seconds / 3600:.2g} hours at the present speed of this machine"


def publish(out: Path, docs: Path = DOCS) -> None:
    """Copy the results in ``out`` to ``docs``, and write the page from all results in ``docs``."""
    results = docs / "reproduction"
    results.mkdir(exist_ok=True, parents=True)
    for name in TABLES:
        if (out / f"{name}.json").exists():
            write_text(results / f"{name}.json", (out / f"{name}.json").read_text())
    write_text(docs / "reproduction.md", document(TABLES, results))


def chosen(names: Sequence[str]) -> list[str]:
    """The names of the tables to run; ``all`` stands for every table.

    Raises:
        UserError: a name is not a table's.
    """
    for name in names:
        if name not in (*TABLES, "all"):
            raise UserError(
                f"there is no table {name!r}; allowed are {', '.join(TABLES)} and all{nearest(name, TABLES)}"
            )
    return list(TABLES) if "all" in names else list(dict.fromkeys(names))
