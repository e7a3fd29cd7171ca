"""Promise 7: every sample is evaluated exactly once, whatever the number of ranks and workers."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tools
from support.marks import at_length
from support.runs import copied

from scaleup.common.errors import UserError
from scaleup.config.recipe import load as load_recipe
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Recipe
from scaleup.data.augment import eval_views
from scaleup.data.pack import write_shards
from scaleup.data.shapes import CLASSES, make_sample
from scaleup.data.shards import Sample, Shards
from scaleup.evaluation.accuracy import evaluate, view_features
from scaleup.model.build import fresh, load, load_run
from scaleup.model.tubevit import TubeViT
from scaleup.outputs import run_records
from scaleup.outputs.conversion import export
from scaleup.training.run import train

COUNT, DAMAGED, VIEWS, SURE = 13, 4, "2x2", 50  # 13 samples in batches of 3: no number of ranks or workers divides them


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of moving shapes in three shards; one of them cannot be decoded."""
    samples = [make_sample("video", seed=0, split="test", number=number, size=32, frames=12) for number in range(COUNT)]
    whole = samples[DAMAGED]
    samples[DAMAGED] = Sample(whole.key, whole.extension, b"no video", whole.labels)
    return write_shards(samples, tmp_path_factory.mktemp("data") / "test", "video", CLASSES["video"], per_shard=5).path


@pytest.fixture(scope="module")
def made(tiny_path: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a sweep of three arms that start from it."""
    place = tmp_path_factory.mktemp("evaluate")
    recipe = load_recipe(tiny_path, ["train.steps=2", f"out={place / 'sweep'}"])
    recipe.model.load = str(confident(recipe, shards).save_pretrained(place / "model"))
    train(recipe, sweep_arms(recipe))
    return place


@torch.no_grad()
def confident(recipe: Recipe, shards: Path) -> TubeViT:
    """An untrained model that is sure of itself, and whose views of one clip disagree."""
    made, opened = fresh(recipe.model, CLASSES["video"], seed=2).eval(), Shards.open(shards)
    media = [opened.read(index).media for index in range(COUNT) if index != DAMAGED]
    views = torch.cat([eval_views(each, "video", made.config.input, 2, 2) for each in media])
    features = made.forward_features(made.preprocess(views))  # (samples * V, D)
    for head in made.arm.heads.values():
        head.weight *= SURE
        head.bias.copy_(-head.weight @ features.mean(0))
    return made


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """That model, where a test may change it; the sweep stands beside it."""
    return copied(made, tmp_path) / "model"


@torch.no_grad()
def slow_counts(model: Path, shards: Path, head: str) -> tuple[int, int, int, float]:
    """First among the classes, among the first five, first if logits were averaged, and loss: one sample at a time."""
    loaded, opened = load(model), Shards.open(shards)
    top1, top5, by_logits, loss = 0, 0, 0, 0.0
    for index in set(range(COUNT)) - {DAMAGED}:
        views = eval_views(opened.read(index).media, "video", loaded.config.input, 2, 2)
        logits = torch.cat([loaded(loaded.preprocess(view[None]), head=head) for view in views]).double()
        probabilities = sum(each.exp() / each.exp().sum() for each in logits) / len(views)
        label = int(opened.labels[head][index])
        better = int((probabilities > probabilities[label]).sum())
        top1, top5 = top1 + (better == 0), top5 + (better < 5)
        by_logits += int(logits.mean(0).argmax()) == label
        loss -= float(probabilities[label].log()) / (COUNT - 1)
    return top1, top5, by_logits, loss


def counts(result: dict[str, Any], head: str) -> tuple[float, float]:
    assert result["samples"] == COUNT - 1
    return tuple(round(result["heads"][head][key] * (COUNT - 1), 6) for key in ("top1", "top5"))  # type: ignore[return-value]


tool = partial(tools.tool, "evaluate")


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 1), *at_length((1, 1), (2, 0))])
def test_every_sample_counts_once(model: Path, shards: Path, ranks: int, workers: int) -> None:
    if ranks == 1:
        result = asdict(evaluate({"model": load(model)}, shards, VIEWS, batch=3, workers=workers)["model"])
    else:
        done = tool(model, shards, "--views", VIEWS, "--batch", 3, "--workers", workers, "--json", ranks=ranks)
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()  # the first process speaks for both
        result = json.loads(line)
    for head in ("shape", "motion"):
        *expected, _, loss = slow_counts(model, shards, head)
        assert counts(result, head) == tuple(expected)
        assert result["heads"][head]["loss"] == pytest.approx(loss, rel=1e-4)
    assert [key for key, _ in result["failures"]] == [Shards.open(shards).keys[DAMAGED]]
    assert result["list_sha256"] == Shards.open(shards).list_sha256


def test_probabilities_are_averaged_and_not_logits(model: Path, shards: Path) -> None:
    """The counts above tell the two apart."""
    assert any(
        top1 != by_logits for top1, _, by_logits, _ in (slow_counts(model, shards, h) for h in ("shape", "motion"))
    )


@pytest.fixture
def swept(model: Path) -> Path:
    return model.with_name("sweep")


def test_arms_in_one_pass_give_what_each_gives_alone(swept: Path, shards: Path) -> None:
    together, alone = load_run(swept), {name: load(swept / name) for name in ("full", "last", "gated")}
    assert {name: each.report for name, each in together.items()} == {name: each.report for name, each in alone.items()}
    passes: list[int] = []
    together["last"].trunk.blocks[0].register_forward_hook(lambda *_: passes.append(1))  # type: ignore[union-attr]
    pixels = torch.randint(0, 256, (2, 4, 3, 8, 32, 32), dtype=torch.uint8)  # (B, V, 3, T, H, W)
    features = view_features(together, pixels)
    assert len(passes) == 1  # one pass of the trunk for all
    for name, values in features.items():
        assert torch.equal(values, view_features({name: alone[name]}, pixels)[name]), name
    assert len({values.sum().item() for values in features.values()}) == 3  # each arm is another
    results = evaluate(together, shards, VIEWS)
    assert results == {name: evaluate({name: each}, shards, VIEWS)[name] for name, each in alone.items()}


def test_kernels_are_chosen_once_for_all_arms(swept: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = iter(["fast"])
    monkeypatch.setattr("scaleup.model.kernel_choice.choose", lambda *_, trains: next(chosen))
    models = load_run(swept)
    evaluate(models, shards, "1x1")
    parts = [part for model in models.values() for part in (model.trunk, model.arm) if part is not None]
    assert {part.kernels for part in parts} == {"fast"}


def test_a_run_whose_start_has_changed_since_is_refused(swept: Path, model: Path) -> None:
    """Its arms sit on another trunk than the one that would serve them."""
    changed = load(model)
    changed.blocks[0].attn.qkv.weight.data += 0.1  # type: ignore[union-attr,operator]
    changed.save_pretrained(model, overwrite=True)
    with pytest.raises(UserError, match="has changed since; load this directory by itself"):
        load_run(swept)


def test_heads_that_do_not_fit_are_named(model: Path, shards: Path, tmp_path: Path) -> None:
    loaded = {"model": load(model)}
    with pytest.raises(UserError, match="no head 'motoin'.*'motion'"):
        evaluate(loaded, shards, heads={"motoin": "motion"})
    with pytest.raises(UserError, match="'motion' has other classes than label 'shape'"):
        evaluate(loaded, shards, heads={"motion": "shape"})
    with pytest.raises(UserError, match="label 'moton'.*'motion'"):
        evaluate(loaded, shards, heads={"motion": "moton"})
    images = [make_sample("image", 0, "test", number, 32, 1) for number in range(2)]
    others = write_shards(images, tmp_path / "images", "image", {"size": [], **CLASSES["image"]} | {"shape": ["?"] * 8})
    with pytest.raises(UserError, match="no head of the model .*shape, motion.*--heads HEAD=LABEL"):
        evaluate(loaded, others.path)


def test_mistakes_are_sentences_and_exit_code_2(model: Path, shards: Path) -> None:
    done = tool(model, shards, "--heads", "motion")
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert "'motion'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_options_that_would_change_nothing_are_refused(model: Path, shards: Path, tmp_path: Path) -> None:
    for option, value in (("precision", "bfloat16"), ("placement", "host")):
        done = tool(model, shards, f"--{option}", value)
        assert done.returncode == 2 and f"--{option} is of frozen blocks, and '{model}' has none" in done.stderr
    images = [make_sample("image", 0, "test", number, 32, 1) for number in range(2)]
    stills = write_shards(images, tmp_path / "images", "image", CLASSES["image"]).path
    done = tool(model, stills, "--strides", "long=2,8,8")
    assert done.returncode == 2 and "--strides are of tubes" in done.stderr and "Traceback" not in done.stderr


def test_there_are_no_figures_of_nothing(model: Path, tmp_path: Path) -> None:
    loaded = {"model": load(model)}
    empty = write_shards([], tmp_path / "empty", "video", CLASSES["video"])
    with pytest.raises(UserError, match="^'.*/empty' has no samples$"):
        evaluate(loaded, empty.path, workers=0)
    samples = [make_sample("video", 0, "test", number, 32, 12) for number in range(2)]
    broken = [replace(each, media=b"no video") for each in samples]
    with pytest.raises(UserError, match=f"^none of the 2 samples of .* can be read, such as '{broken[0].key}'"):
        evaluate(loaded, write_shards(broken, tmp_path / "broken", "video", CLASSES["video"]).path, workers=0)


def test_a_recorded_evaluation_stands_on_the_card_and_in_the_report(swept: Path, shards: Path, tmp_path: Path) -> None:
    for views in ("1x1", "2x1", "1x1"):
        done = tool(swept, shards, "--views", views, "--record", "--workers", 0, "--json")
        assert done.returncode == 0, done.stderr
    arms = json.loads(done.stdout)["arms"]
    for arm, result in arms.items():
        entries = json.loads((swept / arm / "report.json").read_text())["evaluations"]
        assert [entry["on"]["views"] for entry in entries] == [
            "2x1",
            "1x1",
        ]  # the same again takes the place of the old
        assert entries[1]["heads"] == result["heads"] and entries[1]["failures"] == 1
        card = (swept / arm / "README.md").read_text()
        for score in result["heads"].values():
            assert f"| {100 * score['top1']:.2f} | {100 * score['top5']:.2f} | 12 | `{result['list_sha256']}` |" in card
    scores = run_records.read(swept).scores
    assert scores.words == f"test, 1x1 views, list {Shards.open(shards).list_sha256[:12]}"
    assert scores.arms == {arm: {h: s["top1"] for h, s in each["heads"].items()} for arm, each in arms.items()}
    for source in ("hub/id", shards / "index.json"):
        refused = tool(source, shards, "--record")
        assert refused.returncode == 2 and "is not a directory here" in refused.stderr


def test_an_export_keeps_what_was_recorded_and_another_arm_does_not(model: Path, shards: Path, tmp_path: Path) -> None:
    assert tool(model, shards, "--views", "1x1", "--record", "--workers", 0).returncode == 0
    export(model, "full", tmp_path / "full")
    kept = load(tmp_path / "full").report["evaluations"]
    assert len(kept) == 1 and "## Scores" in (tmp_path / "full" / "README.md").read_text()
    assert "evaluations" not in load(model).with_arm(1, False, CLASSES["video"]).report
