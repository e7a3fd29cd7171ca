"""Depth profiles against classifiers fitted on all features at once, of tokens that pass the blocks one by one."""

from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from scaleup.common.errors import UserError
from scaleup.config.schema import Input, Recipe
from scaleup.data.augment import eval_views
from scaleup.data.pack import write_shards
from scaleup.data.shapes import CLASSES, make_sample
from scaleup.data.shards import Sample, Shards
from scaleup.evaluation import depth_profile as measuring
from scaleup.evaluation.depth_profile import DepthAccuracy, DepthProfile, Reader, probe, suggest_depths
from scaleup.model.build import fresh
from scaleup.model.tubevit import TubeViT

TRAIN, TEST, DAMAGED, BATCH = 50, 30, 7, 8
LABELS = {"motion": 6, "shape": 8}
FED = Input(frames=8, size=[32, 32], fps=8)


def clips(count: int, split: str) -> list[Sample]:
    """Clips labelled by what few samples can teach: how red they are, and how blue. One cannot be decoded."""
    made = [make_sample("video", seed=0, split=split, number=number, size=32, frames=12) for number in range(count)]
    shades = torch.stack([eval_views(each.media, "video", FED, 1, 1).float().mean((0, 2, 3, 4)) for each in made])
    bins = shades.argsort(0).argsort(0) / count  # (samples, 3)
    for each, (red, _, blue) in zip(made, bins.tolist(), strict=True):
        each.labels.update(motion=int(red * LABELS["motion"]), shape=int(blue * LABELS["shape"]))
    made[DAMAGED] = Sample(made[DAMAGED].key, made[DAMAGED].extension, b"no video", made[DAMAGED].labels)
    return made


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory, classes = tmp_path_factory.mktemp("data"), CLASSES["video"]
    train = write_shards(clips(TRAIN, "train"), directory / "train", "video", classes, per_shard=20)
    return Path(train.path), Path(write_shards(clips(TEST, "test"), directory / "test", "video", classes).path)


@pytest.fixture
def model(tiny: Callable[..., Recipe]) -> TubeViT:
    """A small joint model of three blocks, nothing frozen."""
    return fresh(tiny().model, CLASSES["video"], seed=3).eval()


def profile(model: TubeViT, splits: tuple[Path, Path], **options: Any) -> DepthProfile:
    return probe(model, *splits, **{"batch": BATCH, "workers": 0} | options)


@torch.no_grad()
def slow_features(model: TubeViT, path: Path, views: tuple[int, int]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Float64 features (samples, F) of each depth, one sample at a time, and labels."""
    shards, rows = Shards.open(path), []
    whole = [index for index in range(len(shards)) if index != DAMAGED]
    for index in whole:
        x = model.preprocess(eval_views(shards.read(index).media, "video", model.config.input, *views))
        depths = [model.tokenize(x)]
        for block in model.blocks:
            depths.append(block(depths[-1]))
        pooled = [torch.cat([h[:, 1:].double().mean((0, 1)), h[:, 0].double().mean(0)]) for h in depths]
        rows.append(torch.stack(pooled))
    return list(torch.stack(rows, 1)), {label: torch.tensor(shards.labels[label][whole]) for label in LABELS}


def slow_row(train: Tensor, y: Tensor, test: Tensor, wanted: Tensor, classes: int) -> tuple[float, float, float]:
    """Accuracy on both splits, and the penalty of the least n RSS / (n - tr H)^2."""
    n, scale = len(train), train.std(0, correction=0)
    scale[scale < 1e-5 * train.abs().mean(0)] = torch.inf
    x = (train - train.mean(0)) / scale
    targets = one_hot(y, classes).double()
    errors = {}
    for penalty in n * 10.0 ** torch.linspace(-6, 2, 25, dtype=torch.float64):
        inverse = torch.linalg.inv(x.T @ x + penalty * torch.eye(x.shape[1]))
        hat = x @ inverse @ x.T + 1 / n
        errors[penalty.item()] = (n * (targets - hat @ targets).square().sum() / (n - hat.trace()) ** 2).item()
    penalty = min(errors, key=errors.__getitem__)
    weight = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]), x.T @ targets)
    both = [((each - train.mean(0)) / scale @ weight + targets.mean(0)).argmax(1) for each in (train, test)]
    ours, theirs = ((found == labels).double().mean().item() for found, labels in zip(both, (y, wanted), strict=True))
    return ours, theirs, penalty


@pytest.mark.parametrize("views", ["1x1", "2x2"])
def test_every_depth_and_label_gets_the_classifier_fitted_on_all_features(
    model: TubeViT, splits: tuple[Path, Path], views: str
) -> None:
    found = profile(model, splits, views=views)
    each = (int(views[0]), int(views[2]))
    (train, y), (test, wanted) = (slow_features(model, path, each) for path in splits)
    assert found.labels.keys() == LABELS.keys() and found.train_scored == TRAIN - 1
    for label, classes in LABELS.items():
        rows = found.labels[label].rows
        assert [row.depth for row in rows] == [0, 1, 2, 3]
        for row, ours, theirs in zip(rows, train, test, strict=True):
            slow = slow_row(ours, y[label], theirs, wanted[label], classes)
            assert (row.train_accuracy, row.accuracy, row.penalty) == pytest.approx(slow, rel=1e-9), row
            assert row.standard_error == pytest.approx((slow[1] * (1 - slow[1]) / (TEST - 1)) ** 0.5)
    assert len({row.accuracy for row in found.labels["motion"].rows}) > 1  # depths are told apart


def test_samples_pass_the_trunk_once_for_all_depths_and_labels(model: TubeViT, splits: tuple[Path, Path]) -> None:
    seen: dict[int, int] = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, args, __, index=index: seen.update({index: seen[index] + len(args[0])}))
    seen.update(dict.fromkeys(range(model.depth), -1))  # one made-up clip goes before
    before = dict(seen)
    found = profile(model, splits)
    read = {index: seen[index] - before[index] for index in seen}
    assert set(read.values()) == {TRAIN + TEST - 2}
    for split, path in zip(("train", "test"), splits, strict=True):
        shards = Shards.open(path)
        assert getattr(found, split).samples == len(shards) - 1
        assert [key for key, _ in getattr(found, split).failures] == [shards.keys[DAMAGED]]
        assert getattr(found, split).list_sha256 == shards.list_sha256


def curves(found: DepthProfile) -> list[tuple[float, ...]]:
    return [astuple(row) for each in found.labels.values() for row in each.rows]


@pytest.mark.parametrize("options", [{"batch": 3}, {"batch": 64, "workers": 2}])
def test_how_samples_are_read_changes_nothing(
    model: TubeViT, splits: tuple[Path, Path], options: dict[str, int]
) -> None:
    for ours, theirs in zip(curves(profile(model, splits, **options)), curves(profile(model, splits)), strict=True):
        assert ours == pytest.approx(theirs)


def test_labels_and_depths_on_their_own_give_what_they_give_together(model: TubeViT, splits: tuple[Path, Path]) -> None:
    every = profile(model, splits).labels
    for depths in ([0], [2, 3]):
        alone = profile(model, splits, labels=["shape"], depths=depths).labels
        assert list(alone) == ["shape"]
        for ours, depth in zip(alone["shape"].rows, depths, strict=True):
            assert astuple(ours) == pytest.approx(astuple(every["shape"].rows[depth]))


def test_what_is_frozen_already_makes_no_difference(model: TubeViT, splits: tuple[Path, Path]) -> None:
    joint, bytes_before = profile(model, splits), {n: t.clone() for n, t in model.state_dict().items()}
    partly = model.with_arm(2, gate=True, heads={})
    found = profile(partly, splits)
    assert curves(found) == curves(joint) and found.model["sha256"] == joint.model["sha256"]
    assert all(torch.equal(tensor, bytes_before[name]) for name, tensor in model.state_dict().items())
    partly.blocks[2].mlp.fc1.bias.data += 0.1  # type: ignore[union-attr,operator]
    assert profile(partly, splits, depths=[1]).model["sha256"] != joint.model["sha256"]


def test_an_open_gate_is_refused_where_it_would_count(model: TubeViT, splits: tuple[Path, Path]) -> None:
    gated = model.with_arm(2, gate=True, heads={})
    gated.arm.gate.alpha.data.fill_(0.25)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"open \(alpha 0.25\).*depths 0 to 2"):
        profile(gated, splits)
    below = profile(gated, splits, depths=[0, 1, 2])
    assert curves(below) == curves(profile(model, splits, depths=[0, 1, 2]))


def test_few_training_samples_are_kept(
    model: TubeViT, splits: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = profile(model, splits)
    monkeypatch.setattr(measuring, "SCORED", 20)  # every third of batches of 8
    some = profile(model, splits)
    assert some.train_scored == 24 - 1 - 7 + 1  # batches 0, without the damaged one, 3 and 6, which has 2
    assert [row[2:] for row in curves(some)] == [row[2:] for row in curves(every)]


def test_precision_is_that_of_the_blocks(model: TubeViT, splits: tuple[Path, Path]) -> None:
    low = profile(model, splits, trunk=measuring.Trunk("bfloat16"))
    assert low.trunk.precision == "bfloat16" and 0 < low.trunk.drift[3] < 0.1
    exact, moved = profile(model, splits), low.labels["motion"].rows
    assert astuple(moved[0]) == pytest.approx(astuple(exact.labels["motion"].rows[0]))  # z0 is float32
    assert low.model["sha256"] == exact.model["sha256"]


def test_tokens_are_pooled_without_the_prefix_and_beside_its_first() -> None:
    tokens = torch.randn(2, 7, 4)
    for prefix, wanted in (
        (0, tokens.mean(1)),
        (1, torch.cat([tokens[:, 1:].mean(1), tokens[:, 0]], 1)),
        (3, torch.cat([tokens[:, 3:].mean(1), tokens[:, 0]], 1)),
    ):
        reader = Reader.__new__(Reader)
        reader.prefix = prefix
        assert torch.equal(reader.pool(tokens), wanted)


@pytest.mark.parametrize(
    ("accuracies", "depth"),
    [
        ([0.2, 0.5, 0.8, 0.81, 0.79], 2),  # 0.81 is within the error of 0.8
        ([0.2, 0.5, 0.8, 0.7, 0.9], 4),  # rises again
        ([0.9, 0.5, 0.4], 0),
        ([0.5, 0.52, 0.54, 0.56], 2),  # small steps add up
    ],
)
def test_the_suggestion_is_where_accuracy_stops_rising(accuracies: list[float], depth: int) -> None:
    rows = [DepthAccuracy(n, 1.0, a, standard_error=0.03, penalty=1.0) for n, a in enumerate(accuracies)]
    assert suggest_depths(rows) == depth


def test_mistakes_are_sentences(model: TubeViT, splits: tuple[Path, Path], tmp_path: Path) -> None:
    train, test = splits
    with pytest.raises(UserError, match="no label 'moton'; it has shape, motion.*nearest: 'motion'"):
        probe(model, train, test, ["moton"])
    with pytest.raises(UserError, match="depth 4 .*3 blocks; allowed are 0 to 3"):
        probe(model, train, test, depths=[1, 4])
    made = clips(20, "test")

    def other(name: str, samples: list[Sample], classes: dict[str, list[str]] | None = None) -> Path:
        return Path(write_shards(samples, tmp_path / name, "video", CLASSES["video"] | (classes or {})).path)

    renamed = ["arc", *CLASSES["video"]["shape"][1:]]
    with pytest.raises(UserError, match="'shape' has other classes in .*renamed.*'arc' is only in one"):
        probe(model, train, other("renamed", made, {"shape": renamed}))
    with pytest.raises(UserError, match="'shape' has other classes in .*turned.*another order"):
        probe(model, train, other("turned", made, {"shape": CLASSES["video"]["shape"][::-1]}))
    alike = [Sample(s.key, s.extension, s.media, s.labels | {"motion": 2}) for s in made]
    with pytest.raises(
        UserError, match=f"'motion' of .*alike.*only samples of class '{CLASSES['video']['motion'][2]}'"
    ):
        probe(model, other("alike", alike), test)
    with pytest.raises(UserError, match="'shape' of .*empty.*has no samples"):
        probe(model, train, other("empty", []))
    broken = [Sample(s.key, s.extension, b"no video", s.labels) for s in made]
    with pytest.raises(UserError, match="none of the 20 samples of .*broken"):
        probe(model, train, other("broken", broken), workers=0)
