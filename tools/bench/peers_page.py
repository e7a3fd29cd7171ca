"""Writes the figures of the peers into a page, between two marks: a table, the ratios, and each loss with its cause."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.measure import GIB, Figures
from scaleup.common.files import write_text
from scaleup.common.text import around_marks, markdown

BEGIN, END = "<!-- figures: written by tools/bench.py peers --docs -->\n", "<!-- figures end -->\n"
COLUMNS = {  # key of a row -> the title of its column, and the unit
    "frames": ("frames", 1),
    "tokens": ("tokens", 1),
    "trained_parameters": ("train, M", 10**6),
    "gflop": ("GFLOPs, inference", 1),
    "train_gflop": ("GFLOPs, step", 1),
    "infer_seconds": ("seconds, inference", 1),
    "step_seconds": ("seconds, step", 1),
    "clips_per_second": ("clips/s, training", 1),
    "peak_bytes": ("peak memory, GiB", GIB),
}


def rewrite(page: str, result: Figures) -> None:
    """Replace the figures on a page."""
    before, after = around_marks(Path(page), BEGIN, END)
    parts_of_page = _machine(result["machine"]), _table(result["rows"]), _goals(result["goals"]), _losses(result)
    lines = [line for part in parts_of_page for line in (*part, "")][:-1]
    write_text(Path(page), before + BEGIN + "\n".join(lines) + "\n" + END + after)


def _machine(machine: Figures) -> Iterator[str]:
    size = "Tiny models, to test the bench" if machine["quick"] else "ViT-B/16 size"
    yield f"{size}; {machine['system']}, {machine['threads']} threads on {machine['cores']} cores,"
    others = f"beside {machine['others']} busy processes, " if machine["others"] else ""
    yield f"{machine['precision']}, {others}load before the run {machine['load_before']:.1f}."


def _table(rows: list[Figures]) -> list[str]:
    header = ["model", *(name for name, _ in COLUMNS.values())]
    cells = []
    for row in rows:
        name = f"**{row['name']}**" if row["ours"] else row["name"]
        cells.append([name, *(_number(row[key], unit) for key, (_, unit) in COLUMNS.items())])
    return markdown(header, cells, to_right=range(1, len(header)))


def _goals(goals: list[Figures]) -> list[str]:
    rows = []
    for goal in goals:
        met = "met" if goal["met"] else "not met"
        rows.append([goal["what"], goal["at_least"], f"{goal['measured']:.2f}", met])
    return markdown(["ratio, median over the rounds", "goal, at least", "measured", ""], rows, to_right=(1, 2))


def _losses(result: Figures) -> Iterator[str]:
    losses = result["losses"]
    yield "Where a peer needs less than one of our models:" if losses else "No peer needs less of anything."
    yield ""
    for loss in losses:
        yield f"- {loss['name']}: {sentence(loss)}"


def sentence(loss: Figures) -> str:
    """A loss in words."""
    name, unit = COLUMNS[loss["column"]]
    figures = f"{_number(loss['measured'], unit)} against {_number(loss['peers'], unit)}"
    return f"{name}, {figures} of {loss['peer']}: {loss['cause']}"


def _number(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.3g}" if abs(value / unit) < 1000 else f"{value / unit:.0f}"
