"""Accuracy of trained models on a split. It is written into the models' directories, so nothing is evaluated twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from scaleup.common.files import read_json, write_text
from scaleup.data.shards import Shards
from scaleup.evaluation.accuracy import evaluate
from scaleup.evaluation.depth_profile import probe
from scaleup.model.build import load, load_run

Strides = Mapping[str, list[int]]  # name of a tube, or "frames" -> stride
Scores = dict[str, float]  # head -> top-1


def scores(
    models: Mapping[str, Path], shards: Path, views: str = "1x1", strides: Strides | None = None
) -> dict[str, Scores]:
    """Top-1 of each head of each model.

    Args:
        models: directories; models of one run share a pass of the trunk.
        strides: strides that differ from those of training (Table 7d).
    """
    files = {name: path / file_name(shards.name, views, strides) for name, path in models.items()}
    missing = {name: path for name, path in models.items() if not files[name].exists()}
    for run in sorted({path.parent for path in missing.values()}):
        paths = {name: path for name, path in missing.items() if path.parent == run}
        arms = load_run(run) if len(paths) > 1 else {path.name: load(path) for path in paths.values()}
        loaded = {name: arms[path.name] for name, path in paths.items()}
        for model in loaded.values():
            model.tokenizer.restride(strides or {})
        for name, score in evaluate(loaded, shards, views, batch=64, workers=0).items():
            write_text(files[name], json.dumps({head: result.lead for head, result in score.heads.items()}))
    return {name: read_json(file) for name, file in files.items()}


def file_name(shards: str, views: str, strides: Strides | None = None) -> str:
    """The name of the file in a model's directory that keeps its scores."""
    changed = "".join(f"-{name}{'x'.join(map(str, stride))}" for name, stride in sorted((strides or {}).items()))
    return f"top1-{shards}-{views}{changed}.json"


def image_scores(models: Mapping[str, Path], data: Path) -> dict[str, Scores]:
    """Accuracy of each model on the validation split of images.

    ``image LABEL`` is the accuracy of its heads; ``image LABEL, linear`` that of classifiers that
    :func:`~scaleup.evaluation.depth_profile.probe` fits to its last block on the training split.
    """
    with_heads = {name: path for name, path in models.items() if read_json(path / "config.json")["heads"]}
    heads = scores(with_heads, data / "images-val")
    return {
        name: {f"image {label}": share for label, share in heads.get(name, {}).items()} | _linear(path, data)
        for name, path in models.items()
    }


def image_chances(data: Path) -> Scores:
    """The accuracies of :func:`image_scores` by chance."""
    classes = Shards.open(data / "images-val").classes
    return {f"image {label}{how}": 1 / len(names) for how in ("", ", linear") for label, names in classes.items()}


def _linear(model: Path, data: Path) -> Scores:
    file = model / "linear-images-val.json"
    if not file.exists():
        loaded = load(model)
        profile = probe(loaded, data / "images-train", data / "images-val", depths=[loaded.depth], batch=64)
        shares = {f"image {label}, linear": curve.rows[-1].accuracy for label, curve in profile.labels.items()}
        write_text(file, json.dumps(shares))
    return read_json(file)
