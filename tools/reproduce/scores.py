"""Accuracy of trained models on a split, kept on disk beside the models so that nothing is evaluated twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from scaleup.common.files import read_json, write_text
from scaleup.data.shards import Shards
from scaleup.evaluate import evaluate
from scaleup.evaluation.depth_profile import probe
from scaleup.model.build import load, load_run

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
    kept = {name: path / file_name(shards.name, views, strides) for name, path in models.items()}
    for run in sorted({path.parent for name, path in models.items() if not kept[name].exists()}):
        here = {name: path for name, path in models.items() if path.parent == run and not kept[name].exists()}
        arms = load_run(run) if len(here) > 1 else {path.name: load(path) for path in here.values()}
        asked = {name: arms[path.name] for name, path in here.items()}
        for model in asked.values():
            model.tokenizer.restride(strides or {})
        for name, score in evaluate(asked, shards, views, batch=64, workers=0).items():
            write_text(kept[name], json.dumps({head: each.top1 for head, each in score.heads.items()}))
    return {name: read_json(place) for name, place in kept.items()}


def file_name(shards: str, views: str, strides: Strides | None = None) -> str:
    """Of the file beside a model that keeps its scores."""
    changed = "".join(f"-{name}{'x'.join(map(str, stride))}" for name, stride in sorted((strides or {}).items()))
    return f"top1-{shards}-{views}{changed}.json"


def image_scores(models: Mapping[str, Path], data: Path) -> dict[str, Scores]:
    """On the validation split of images, of each model: ``image LABEL`` of its heads, and ``image LABEL, linear`` of
    classifiers that :func:`~scaleup.evaluation.depth_profile.probe` fits to its last block on the training split."""
    able = {name: path for name, path in models.items() if read_json(path / "config.json")["heads"]}
    heads = scores(able, data / "images-val")
    return {
        name: {f"image {label}": share for label, share in heads.get(name, {}).items()} | _linear(path, data)
        for name, path in models.items()
    }


def image_chances(data: Path) -> Scores:
    """What :func:`image_scores` would be by guessing."""
    classes = Shards.open(data / "images-val").classes
    return {f"image {label}{how}": 1 / len(names) for how in ("", ", linear") for label, names in classes.items()}


def _linear(model: Path, data: Path) -> Scores:
    kept = model / "linear-images-val.json"
    if not kept.exists():
        loaded = load(model)
        found = probe(loaded, data / "images-train", data / "images-val", depths=[loaded.depth], batch=64)
        shares = {f"image {label}, linear": curve.rows[-1].accuracy for label, curve in found.labels.items()}
        write_text(kept, json.dumps(shares))
    return read_json(kept)
