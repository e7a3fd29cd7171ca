"""The report page of runs: what was trained, the results, the cost, and which pixels the tubes see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from scaleup.checkpoint.model_directory import local
from scaleup.common.errors import UserError
from scaleup.common.files import read_json, write_text
from scaleup.common.metrics import MEASURES, Measure, mean_of
from scaleup.common.processes import environment
from scaleup.config.rules import check
from scaleup.evaluation.depth_profile import DepthCurve, DepthProfile
from scaleup.model.build import load_run
from scaleup.model.tubevit import TubeViT
from scaleup.outputs import html, svg_plots
from scaleup.outputs.class_report import by_class
from scaleup.outputs.run_records import Facts, read

PROBE = "probe/probe.json"  # in a model directory: the report reads the profile here


@dataclass
class Page:
    """The result of a report: the state of each run as text, and the size of the page."""

    out: str
    runs: dict[str, str]
    bytes: int


def write(
    runs: Sequence[str | Path],
    out: str | Path,
    shards: str | Path | None = None,
    refresh: int | None = None,
    probe: str | Path | None = None,
) -> Page:
    """Write the page on ``runs`` to ``out``; it appears complete or not at all.

    Args:
        shards: arms are compared by class on these; each complete run makes a pass over them.
        refresh: the browser loads the page again after this many seconds.
        probe: a depth profile to show beside the sweep (``probe.json`` of tools/probe.py, or its directory); by default
            the one in ``probe/`` of the first run's starting model, if it exists.

    Raises:
        UserError: one of ``runs`` is not a run directory, or the profile cannot be read or is of another model.
    """
    records = [read(run) for run in runs]
    if len({run.name for run in records}) < len(records):
        for run in records:
            run.name = str(run.directory)
    states = {run.name: run.state for run in records}
    sections = dict(_sections(records, shards, _profile(records[0], probe)))
    content = html.document(", ".join(states), states, sections, refresh)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, content)
    return Page(str(out), states, len(content.encode()))


def _sections(
    runs: list[Facts], shards: str | Path | None, probe: DepthProfile | None
) -> Iterator[tuple[str, list[html.Block]]]:
    """Titles and contents."""
    yield "Result", list(_summary(runs, probe))
    complete: dict[str, dict[str, TubeViT]] = {}
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        yield f"{prefix}Curves", [html.Text(run.state), html.Figures(_curves(run))]
        models, reason = _models(run)
        yield f"{prefix}Where tubes look", [html.Text(reason)] if reason else _looks(models)
        if kernels := svg_plots.kernels(next(iter(models.values()))) if models else {}:
            yield f"{prefix}Kernels of the tubes", [html.Figures(kernels)]
        if run.result is not None and models:
            complete[run.name] = models
    if shards is not None and complete:
        yield "Classes", list(by_class(complete, shards))
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        yield f"{prefix}Recipe", [html.Folded("The resolved recipe", html.Text(run.yaml, "pre"))]
    yield "Environment", list(_environments(runs))


def _summary(runs: Sequence[Facts], probe: DepthProfile | None) -> Iterator[html.Block]:
    """Tiles, table and plots of all arms of the runs.

    Args:
        probe: the depth profile of their starting model.
    """
    yield html.Tiles(_tiles(runs))
    heads = list(dict.fromkeys(head for run in runs for arm in run.scores.arms.values() for head in arm))
    yield _table(runs, heads)
    for run in runs:
        if run.scores.arms:
            yield html.Text(f"Scores ({_measure(run).title}) of {run.name}: {run.scores.words}.")
    labels = probe.labels if probe else {}
    names = list(dict.fromkeys([*heads, *labels]))
    yield html.Figures({title: plot for head in names for title, plot in _against(runs, head, labels.get(head))})
    if probe is not None:
        yield html.Text(_about_probe(probe))
    if not heads:
        yield html.Text(
            "No arm was validated (data.valid, train.valid_every) or evaluated (tools/evaluate.py RUN SHARDS "
            "--record), so there is no accuracy to plot."
        )


def _table(runs: Sequence[Facts], heads: Sequence[str]) -> html.Table:
    """A row for each arm; if there are several heads, each has a column for its measure."""
    columns = [f"{head}, {_of_head(runs, head).column}" for head in heads] if len(heads) > 1 else []
    header = [
        "arm",
        "frozen blocks",
        "trained parameters",
        "loss",
        _measure(*runs).column,
        *columns,
        "alpha",
        "seconds a step",
        "",
    ]
    return html.Table(header, [_row(run, arm, heads, len(runs) > 1) for run in runs for arm in run.arms])


def accuracy(run: Facts, arm: str) -> float | None:
    """The mean top-1 of its heads (mAP of several classes, R2 of a number), as a share."""
    scores = run.scores.arms.get(arm)
    return fmean(scores.values()) if scores else None


def _measure(*runs: Facts) -> Measure:
    """What the accuracy of arms is."""
    return mean_of({name for run in runs for name in run.scores.measures.values()})


def _of_head(runs: Sequence[Facts], head: str) -> Measure:
    """What is measured of a head."""
    return MEASURES[next((run.scores.measures[head] for run in runs if head in run.scores.measures), "top1")]


def _tiles(runs: Sequence[Facts]) -> dict[str, Any]:
    scored = [(score, run, arm) for run in runs for arm in run.arms if (score := accuracy(run, arm)) is not None]
    counts = {"arms": sum(len(run.arms) for run in runs), "runs": len(runs) if len(runs) > 1 else None}
    if not scored:
        return counts
    best, run, arm = max(scored, key=lambda entry: entry[0])
    seconds = run.seconds(arm)
    return {
        "best arm": arm if len(runs) == 1 else f"{run.name}/{arm}",
        f"its {_measure(run).title}": _measure(run).words(best),
        "its frozen blocks": run.arms[arm].frozen_depth,
        "a step of it": f"{seconds:.3g} s" if seconds else None,
        **counts,
    }


def _row(run: Facts, arm: str, heads: Sequence[str], named: bool) -> list[Any]:
    def words(value: float | None, form: str) -> str | None:
        return None if value is None else format(value, form)

    mean, alphas, scores = accuracy(run, arm), run.series(arm, "alpha")[1], run.scores.arms.get(arm, {})
    return [
        html.Arm(f"{run.name}/{arm}" if named else arm, svg_plots.colours(list(run.arms))[arm]),
        run.arms[arm].frozen_depth,
        words(run.trained_parameters(arm), ","),
        words(run.loss(arm), ".4f"),
        None if mean is None else _measure(run).text(mean),
        *(_of_head([run], head).text(scores[head]) if head in scores else None for head in heads if len(heads) > 1),
        words(alphas[-1] if alphas else None, "+.4f"),
        words(run.seconds(arm), ".3f"),
        run.stands(arm),
    ]


def _against(runs: Sequence[Facts], head: str, probe: DepthCurve | None) -> Iterator[tuple[str, str | None]]:
    def points(x: Any) -> dict[str, svg_plots.Points]:
        return {run.name: {a: (x(run, a), run.scores.arms.get(a, {}).get(head)) for a in run.arms} for run in runs}

    beside, measure = ", beside a linear probe of the frozen model" if probe else "", _of_head(runs, head)
    depth = points(lambda run, arm: run.arms[arm].frozen_depth)
    yield (
        f"{head}: {measure.title} against frozen depth{beside}",
        svg_plots.against(f"{head} against frozen depth", "frozen blocks", depth, measure, probe),
    )
    cost = points(lambda run, arm: run.seconds(arm))
    yield (
        f"{head}: {measure.title} against cost, the trunk counted whole for each arm",
        svg_plots.against(f"{head} against cost", "seconds of a step", cost, measure),
    )


def _about_probe(probe: DepthProfile) -> str:
    name = probe.test.shards.rstrip("/").rsplit("/", 1)[-1]
    samples = f"{probe.test.samples} samples of {name}, list {probe.test.list_sha256[:12]}"
    return f"Linear probe (tools/probe.py): {samples}; the band is one standard error, dotted is chance."


def _curves(run: Facts) -> dict[str, str | None]:
    """Plots of everything that was logged for each step."""

    def plot(title: str, unit: str, *path: str, smooth: bool = False) -> str | None:
        return svg_plots.lines(f"{run.name} {title}", unit, {arm: run.series(arm, *path) for arm in run.arms}, smooth)

    return {
        "loss, a running mean": plot("loss", "loss", "loss", smooth=True),
        **{
            f"training accuracy of {head}, a running mean": plot(
                head, "accuracy", "heads", head, "accuracy", smooth=True
            )
            for head in run.heads
        },
        **{
            f"R2 of {head} in training, a running mean": plot(head, "R2", "heads", head, "r2", smooth=True)
            for head in run.heads
        },
        f"validation: {run.validated.title}": plot("validation", run.validated.title, "valid", "accuracy"),
        "alpha of the gate, a mean where each channel has one": plot("alpha", "alpha", "alpha"),
        "largest alpha of all channels, in size": plot("largest alpha", "alpha", "alpha_largest"),
    }


def _models(run: Facts) -> tuple[dict[str, TubeViT], str]:
    """The models of trained arms (perhaps of only one part), or the reason why there are none."""
    place = next((place for place in run.places if any(place.glob("*/config.json"))), run.directory)
    try:
        return load_run(place), ""
    except UserError as error:
        return {}, f"Not drawn: {error}."


def _looks(models: Mapping[str, TubeViT]) -> list[html.Block]:
    words = html.Text("How many tokens see each pixel and, below, each frame. Lighter means more tokens.")
    return [words, html.Figures(svg_plots.token_maps(next(iter(models.values()))), small=True)]


def _environments(runs: Sequence[Facts]) -> Iterator[html.Block]:
    for run in runs:
        if run.result is not None:
            yield html.Text(f"Where {run.name} was trained", "h3")
            yield html.Text(_words(run.result.environment), "pre")
    yield html.Text("The machine on which this page was made", "h3")
    yield html.Text(_words(environment()), "pre")


def _words(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in facts.items())


def _profile(run: Facts, probe: str | Path | None) -> DepthProfile | None:
    """The profile of the user's choice, or the one in the directory of the run's starting model."""
    start = run.recipe.model.load
    if probe is None and start and (Path(start) / PROBE).is_file():
        probe = Path(start) / PROBE
    if probe is None:
        return None
    path = Path(probe) / "probe.json" if Path(probe).is_dir() else Path(probe)
    profile, mistakes = check(DepthProfile, read_json(path))
    if profile is None or mistakes:
        raise UserError(f"'{path}' is no depth profile of tools/probe.py: {'; '.join(mistakes[:3])}")
    if start and Path(start).is_dir():
        model, config = profile.model, read_json(local(start) / "config.json")
        if differing := [key for key in model.keys() & config.keys() if model[key] != config[key]]:
            raise UserError(
                f"'{path}' is of another model than '{start}', which '{run.directory}' began from: "
                f"{', '.join(sorted(differing))} differ"
            )
    return profile
