"""Writes the page of a GPU's figures (docs/gpu.md) from a result of ``tools/bench.py gpu --json``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.measure import GIB, Figures
from scaleup.common.errors import UserError
from scaleup.common.files import read_json, write_text
from scaleup.common.text import markdown
from scaleup.data.index import DAMAGE, explain_damage

HEAD = """# What a GPU gives

Written by `tools/bench.py gpu --docs docs/gpu.md --from FILE`, where FILE is the output of `tools/bench.py gpu --json`.
Random weights, clips of 32 frames of random bytes; three quarters of the blocks are frozen. Every time is a median,
taken when the device had finished. Works of one model and batch take turns."""
READING = """## How to read the figures

- **share**: floating-point operations, counted by torch, over the seconds, as a share of the rate of the model's own
  matrix products in bfloat16 (the first table).
- **five arms** share one trunk: gates at four depths, one of them twice. Their bound is one pass of the trunk, and the
  forward and backward passes of each arm, each measured by itself.
- **step from stored tokens**: the trunk's output is on the device. *From a token cache*: it is read from files, and
  compared with the step of the same arm from memory.
- **compile**: whether blocks are compiled (`train.compile`); *CUDA graphs*: and the GPU has recorded the pass of the
  trunk (`train.cuda_graphs`).
- **peak**: of the device's memory, without arms that take no part.
- **peers**: [peers.md](peers.md) says what they are. All compute at the batch, in the precision and on the device that
  are named here."""
Cell = Callable[[Any], str]


def short(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def milliseconds(value: float | None) -> str:
    return "" if value is None else short(1000 * value)


def gib(value: float | None) -> str:
    return "" if value is None else f"{value / GIB:.3g}"


def percent(value: float) -> str:
    return f"{value:.0%}"


TABLES: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, Cell]]]] = {  # title -> kinds of rows, columns
    "Matrix products of a block": (
        ("products",),
        {"model": ("model", short), "precision": ("precision", short), "rows": ("tokens", short),
         "width": ("width", short), "teraflops": ("TFLOP/s", short)},
    ),
    "Copies on the device": (("copy",), {"gigabytes_per_second": ("GB/s", short)}),
    "Steps and inference": (
        (),
        {"model": ("model", short), "what": ("work", short), "batch": ("batch", short), "compile": ("compile", short),
         "seconds": ("ms", milliseconds), "clips_per_second": ("clips/s", short), "share": ("share", percent),
         "peak_bytes": ("peak, GiB", gib)},
    ),
    "Five arms over their bound": (
        ("five arms over their bound",),
        {"model": ("model", short), "batch": ("batch", short), "compile": ("compile", short),
         "ratio": ("ratio", short)},
    ),
    "From a token cache": (
        ("from a token cache",),
        {"batch": ("batch", short), "step_seconds": ("ms", milliseconds), "arm_seconds": ("the arm alone, ms",
         milliseconds), "ratio": ("ratio", short)},
    ),
    "Peers": (
        ("peer",),
        {"name": ("model", short), "batch": ("batch", short), "tokens": ("tokens", short),
         "step_seconds": ("step, ms", milliseconds), "infer_seconds": ("inference, ms", milliseconds),
         "peak_bytes": ("peak, GiB", gib)},
    ),
    "Where frozen blocks wait": (
        ("place of frozen blocks",),
        {"model": ("model", short), "batch": ("batch", short), "place": ("place", short),
         "seconds": ("trunk, ms", milliseconds), "over_device": ("over the device", short),
         "peak_bytes": ("peak, GiB", gib)},
    ),
    "The loader": (
        ("loader",),
        {"workers": ("processes", short), "clips_per_second": ("clips/s", short), "demand": ("fastest step, clips/s",
         short), "share": ("share", percent)},
    ),
}  # fmt: skip


def write(page: str, result: Figures) -> None:
    """Write the page, in place of an earlier one."""
    write_text(Path(page), text(result))


def read(source: str) -> Figures:
    """An earlier result; UserError if it is none that a page can be written of."""
    try:
        text(result := read_json(Path(source)))
        if not result["rows"]:
            raise ValueError("it has no rows")
        return result
    except UserError:
        raise
    except DAMAGE as error:
        reason = explain_damage(error)
        raise UserError(f"'{source}' is not the output of this version's tools/bench.py gpu --json: {reason}") from None


def text(result: Figures) -> str:
    parts = [[HEAD], about(result), goals(result["goals"]), *tables(result["rows"]), missing(result), [READING]]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def about(result: Figures) -> list[str]:
    machine = result["machine"]
    size = "**Tiny models, to test the bench.** " if machine["quick"] else ""
    card = machine.get("device", "no GPU")
    return [
        f"{size}{card}, {machine['precision']}; {machine['system']}, {machine['cores']} cores, load before the run "
        f"{machine['load_before']:.1f}."
    ]


def goals(goals: list[Figures]) -> list[str]:
    rows = [
        [goal["what"], limit(goal), f"{goal['measured']:.2f}", "met" if goal["met"] else "not met"] for goal in goals
    ]
    return markdown(["ratio", "goal", "measured", ""], rows, to_right=(1, 2))


def limit(goal: Figures) -> str:
    return f"at most {goal['at_most']:g}" if "at_most" in goal else f"at least {goal['at_least']:g}"


def tables(rows: list[Figures]) -> Iterator[list[str]]:
    """A title and a table for each kind of rows that was measured."""
    named = {kind for kinds, _ in TABLES.values() for kind in kinds}
    works = [row for row in rows if row["what"] not in named and not row["what"].startswith("arm ")]
    for title, (kinds, columns) in TABLES.items():
        own = [row for row in rows if row["what"] in kinds] if kinds else works
        if own:
            cells = [[show(row[key]) for key, (_, show) in columns.items()] for row in own]
            right = [number for number, key in enumerate(columns) if not isinstance(own[0][key], str)]
            yield [f"## {title}", "", *markdown([name for name, _ in columns.values()], cells, to_right=right)]


def missing(result: Figures) -> list[str]:
    return ["Not measured:", "", *(f"- {each}" for each in result["missing"])] if result["missing"] else []
