"""The model card of a model directory, in the Hugging Face hub's conventions: metadata in YAML, and words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from scaleup.checkpoint.hub import HUB
from scaleup.checkpoint.model_directory import ModelConfig, Source, stages, trained_on
from scaleup.common.metrics import MEASURES
from scaleup.common.text import markdown

USE = """```python
import scaleup
model = scaleup.load("{this directory}")
logits = model(x)  # x: (B, 3, T, H, W) or (B, 3, H, W), see model.preprocess
```
"""


@dataclass
class Described:
    """What a card describes."""

    config: ModelConfig
    report: Mapping[str, Any]  # the content of report.json
    depth: int  # blocks
    alphas: Mapping[str, float]  # the gate's values by name, empty without a gate
    kind: str  # delta | full
    size: int  # numbers (elements of tensors) in the directory


def card(model: Described) -> str:
    """The text of a model card: the model's parts, training data, accuracy, and how to load it."""
    measures = _measures(model.report)
    parts = {
        "Trained on": _table(("shards", "samples", "sha256 of the list"), _trained_on(model.report)),
        "Scores": _table(
            ("shards", "views", "head", *(MEASURES[name].column for name in measures), "samples", "list"),
            _accuracy(model.report, measures),
        ),
        "Use": USE,
    }
    described = "".join(f"\n## {title}\n\n{content}" for title, content in parts.items() if content)
    return f"---\n{_metadata(model)}\n---\n{_facts(model)}{described}"


def _metadata(model: Described) -> str:
    backbone = model.config.backbone
    results = [
        EvalResult(
            task_type=f"{entry['on']['modality']}-classification",
            dataset_type=entry["on"]["shards"],
            dataset_name=entry["on"]["shards"],
            dataset_args={key: entry["on"][key] for key in ("views", "list_sha256")},
            metric_type="accuracy" if name in ("top1", "top5") else name,
            metric_name=f"{MEASURES[name].title} of {head}",
            metric_value=round(MEASURES[name].scale * score[name], 2 if MEASURES[name].scale > 1 else 6),
        )
        for entry in model.report.get("evaluations", ())
        for head, score in entry["heads"].items()
        for name in MEASURES
        if score.get(name) is not None
    ]
    data = ModelCardData(
        library_name="scaleup",
        pipeline_tag="video-classification",
        tags=["tubevit", "image-classification"],
        license=backbone.license if backbone.license != "not stated" else "unknown",
        base_model=_hub_id(backbone),
        model_name=f"TubeViT on {backbone.name}" if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _hub_id(backbone: Source) -> str | None:
    """The hub repository of the base; None for a file."""
    library, _, name = backbone.name.partition(":")
    weights = backbone.weights or ""
    if weights.startswith(HUB):
        return weights.removeprefix(HUB).partition("@")[0]
    return f"timm/{name}" if weights == "pretrained" and library == "timm" and "." in name else None


def _facts(model: Described) -> str:
    config, backbone = model.config, model.config.backbone
    tubes = ", ".join(f"`{name}` {'x'.join(map(str, tube.kernel))}" for name, tube in config.tubes.items())
    heads = ", ".join(f"`{name}` ({_learnt(name, config)})" for name in config.heads)
    lines = [f"{config.frozen_depth} of {model.depth} blocks frozen, gate: {_gate(model.alphas)}"]
    if config.adapter:
        lines += [f"a {config.adapter.kind} adapter on the blocks above, in `adapter/`, for peft"]
    if pool := config.pool:
        size = (
            f", queries: {pool.queries}, heads: {pool.heads}, blocks: {pool.depth}" if pool.kind == "attentive" else ""
        )
        depths = f" after blocks {', '.join(map(str, pool.taps))} and the last" if pool.taps else ""
        lines += [f"features: {pool.kind} of the tokens{depths}{size}"]
    lines += [f"tubes: {tubes or 'none'}", f"heads: {heads or 'none'}", *_parents(model.report)]
    needs = f" It needs the base weights with sha256 `{backbone.sha256}`." if model.kind == "delta" else ""
    lines += [f"this directory is a **{model.kind}** of {model.size:,} numbers.{needs}"]
    title = f"A TubeViT on `{backbone.name}`: images {config.input.size} and clips of {config.input.frames} frames.\n\n"
    return title + "".join(f"- {line}\n" for line in lines)


def _learnt(head: str, config: ModelConfig) -> str:
    """What a head gives, in words."""
    words = {"softmax": "{} classes", "sigmoid": "any of {} classes", "l2": "a number", "l1": "a number"}
    return words[config.loss(head)].format(len(config.heads[head]))


def _gate(alphas: Mapping[str, float]) -> str:
    if not alphas:
        return "no"
    many = "one alpha for each channel, mean " if len(alphas) > 1 else ""
    return f"yes, {many}" + ", ".join(f"{name.replace('_', ' ')} {value:+.4f}" for name, value in alphas.items())


def _parents(report: Mapping[str, Any]) -> Iterator[str]:
    parents: Mapping[str, Any] = next((stage["parents"] for stage in stages(report) if "parents" in stage), {})
    for role, parent in parents.items():
        sha256 = f", sha256 `{parent['sha256']}`" if parent.get("sha256") else ""
        yield f"{'tubes of' if role == 'small' else role}: `{parent['name']}`{sha256}"


def _trained_on(report: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for each, what in trained_on(report):
        yield f"{each['shards']} ({each['modality']}s{what})", f"{each['samples']:,}", f"`{each['list_sha256']}`"


def _measures(report: Mapping[str, Any]) -> list[str]:
    """Those that a head was measured by."""
    scores = [score for entry in report.get("evaluations", ()) for score in entry["heads"].values()]
    return [name for name in MEASURES if any(name in score for score in scores)]


def _accuracy(report: Mapping[str, Any], measures: list[str]) -> Iterator[tuple[Any, ...]]:
    for entry in report.get("evaluations", ()):
        on = entry["on"]
        for head, score in entry["heads"].items():
            values = (MEASURES[name].text(score[name]) if name in score else "" for name in measures)
            yield on["shards"], on["views"], head, *values, f"{entry['samples']:,}", f"`{on['list_sha256']}`"


def _table(header: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> str:
    first, *others = markdown(header, rows)
    return "\n".join([first, *others, ""]) if len(others) > 1 else ""
