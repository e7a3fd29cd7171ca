"""From lists with several labels, or numbers, to predictions and exports: every tool on the way."""

import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from support.indexes import whole_index
from support.runs import bits, metrics
from support.tools import AT_ONCE, tool

import scaleup
from scaleup.common.metrics import average_precisions, mean_average_precision
from scaleup.data.augment import eval_views
from scaleup.data.index import write_index
from scaleup.data.shapes import MOTIONS, SHAPES, make_sample
from scaleup.data.shards import Shards
from scaleup.evaluation.predictor import predict

CLIPS = 12
RECIPE = """
model:
  input: {frames: 8, size: [32, 32], fps: 15}
  backbone:
    kwargs: {embed_dim: 24, depth: 4, num_heads: 2, patch_size: 16, global_pool: token}
data:
  batch: 4
  workers: 0
  train:
    tags: {shards: PLACE/tags, heads: {tags: label}}
    amounts: {shards: PLACE/amounts, heads: {amount: label}}
  valid: {shards: PLACE/tags, heads: {tags: label}}
heads:
  tags: {loss: sigmoid}
  amount: {loss: l2}
train: {steps: 6, warmup: 1, label_smoothing: 0.1, valid_every: 3}
arm: {lr: 0.01}
arms:
  head: {frozen_depth: 4}
  late: {frozen_depth: 2, gate: true}
"""


def run(name: str, *args: object) -> str:
    done = tool(name, *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with two lists, packed and trained on."""
    place = tmp_path_factory.mktemp("several")
    tags, amounts = ["path,label"], ["path,label"]
    for number in range(CLIPS):
        sample = make_sample("video", 0, "train", number, 32, 8)
        (place / f"{number}.mp4").write_bytes(sample.media)
        shape, motion = SHAPES[sample.labels["shape"]], MOTIONS[sample.labels["motion"]]  # type: ignore[index]
        tags.append(f"{number}.mp4," + ("" if number == 3 else f"{shape};{motion}"))
        amounts.append(f"{number}.mp4,{1000 + 50 * number}")
    for name, lines, kind in (("tags", tags, "several"), ("amounts", amounts, "number")):
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
        run("make_shards", place / f"{name}.csv", "--labels", kind, "--out", place / name, "--processes", 1)
        assert "all 12 samples are unchanged" in run("check_shards", place / name)
    (place / "recipe.yaml").write_text(RECIPE.replace("PLACE", str(place)))
    run("sweep", place / "recipe.yaml", f"out={place / 'run'}")  # which makes a plan first
    return place


def test_what_a_run_logs_and_writes(place: Path) -> None:
    lines = [line["arms"]["late"] for line in metrics(place / "run")]
    measures = [{head: set(values) for head, values in line["heads"].items()} for line in lines]
    assert {"tags": {"loss", "accuracy"}} in measures and {"amount": {"loss", "r2"}} in measures
    valid = lines[2]["valid"]
    assert valid["accuracy"] == valid["heads"]["tags"]["map"] and valid["samples"] == CLIPS
    config = json.loads((place / "run/late/config.json").read_text())
    amounts = 1000 + 50 * np.arange(CLIPS)
    assert config["losses"]["tags"]["kind"] == "sigmoid" and config["losses"]["amount"]["kind"] == "l2"
    assert config["losses"]["amount"]["mean"] == pytest.approx(amounts.mean(), rel=1e-4)
    assert config["losses"]["amount"]["std"] == pytest.approx(amounts.std(), rel=1e-4)
    assert len(Shards.open(place / "tags").classes["label"]) == len(config["heads"]["tags"])


def outputs(place: Path, model: torch.nn.Module, head: str, name: str) -> tuple[np.ndarray, list]:
    """What a model says of all samples of a set, and their labels."""
    shards = Shards.open(place / name)
    samples = [shards.read(i) for i in range(len(shards))]
    views = torch.cat([eval_views(sample.media, "video", model.config.input, 1, 1) for sample in samples])
    with torch.no_grad():
        return model(model.preprocess(views), head).numpy(), [sample.labels["label"] for sample in samples]


def test_evaluation_is_what_the_model_says(place: Path) -> None:
    evaluate = partial(run, "evaluate", place / "run/late")
    result = json.loads(evaluate(place / "tags", "--views", "1x1", "--heads", "tags=label", "--json", "--record"))
    model = scaleup.load(place / "run/late")
    logits, labels = outputs(place, model, "tags", "tags")
    hot = np.zeros(logits.shape)
    for row, numbers in enumerate(labels):
        hot[row, numbers] = 1
    precisions = average_precisions(logits, hot)
    precision, chance = mean_average_precision(precisions, hot.sum(0), len(hot))
    rows = {row["name"]: row for row in result["classes"]["tags"]["classes"]}
    for c, name in enumerate(model.config.heads["tags"]):
        assert rows[name]["samples"] == hot[:, c].sum() and rows[name]["value"] == pytest.approx(precisions[c])
    shown = evaluate(place / "tags", "--views", "1x1", "--heads", "tags=label")
    worst = result["classes"]["tags"]["classes"][0]
    assert f"worst average precision: {worst['name']} {worst['value']:.2%} ({worst['samples']})" in shown
    assert result["heads"]["tags"]["map"] == pytest.approx(precision, abs=1e-6)
    assert result["heads"]["tags"]["chance"] == pytest.approx(chance)
    shown = evaluate(place / "amounts", "--views", "1x1", "--heads", "amount=label", "--record")
    values, numbers = outputs(place, model, "amount", "amounts")
    errors = values[:, 0] - np.array(numbers)
    assert f"MAE {np.abs(errors).mean():.4g}, RMSE {(errors**2).mean() ** 0.5:.4g}" in shown and "R2" in shown
    card = (place / "run/late/README.md").read_text()
    assert "| mAP % |" in card and "| RMSE |" in card and "`amount` (a number)" in card
    report = place / "report.html"
    run("report", place / "run", "--out", report, "--shards", place / "tags")
    assert "R2 of amount" in report.read_text()


def test_the_report_shows_each_class_worst_first(place: Path, tmp_path: Path) -> None:
    """Of shards whose label has the name of the head."""
    shutil.copytree(place / "tags", tmp_path / "tags")
    index = whole_index(place / "tags")
    index.classes, index.kinds = {"tags": index.classes["label"]}, {"tags": "several"}
    for entry in index.shards:
        for sample in entry.samples:
            sample.labels = {"tags": sample.labels["label"]}
    write_index(tmp_path / "tags", index)
    run("report", place / "run", "--out", tmp_path / "page.html", "--shards", tmp_path / "tags")
    page = (tmp_path / "page.html").read_text()
    page = page[page.index("Average precision of each class in %, the worst of head first") :]
    result = json.loads(run("evaluate", place / "run/head", tmp_path / "tags", "--views", "1x1", "--json"))
    classes = result["classes"]["tags"]["classes"]
    assert len(classes) > 5
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    for number, each in enumerate(classes):
        assert cells[4 * number : 4 * number + 3] == [each["name"], str(each["samples"]), f"{100 * each['value']:.1f}"]


def test_predictions(place: Path) -> None:
    clip = place / "0.mp4"
    model = scaleup.load(place / "run/late")
    logits, _ = outputs(place, model, "tags", "tags")
    shown = run("predict", place / "run/late", clip, "--head", "tags", "--threshold", 0)
    assert shown.count("%") == logits.shape[1]
    assert "no label" in run("predict", place / "run/late", clip, "--head", "tags", "--threshold", 1)
    number = predict(model, [str(clip)], "amount").files[0]
    assert number.top == [] and number.value is not None and 900 < number.value < 1700
    assert f"{number.value:.4g}" in run(
        "predict", place / "run/late", clip, "--head", "amount", "--overlay", place / "o.png"
    )
    refused = tool("predict", place / "run/late", clip, "--head", "amount", "--threshold", 0.5)
    assert refused.returncode == 2 and "a threshold is for heads with loss sigmoid" in refused.stderr
    refused = tool("predict", place / "run/late", clip, "--head", "amount", "--top", 3)
    assert refused.returncode == 2 and "head 'amount' gives a number, so there are no most" in refused.stderr


def test_a_cache_gives_the_same_bits(place: Path) -> None:
    """But for the head alone, whose class token is computed by itself where there is no cache."""
    run("cache", place / "recipe.yaml", "--out", place / "cache", "--precision", "float32")
    changes = [f"out={place / 'cached'}", f"trunk.cache={place / 'cache'}"]
    done = tool("sweep", place / "recipe.yaml", *changes, before=AT_ONCE)
    assert done.returncode == 0, done.stderr
    assert bits(place / "cached", "late") == bits(place / "run", "late")


def test_an_export_and_a_later_run_keep_the_loss_of_a_head(place: Path, tmp_path: Path) -> None:
    result = json.loads(run("export", place / "run/late", "--to", "full", "--out", tmp_path / "full", "--json"))
    assert result["image_max_abs_diff"] == result["video_max_abs_diff"] == 0
    text = (place / "recipe.yaml").read_text()
    later = tmp_path / "later.yaml"
    later.write_text(f"model: {{load: {tmp_path / 'full'}}}\n" + text[text.index("data:") :])
    changes = ["arm.frozen_depth=2", "arm.gate=true", "train.steps=1", "train.warmup=0", "arm.lr=1e-9"]
    run("train", later, *changes, f"out={tmp_path / 'later'}")
    before, after = (scaleup.load(path) for path in (place / "run/late", tmp_path / "later/model"))
    x = torch.rand(1, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(after(x, "amount"), before(x, "amount"), rtol=1e-4, atol=1e-2)


def validated(place: Path, out: Path, valid: str) -> subprocess.CompletedProcess[str]:
    """A run whose recipe has ``valid`` as its validation set."""
    text = RECIPE.replace("valid: {shards: PLACE/tags, heads: {tags: label}}", f"valid: {valid}")
    (out / "recipe.yaml").write_text(text.replace("PLACE", str(place)))
    return tool("train", out / "recipe.yaml", "arm.frozen_depth=4", f"out={out / 'run'}")


def test_validation_by_a_number_is_no_accuracy(place: Path, tmp_path: Path) -> None:
    done = validated(place, tmp_path, f"{{shards: {place / 'amounts'}, heads: {{amount: label}}}}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())["arms"]["model"]
    assert f", R2 {result['valid_accuracy']:.4g} after step {result['best_step']}" in done.stdout
    said = [line for line in done.stderr.splitlines() if " after step " in line]
    assert said and all(line.startswith("R2 after step ") and "%" not in line for line in said)
    run("report", tmp_path / "run", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<th>R2</th>" in page and "validation: R2" in page and f"its R2{'</'}" in page
    assert "amount: R2 against cost" in page


@pytest.fixture(scope="module")
def unlabelled(place: Path) -> Path:
    """The clips without a class."""
    (place / "none.csv").write_text("path,label\n" + "".join(f"{number}.mp4,\n" for number in range(CLIPS)))
    (place / "classes.txt").write_text("\n".join(scaleup.load(place / "run/late").config.heads["tags"]))
    options = "--labels", "several", "--classes", place / "classes.txt", "--out", place / "none", "--processes", 1
    run("make_shards", place / "none.csv", *options)
    return place / "none"


def test_without_a_class_an_evaluation_gives_no_precision(place: Path, unlabelled: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run/late", tmp_path / "model")
    what = tmp_path / "model", unlabelled, "--views", "1x1", "--heads", "tags=label"
    assert "tags mAP -, " in run("evaluate", *what, "--record")
    assert json.loads(run("evaluate", *what, "--json"))["heads"]["tags"]["map"] is None
    assert "| - |" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize(
    ("valid", "sentence"),
    [
        ("{shards: NONE, heads: {tags: label}}", "data.valid: no sample of 'NONE' has a class of label 'label'"),
        ("{shards: NONE}", "; say which with data.valid.heads={HEAD: LABEL}"),
        ("{shards: NONE, heads: {tgas: label}}", "data.valid.heads={HEAD: LABEL}: there is no head 'tgas'"),
        ("{shards: NONE, heads: {tags: lable}}", "'lable', but 'NONE' has: label; nearest: 'label'"),
    ],
)
def test_a_validation_that_cannot_be_is_one_sentence(
    place: Path, unlabelled: Path, tmp_path: Path, valid: str, sentence: str
) -> None:
    done = validated(place, tmp_path, valid.replace("NONE", str(unlabelled)))
    assert done.returncode == 2 and sentence.replace("NONE", str(unlabelled)) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.all
def test_a_program_gives_numbers_and_says_what_heads_learn(place: Path, tmp_path: Path) -> None:
    run("export", place / "run/late", "--to", "torch", "--out", tmp_path / "program")
    labels = json.loads((tmp_path / "program/labels.json").read_text())
    assert labels["losses"] == {"tags": "sigmoid", "amount": "l2"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["heads.tags=null"], "head 'tags' has loss softmax, but label 'label' of 'PLACE/tags' is a list of classes"),
        (
            ["heads.amount.loss=sigmoid"],
            "label 'label' of 'PLACE/amounts' is a number; allowed is heads.amount.loss=l2",
        ),
        (["heads.tags.loss=l1"], "is a list of classes; allowed is heads.tags.loss=sigmoid"),
        (["heads.tgas.loss=l1"], "heads.tgas: no training set has this head; nearest: 'tags'"),
        (["heads.amount.balance=full"], "heads.amount.balance: a number (loss l2) has no classes to balance"),
        (["heads.amount.focal=2"], "heads.amount.focal: a number (loss l2) has no focal loss"),
        (["heads.tags.loss=bce"], "heads.tags.loss: 'bce' is not one of 'softmax', 'sigmoid', 'l2', 'l1'"),
    ],
)
def test_a_loss_that_does_not_fit_is_one_sentence(
    place: Path, tmp_path: Path, changes: list[str], sentence: str
) -> None:
    done = tool("train", place / "recipe.yaml", *changes, f"out={tmp_path / 'out'}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert sentence.replace("PLACE", str(place)) in done.stderr and not (tmp_path / "out").exists()


def test_evaluation_refuses_a_label_of_another_kind(place: Path) -> None:
    done = tool("evaluate", place / "run/late", place / "amounts", "--heads", "tags=label")
    assert done.returncode == 2 and "head 'tags'" in done.stderr and "Traceback" not in done.stderr
