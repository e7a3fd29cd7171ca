"""The paper's tables at desk scale: rows trained with several seeds, each at its own learning rate, and judged.

All that takes time is kept on disk where it is found again, so that what was cut off goes on, and what tables have in
common is made once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reproduce.desk import Desk
from reproduce.page import document
from reproduce.tables import TABLES
from reproduce.tasks import Left
from reproduce.work import Work
from scaleup.common.files import write_text
from scaleup.errors import UserError, nearest

DOCS = Path(__file__).parent.parent.parent / "docs"


def reproduce(
    names: Sequence[str], out: Path, seeds: Sequence[int], changes: Sequence[str] = (), samples: int = 4000
) -> dict[str, Any]:
    """Run tables; write a JSON file for each, and reproduction.md, into ``out``; returns what the files hold by table.

    Args:
        changes: to all recipes, e.g. train.steps=2.
        samples: see :class:`reproduce.desk.Desk`.
    """
    names = chosen(names)
    out.mkdir(parents=True, exist_ok=True)
    work, results = Work(Desk(out, changes, samples), seeds, [TABLES[name] for name in names]), {}
    print(said(work.plan.total), file=sys.stderr)
    for name in names:
        results[name] = work.table(TABLES[name])
        write_text(out / f"{name}.json", json.dumps(results[name], indent=1) + "\n")
        write_text(out / "reproduction.md", document(TABLES, out))
    return results


def plan(
    names: Sequence[str], out: Path, seeds: Sequence[int], changes: Sequence[str] = (), samples: int = 4000
) -> Left:
    """What :func:`reproduce` would still have to do, see :class:`reproduce.tasks.Plan`."""
    return Work(Desk(out, changes, samples), seeds, [TABLES[name] for name in chosen(names)]).plan.total


def said(left: Left) -> str:
    """What is left in words."""
    if not left.seconds:
        return "all models are there"
    steps = f"{left.arm_steps:,} steps of arms in {left.runs} runs"
    return f"left: {steps}, about {left.seconds / 3600:.2g} hours on this machine as it was just now"


def publish(out: Path, docs: Path = DOCS) -> None:
    """Copy the results in ``out`` to ``docs``, and write the document from all that are there."""
    results = docs / "reproduction"
    results.mkdir(exist_ok=True, parents=True)
    for name in TABLES:
        if (out / f"{name}.json").exists():
            write_text(results / f"{name}.json", (out / f"{name}.json").read_text())
    write_text(docs / "reproduction.md", document(TABLES, results))


def chosen(names: Sequence[str]) -> list[str]:
    """The tables that are meant; ``all`` for every one.

    Raises:
        UserError: there is no such table.
    """
    for name in names:
        if name not in (*TABLES, "all"):
            raise UserError(
                f"there is no table {name!r}; allowed are {', '.join(TABLES)} and all{nearest(name, TABLES)}"
            )
    return list(TABLES) if "all" in names else list(dict.fromkeys(names))
