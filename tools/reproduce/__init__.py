"""The paper's tables at desk scale: rows are trained with several seeds, each at its own learning rate, and compared.

Everything that takes time is kept on disk. So an interrupted call goes on, and tables share runs.
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
from reproduce.tasks import Remaining
from reproduce.work import Work
from scaleup.common.errors import UserError, nearest
from scaleup.common.files import write_text

DOCS = Path(__file__).parent.parent.parent / "docs"


def reproduce(
    names: Sequence[str], out: Path, seeds: Sequence[int], changes: Sequence[str] = (), samples: int = 4000
) -> dict[str, Any]:
    """Run tables, and write a JSON file for each, and reproduction.md, into ``out``.

    Returns:
        The content of the JSON files, by table.

    Args:
        changes: changes to all recipes, such as train.steps=2.
        samples: see :class:`reproduce.desk.Desk`.
    """
    names = chosen(names)
    out.mkdir(parents=True, exist_ok=True)
    work, results = Work(Desk(out, changes, samples), seeds, [TABLES[name] for name in names]), {}
    print(describe(work.plan.total), file=sys.stderr)
    for name in names:
        results[name] = work.table(TABLES[name])
        write_text(out / f"{name}.json", json.dumps(results[name], indent=1) + "\n")
        write_text(out / "reproduction.md", document(TABLES, out))
    return results


def plan(
    names: Sequence[str], out: Path, seeds: Sequence[int], changes: Sequence[str] = (), samples: int = 4000
) -> Remaining:
    """The work that :func:`reproduce` would still do, see :class:`reproduce.tasks.Plan`."""
    return Work(Desk(out, changes, samples), seeds, [TABLES[name] for name in chosen(names)]).plan.total


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
