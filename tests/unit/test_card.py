"""What a model card says, to people and to the hub."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from scaleup.config.schema import Backbone, Input, Model, Tube
from scaleup.model.build import fresh
from scaleup.model.tubevit import TubeViT

SHA = "ab" * 32
LIST = {"samples": 1234, "list_sha256": SHA}


@pytest.fixture
def model() -> TubeViT:
    """An adapted model that was trained twice and evaluated once."""
    kwargs = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    tubes = {"long": Tube([4, 4, 4], [4, 16, 16])}
    heads = {"motion": ["up", "down"]}
    made = fresh(Model(None, Backbone("vit_ti", kwargs), Input(8, [32, 32], 8), tubes=tubes), heads, 0)
    made = made.with_arm(1, True, heads)
    made.arm.gate.alpha.data += 0.25  # type: ignore[union-attr]
    on = {"shards": "k400-val", "modality": "video", "views": "4x3", "list_sha256": SHA}
    small = {"name": "small", "sha256": "5a", "data": [{"shards": "a|b", "modality": "image"} | LIST]}
    parents = {"small": small, "backbone": {"name": "timm:vit", "sha256": "b0"}}
    data = {name: {"k400": {"shards": name, "modality": "video"} | LIST} for name in "ab"}
    made.report = {
        "data": data["b"],
        "began_from": {"data": data["a"], "began_from": {"parents": parents}},
        "evaluations": [{"on": on, "samples": 10, "heads": {"motion": {"top1": 0.6, "top5": 1.0}}}],
    }
    return made


def test_the_hub_reads_the_accuracy(model: TubeViT) -> None:
    read = ModelCard(model.card("delta", 7)).data
    assert (read.license, read.library_name, read.pipeline_tag) == ("apache-2.0", "scaleup", "video-classification")
    assert [(each.metric_name, each.metric_value) for each in read.eval_results] == [
        ("top-1 of motion", 60.0),
        ("top-5 of motion", 100.0),
    ]
    assert all(each.dataset_args == {"views": "4x3", "list_sha256": SHA} for each in read.eval_results)
    assert read.base_model is None  # its weights are nobody's on the hub


@pytest.mark.parametrize(
    ("name", "weights", "base"),
    [
        ("timm:vit_base_patch16_224.mae", "pretrained", "timm/vit_base_patch16_224.mae"),
        ("timm:vit_base_patch16_224", "hf-hub:owner/name@main", "owner/name"),
        ("timm:vit_base_patch16_224.mae", "/somewhere/model.safetensors", None),
        ("open_clip:ViT-H-14/laion2b_s32b_b79k", "pretrained", None),
    ],
)
def test_a_base_is_named_as_the_hub_does_where_it_is_there(
    model: TubeViT, name: str, weights: str, base: str | None
) -> None:
    model.config.backbone.name, model.config.backbone.weights = name, weights
    assert ModelCard(model.card("delta", 7)).data.base_model == base


def test_people_read_gate_parents_data_and_accuracy(model: TubeViT) -> None:
    text = model.card("delta", 7)
    assert "1 of 2 blocks frozen, gate: yes, alpha +0.2500" in text
    assert "tubes of: `small`, sha256 `5a`" in text and "backbone: `timm:vit`, sha256 `b0`" in text
    assert [f"| {name} (videos) | 1,234 | `{SHA}` |" in text for name in "ab"] == [True, True]
    assert rf"| a\|b (images, by the tubes) | 1,234 | `{SHA}` |" in text  # in a cell
    assert f"| k400-val | 4x3 | motion | 60.00 | 100.00 | 10 | `{SHA}` |" in text
    model.report = {}
    assert "Scores" not in model.card("full", 7) and "Trained on" not in model.card("full", 7)
    assert "model-index" not in model.card("full", 7)


def test_a_licence_that_nobody_stated_is_unknown(model: TubeViT, tmp_path: Path) -> None:
    model.config.backbone.license = "not stated"
    assert ModelCard(model.card("full", 7)).data.license == "unknown"
