"""One self-contained page on runs: what was trained, what came of it, what it cost, and where it looks."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from scaleup.checkpoint import load_run
from scaleup.errors import UserError
from scaleup.files import write_text
from scaleup.model import TubeViT
from scaleup.report import maps, page, plots
from scaleup.report.confusion import confused, confusions, recall
from scaleup.report.facts import Facts, heads, read

PACKAGES = ("scaleup", "torch", "timm", "open_clip_torch", "deepspeed", "peft", "webdataset", "av")


def write(
    runs: Sequence[str | Path], out: str | Path, shards: str | Path | None = None, refresh: int | None = None
) -> dict[str, Any]:
    """Write the page on ``runs`` to ``out``, whole or not at all.

    Args:
        shards: what the arms are confused on; a pass over it is made for each run that is complete.
        refresh: seconds after which a browser reads the page anew.

    Returns:
        ``{"out", "runs": {name: state}, "bytes"}``.

    Raises:
        UserError: one of ``runs`` is no run directory, or the shards do not fit.
    """
    facts = [read(run) for run in runs]
    content = page.document(", ".join(each.name for each in facts), _sections(facts, shards), refresh)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, content)
    return {"out": str(out), "runs": {each.name: each.state for each in facts}, "bytes": len(content.encode())}


def _sections(runs: list[Facts], shards: str | Path | None) -> Iterator[str]:
    yield page.section("What came of it", *_summary(runs))
    for run in runs:
        yield page.section(f"{run.name}: curves", page.text(run.state), page.figures(_curves(run)))
        if run.result is not None:
            yield from _of_models(run, load_run(run.directory), shards)
        recipe = page.code(OmegaConf.to_yaml(OmegaConf.create(run.recipe)))
        yield page.section(f"{run.name}: recipe", recipe)
    yield page.section("Environment of this page", page.code(_environment()))


def _summary(runs: list[Facts]) -> Iterator[str]:
    header = ("arm", "frozen blocks", "trained parameters", "loss", "accuracy %", "alpha", "seconds a step", "ended")
    rows = [[*(value for value in _row(run, arm, len(runs) > 1))] for run in runs for arm in run.arms]
    yield page.table(header, rows)
    drawn = {
        "accuracy against frozen depth": plots.against(
            "accuracy against frozen depth", "frozen blocks", runs, lambda run, arm: run.frozen_depth(arm)
        ),
        "accuracy against cost, the trunk counted whole for each arm": plots.against(
            "accuracy against cost", "seconds of a step", runs, lambda run, arm: run.seconds(arm)
        ),
    }
    yield page.figures(drawn)
    if not any(drawn.values()):
        yield page.text("No arm was validated (data.valid, train.valid_every), so there is no accuracy to plot.")


def _row(run: Facts, arm: str, named: bool) -> Iterator[Any]:
    made = (run.result or {}).get("arms", {}).get(arm, {})
    losses, alphas = run.series(arm, "loss")[1], run.series(arm, "alpha")[1]
    accuracy, seconds, trained = run.accuracy(arm), run.seconds(arm), made.get("trained_parameters")
    yield f"{run.name}/{arm}" if named else arm
    yield run.frozen_depth(arm)
    yield None if trained is None else f"{trained:,}"
    yield f"{made.get('loss', losses[-1]):.4f}" if losses else None
    yield None if accuracy is None else f"{100 * accuracy:.2f}"
    yield f"{alphas[-1]:+.4f}" if alphas else None
    yield None if seconds is None else f"{seconds:.3f}"
    yield made.get("ended", "not yet")


def _curves(run: Facts) -> dict[str, str | None]:
    def each(*path: str) -> dict[str, Any]:
        return {arm: run.series(arm, *path) for arm in run.arms}

    drawn = {"loss, a running mean": plots.lines(f"{run.name} loss", "loss", each("loss"), smooth=True)}
    for head in heads(run):
        drawn[f"training accuracy of {head}, a running mean"] = plots.lines(
            f"{run.name} {head}", "accuracy", each("heads", head, "accuracy"), smooth=True
        )
    drawn["validation accuracy"] = plots.lines(f"{run.name} validation", "accuracy", each("valid", "accuracy"))
    drawn["alpha of the gate"] = plots.lines(f"{run.name} alpha", "alpha", each("alpha"))
    return drawn


def _of_models(run: Facts, models: dict[str, TubeViT], shards: str | Path | None) -> Iterator[str]:
    first = next(iter(models.values()))
    looks = page.text("How many tokens see each pixel, and below it each frame.")
    yield page.section(f"{run.name}: where tubes look", looks, page.figures(maps.token_maps(first), small=True))
    if kernels := maps.kernels(first):
        yield page.section(f"{run.name}: kernels", page.figures(kernels))
    if shards is not None:
        yield page.section(f"{run.name}: confusion", *_confusion(run, models, shards))


def _confusion(run: Facts, models: dict[str, TubeViT], shards: str | Path) -> Iterator[str]:
    try:
        counts, seen = confusions(models, shards)
    except UserError as error:
        yield page.text(f"None: {error}")
        return
    yield page.text(f"{seen['samples']} samples, {len(seen['failures'])} failures, list {seen['list_sha256'][:16]}")
    for head, classes in next(iter(models.values())).config["heads"].items():
        per_arm = {name: each[head] for name, each in counts.items() if head in each}
        if not per_arm:
            continue
        top1 = {name: matrix.trace() / max(1, matrix.sum()) for name, matrix in per_arm.items()}
        best, base = max(top1, key=lambda name: top1[name]), next(iter(per_arm))
        shown = 100 * per_arm[best] / per_arm[best].sum(axis=1, keepdims=True).clip(min=1)
        yield page.text(f"{head}: top-1 " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in top1.items()))
        yield page.figures(
            {f"{head}, % of each row, of {best}": plots.matrix(f"{head} {best}", shown, classes, "Blues", 100)}
        )
        yield page.text("Most often: " + ("; ".join(confused(per_arm[best], classes)) or "no mistakes"))
        if len(per_arm) > 1:
            yield page.text(f"Recall of each class, and how it changes from {base}, in points:")
            yield page.table(["class", *per_arm], _changes(per_arm, classes, base))


def _changes(per_arm: dict[str, Any], classes: list[str], base: str) -> Iterator[list[Any]]:
    first = recall(per_arm[base])
    others = {name: recall(matrix) - first for name, matrix in per_arm.items() if name != base}
    for index, name in enumerate(classes):
        yield [name, f"{first[index]:.1f}", *(page.Change(change[index]) for change in others.values())]


def _environment() -> str:
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    return "\n".join(lines + [f"{name} {version(name)}" for name in PACKAGES])
