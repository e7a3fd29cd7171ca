"""One self-contained page on runs: what was trained, its results, its cost, and where it looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaleup.checkpoint.model_directory import local
from scaleup.common.files import read_json, write_text
from scaleup.common.processes import environment
from scaleup.errors import UserError
from scaleup.model.build import load_run
from scaleup.model.tubevit import TubeViT
from scaleup.outputs import html, token_maps
from scaleup.outputs.class_report import by_class
from scaleup.outputs.run_records import Facts, read
from scaleup.outputs.summary import curves, summary

PROBE = "probe/probe.json"  # in a model directory, where a report looks for it


def write(
    runs: Sequence[str | Path],
    out: str | Path,
    shards: str | Path | None = None,
    refresh: int | None = None,
    probe: str | Path | None = None,
) -> dict[str, Any]:
    """Write the page on ``runs`` to ``out``, whole or not at all.

    Args:
        shards: what arms are compared on class by class; a pass over it is made for each run that is complete.
        refresh: seconds after which a browser reads the page anew.
        probe: a depth profile (``probe.json`` of tools/probe.py, or its directory), which stands beside the sweep;
            by default the one in ``probe/`` of the model that the first run began from, where there is one.

    Returns:
        ``{"out", "runs": {name: state}, "bytes"}``.

    Raises:
        UserError: one of ``runs`` is no run directory, or the profile cannot be read or is of another model.
    """
    facts = [read(run) for run in runs]
    if len({each.name for each in facts}) < len(facts):
        for each in facts:
            each.name = str(each.directory)
    states = {each.name: each.state for each in facts}
    sections = dict(_sections(facts, shards, _probe(facts[0], probe)))
    content = html.document(", ".join(each.name for each in facts), states, sections, refresh)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, content)
    return {"out": str(out), "runs": states, "bytes": len(content.encode())}


def _sections(
    runs: list[Facts], shards: str | Path | None, probe: Mapping[str, Any] | None
) -> Iterator[tuple[str, list[html.Block]]]:
    """Titles and contents."""
    yield "Result", list(summary(runs, probe))
    complete: dict[str, dict[str, TubeViT]] = {}
    for run in runs:
        at = f"{run.name}: " if len(runs) > 1 else ""
        yield f"{at}Curves", [html.Text(run.state), html.Figures(curves(run))]
        models, without = _models(run)
        yield f"{at}Where tubes look", [html.Text(without)] if without else _looks(models)
        if drawn := token_maps.kernels(next(iter(models.values()))) if models else {}:
            yield f"{at}Kernels of the tubes", [html.Figures(drawn)]
        if run.result is not None and models:
            complete[run.name] = models
    if shards is not None and complete:
        yield "Classes", list(by_class(complete, shards))
    for run in runs:
        at = f"{run.name}: " if len(runs) > 1 else ""
        yield f"{at}Recipe", [html.Folded("The resolved recipe", html.Code(run.yaml))]
    yield "Environment", list(_environments(runs))


def _models(run: Facts) -> tuple[dict[str, TubeViT], str]:
    """The trained arms that are there, perhaps those of one part, or why there are none."""
    place = next((place for place in run.places if any(place.glob("*/config.json"))), run.directory)
    try:
        return load_run(place), ""
    except UserError as error:
        return {}, f"Not drawn: {error}."


def _looks(models: Mapping[str, TubeViT]) -> list[html.Block]:
    words = html.Text("How many tokens see each pixel, and below it each frame: the lighter the more.")
    return [words, html.Figures(token_maps.token_maps(next(iter(models.values()))), small=True)]


def _environments(runs: Sequence[Facts]) -> Iterator[html.Block]:
    for run in runs:
        if run.result is not None:
            yield html.Heading(f"Where {run.name} was trained")
            yield html.Code(_words(run.result.environment))
    yield html.Heading("Where this page was made")
    yield html.Code(_words(environment()))


def _words(about: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in about.items())


def _probe(run: Facts, given: str | Path | None) -> dict[str, Any] | None:
    """The profile that is given, or that stands beside the model that a run began from."""
    start = run.recipe.model.load
    if given is None:
        given = Path(start) / PROBE if start and (Path(start) / PROBE).is_file() else None
        if given is None:
            return None
    path = Path(given) / "probe.json" if Path(given).is_dir() else Path(given)
    try:
        found = read_json(path)
        about, labels = found["model"], found["labels"]
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is no depth profile of tools/probe.py: {error}") from error
    if start and Path(start).is_dir():
        config = read_json(local(start) / "config.json")
        if differing := [key for key in about.keys() & config.keys() if about[key] != config[key]]:
            raise UserError(
                f"'{path}' is of another model than '{start}', which '{run.directory}' began from: "
                f"{', '.join(sorted(differing))} differ"
            )
    assert isinstance(labels, dict)
    return found
