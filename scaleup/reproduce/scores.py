"""Accuracy of trained models on a split, kept on disk beside the models so that nothing is evaluated twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from scaleup.checkpoint import load, load_run
from scaleup.evaluate import evaluate
from scaleup.files import write_text

Strides = Mapping[str, list[int]]  # of tubes, and of "frames"
Scores = dict[str, float]  # head -> top-1


def scores(
    models: Mapping[str, Path], shards: Path, views: str = "1x1", strides: Strides | None = None
) -> dict[str, Scores]:
    """Top-1 of each head of each model.

    Args:
        models: directories; those of one run share a pass of the trunk.
        strides: of tubes, where they are others than in training (Table 7d).
    """
    kept = {name: _place(path, shards, views, strides) for name, path in models.items()}
    for run in sorted({path.parent for name, path in models.items() if not kept[name].exists()}):
        here = {name: path for name, path in models.items() if path.parent == run and not kept[name].exists()}
        arms = load_run(run) if len(here) > 1 else {path.name: load(path) for path in here.values()}
        asked = {name: arms[path.name] for name, path in here.items()}
        for model in asked.values():
            model.tokenizer.restride(strides or {})
        for name, score in evaluate(asked, shards, views, batch=64, workers=0).items():
            write_text(kept[name], json.dumps({head: each["top1"] for head, each in score["heads"].items()}))
    return {name: json.loads(place.read_text()) for name, place in kept.items()}


def _place(model: Path, shards: Path, views: str, strides: Strides | None) -> Path:
    changed = "".join(f"-{name}{'x'.join(map(str, stride))}" for name, stride in sorted((strides or {}).items()))
    return model / f"top1-{shards.name}-{views}{changed}.json"
