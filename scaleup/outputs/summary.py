"""The results of runs: a row for each arm, accuracy against frozen depth and against cost, and curves over steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from scaleup.outputs import html, svg_plots
from scaleup.outputs.run_records import Facts


def summary(runs: Sequence[Facts], probe: Mapping[str, Any] | None) -> Iterator[html.Block]:
    """Tiles, table and plots of all arms of the runs.

    Args:
        probe: what :func:`scaleup.evaluation.depth_profile.probe` found of the model that they began from.
    """
    yield html.Tiles(_tiles(runs))
    heads = list(dict.fromkeys(head for run in runs for arm in run.scores.arms.values() for head in arm))
    each = [f"{head} %" for head in heads] if len(heads) > 1 else []
    header = ("arm", "frozen blocks", "trained parameters", "loss", "accuracy %", *each, "alpha", "seconds a step", "")
    yield html.Table(header, [list(_row(run, arm, heads, len(runs) > 1)) for run in runs for arm in run.arms])
    for run in runs:
        if run.scores.arms:
            yield html.Text(f"Accuracy (top-1) of {run.name}: {run.scores.words}.")
    labels = probe["labels"] if probe else {}
    names = list(dict.fromkeys([*heads, *labels]))
    yield html.Figures({title: plot for head in names for title, plot in _against(runs, head, labels.get(head))})
    if probe is not None:
        yield html.Text(_about(probe))
    if not heads:
        yield html.Text(
            "No arm was validated (data.valid, train.valid_every) or evaluated (tools/evaluate.py RUN SHARDS "
            "--record), so there is no accuracy to plot."
        )


def accuracy(run: Facts, arm: str) -> float | None:
    """The mean top-1 of its heads, as a share."""
    scores = run.scores.arms.get(arm)
    return fmean(scores.values()) if scores else None


def _tiles(runs: Sequence[Facts]) -> dict[str, Any]:
    known = [(value, run, arm) for run in runs for arm in run.arms if (value := accuracy(run, arm)) is not None]
    counts = {"arms": sum(len(run.arms) for run in runs), "runs": len(runs) if len(runs) > 1 else None}
    if not known:
        return counts
    best, run, arm = max(known, key=lambda each: each[0])
    seconds = run.seconds(arm)
    return {
        "best arm": arm if len(runs) == 1 else f"{run.name}/{arm}",
        "its accuracy (top-1)": f"{best:.1%}",
        "its frozen blocks": run.arms[arm].frozen_depth,
        "a step of it": f"{seconds:.3g} s" if seconds else None,
        **counts,
    }


def _row(run: Facts, arm: str, heads: Sequence[str], named: bool) -> Iterator[Any]:
    result = run.made.get(arm)
    losses, alphas = run.series(arm, "loss")[1], run.series(arm, "alpha")[1]
    seconds, mean = run.seconds(arm), accuracy(run, arm)
    scores = run.scores.arms.get(arm, {})
    yield html.Arm(f"{run.name}/{arm}" if named else arm, svg_plots.colours(list(run.arms))[arm])
    yield run.arms[arm].frozen_depth
    yield None if result is None else f"{result.trained_parameters:,}"
    yield f"{(result and result.loss) or losses[-1]:.4f}" if losses else None
    yield None if mean is None else f"{100 * mean:.2f}"
    if len(heads) > 1:
        yield from (f"{100 * scores[head]:.2f}" if head in scores else None for head in heads)
    yield f"{alphas[-1]:+.4f}" if alphas else None
    yield None if seconds is None else f"{seconds:.3f}"
    yield run.stands(arm)


def _against(runs: Sequence[Facts], head: str, probe: Mapping[str, Any] | None) -> Iterator[tuple[str, str | None]]:
    def points(x: Any) -> dict[str, svg_plots.Points]:
        return {run.name: {a: (x(run, a), run.scores.arms.get(a, {}).get(head)) for a in run.arms} for run in runs}

    beside = ", beside a linear probe of the frozen model" if probe else ""
    depth = points(lambda run, arm: run.arms[arm].frozen_depth)
    yield (
        f"{head}: accuracy against frozen depth{beside}",
        svg_plots.against(f"{head} accuracy against frozen depth", "frozen blocks", depth, probe),
    )
    cost = points(lambda run, arm: run.seconds(arm))
    yield (
        f"{head}: accuracy against cost, the trunk counted whole for each arm",
        svg_plots.against(f"{head} accuracy against cost", "seconds of a step", cost),
    )


def _about(probe: Mapping[str, Any]) -> str:
    test = probe["test"]
    name = test["shards"].rstrip("/").rsplit("/", 1)[-1]
    seen = f"{test['samples']} samples of {name}, list {test['list_sha256'][:12]}"
    return f"Linear probe (tools/probe.py): {seen}; the band is one standard error, dotted is chance."


def curves(run: Facts) -> dict[str, str | None]:
    """Everything that was logged over steps."""

    def each(*path: str) -> dict[str, Any]:
        return {arm: run.series(arm, *path) for arm in run.arms}

    drawn = {"loss, a running mean": svg_plots.lines(f"{run.name} loss", "loss", each("loss"), smooth=True)}
    for head in run.heads:
        drawn[f"training accuracy of {head}, a running mean"] = svg_plots.lines(
            f"{run.name} {head}", "accuracy", each("heads", head, "accuracy"), smooth=True
        )
    drawn["validation accuracy"] = svg_plots.lines(f"{run.name} validation", "accuracy", each("valid", "accuracy"))
    gate = "alpha of the gate, a mean where each channel has one"
    drawn[gate] = svg_plots.lines(f"{run.name} alpha", "alpha", each("alpha"))
    largest = each("alpha_largest")
    drawn["largest alpha of all channels, in size"] = svg_plots.lines(f"{run.name} largest alpha", "alpha", largest)
    return drawn
