"""Depth profiles: the accuracy of a linear classifier on the output of each block of a frozen model.

One pass of the trunk serves all depths. The classifiers are ridge regressions onto one-hot targets, in closed form.
Their penalties are chosen by generalized cross validation on the training samples (:mod:`scaleup.common.ridge`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from scaleup.checkpoint.model_directory import public_name
from scaleup.common import tensors
from scaleup.common.distributed import World, join
from scaleup.common.errors import UserError, nearest
from scaleup.common.files import new_directory, write_json
from scaleup.common.ridge import Affine, Moments, Ridge
from scaleup.common.timing import progress
from scaleup.config.schema import Trunk
from scaleup.data.augment import count_views
from scaleup.data.labels import ONE, WORDS, class_counts
from scaleup.data.shards import Shards
from scaleup.data.upload import upload
from scaleup.evaluation.accuracy import Coverage, Once
from scaleup.model.build import PreparedTrunk, prepare_trunks
from scaleup.model.full_device import explain_full
from scaleup.model.kernels import set_products
from scaleup.model.tubevit import TubeViT

POOL = "mean over tokens but the prefix, beside its first token where there is one; mean over views"
SCORED = 1000  # training samples for train_accuracy; a fixed number, so that memory does not grow
# Keys of config.json that determine the tokens.
PROBED = ("backbone", "input", "frames", "tubes", "interpolate", "positions")

Features = dict[int, Tensor]  # depth -> (B, F)
Scored = tuple[Features, dict[str, Tensor]]  # features, and label -> (B,)


@dataclass
class DepthAccuracy:
    """The accuracy of a linear classifier after ``depth`` blocks, as shares of 1."""

    depth: int  # 0: the input of block 1
    train_accuracy: float
    accuracy: float  # on the test split
    standard_error: float  # of accuracy
    penalty: float  # of the ridge regression


@dataclass
class DepthCurve:
    """The classifiers of one label."""

    classes: int
    chance: float  # accuracy of random guesses
    rows: list[DepthAccuracy]  # in rising order of depth
    suggested_depth: int  # see suggest_depths


@dataclass
class DepthProfile:
    """The content of probe.json: the accuracy of linear classifiers at each depth of a frozen model."""

    labels: dict[str, DepthCurve]
    train: Coverage  # shards: the path
    test: Coverage
    train_scored: int  # number of training samples for train_accuracy
    pool: str  # how tokens become features, in words
    model: dict[str, Any]  # sha256 of its tensors, depth, and the keys PROBED of its config
    trunk: PreparedTrunk
    seconds: float


class Fit(NamedTuple):
    """The classifiers of all labels at one depth, and the penalty of each."""

    scores: Affine
    penalties: list[float]


def probe(
    model: TubeViT,
    train: str | Path,
    test: str | Path,
    labels: Sequence[str] | None = None,
    depths: Sequence[int] | None = None,
    views: str = "1x1",
    batch: int = 16,
    workers: int = 1,
    trunk: Trunk | None = None,
) -> DepthProfile:
    """Accuracy of a linear classifier at each depth: depth 0 is z0, the input of block 1; depth s is the output of
    block s.

    Args:
        labels: labels to classify, all in one pass; by default all of the training shards that are one class.
        depths: by default all, 0 to the model's own.
        views: clips x crops of a sample, whose features are averaged.
        trunk: precision and placement of the blocks; None: on the device, in the precision that it has by default.

    Raises:
        UserError: a label, its classes or a depth do not fit; a split has only one class or no readable samples; the
            model has an adapter, or an open gate below one of ``depths``; or another rank no longer answers.
    """
    began, opened, world = time.perf_counter(), (Shards.open(train), Shards.open(test)), join()
    classes, chosen = choose_classes(*opened, labels), choose_depths(model, depths)
    frozen = model.with_arm(model.depth, gate=False, heads={}).eval()
    identity = _identify(frozen)
    set_products(world.device)
    seen = count_views(views, opened[0].modality)  # of each sample
    with world.together(), explain_full([frozen], batch, seen, "--placement host"):
        prepared = prepare_trunks([frozen], trunk or Trunk(), world, batch * seen)
        assert prepared is not None
        reader = Reader(frozen, chosen, world.device)
        how = model.config.input, views, batch, workers, world
        learnt, tested = (Once(f"reading {shards.name}", shards, {n: n for n in classes}, *how) for shards in opened)
        moments, scored = _read(reader, learnt, classes)
        train_coverage = replace(learnt.summary(), shards=str(opened[0].path))
        fits = _fits(moments, classes, world)
        train_shares, count = _shares(fits, scored, classes, world)
        batches = ((reader(batch.pixels), batch.labels) for batch in tested)
        test_shares, samples = _shares(fits, batches, classes, world)
        test_coverage = replace(tested.summary(), shards=str(opened[1].path))
    return DepthProfile(
        labels=_curves(fits, classes, train_shares, test_shares, samples),
        train=train_coverage,
        test=test_coverage,
        train_scored=count,
        pool=POOL,
        model=identity,
        trunk=prepared,
        seconds=time.perf_counter() - began,
    )


def _curves(
    fits: Mapping[int, Fit], classes: Mapping[str, int], train: Tensor, test: Tensor, samples: int
) -> dict[str, DepthCurve]:
    """The curve of each label, of shares (depths, labels) of both splits."""
    errors, curves = (test * (1 - test) / samples).sqrt(), {}
    for k, (label, count) in enumerate(classes.items()):
        columns = list(fits), train[:, k].tolist(), test[:, k].tolist(), errors[:, k].tolist()
        penalties = [fit.penalties[k] for fit in fits.values()]
        rows = [DepthAccuracy(*row) for row in zip(*columns, penalties, strict=True)]
        curves[label] = DepthCurve(count, 1 / count, rows, suggest_depths(rows))
    return curves


class Reader:
    """Computes the features of the classifiers: pooled tokens at several depths, in one trunk pass."""

    def __init__(self, model: TubeViT, depths: Sequence[int], device: torch.device) -> None:
        assert model.trunk is not None
        self.trunk, self.preprocess, self.depths, self.device = model.trunk, model.preprocess, depths, device
        self.prefix = model.tokenizer.num_prefix_tokens
        self.width = model.tokenizer.embed_dim * (1 + min(self.prefix, 1))

    def __call__(self, pixels: Tensor) -> Features:
        """uint8 views (B, V, 3, ...) on the device -> features (B, F) of each depth."""
        x = self.preprocess(pixels.flatten(0, 1))
        taps = self.trunk(x, {*self.depths} - {0} or {1})
        tokens = {0: next(iter(taps.values())).z0} | {depth: tap.h for depth, tap in taps.items()}
        return {depth: self.pool(tokens[depth]).unflatten(0, pixels.shape[:2]).mean(1) for depth in self.depths}

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, P+N, D) -> (B, F): the mean of the tokens, and the first prefix token if there is one."""
        return torch.cat([tokens[:, self.prefix :].mean(1), tokens[:, : min(self.prefix, 1)].flatten(1)], dim=1)


def _read(reader: Reader, once: Once, classes: Mapping[str, int]) -> tuple[dict[int, Moments], list[Scored]]:
    """The sums over the training samples, and the features and labels of some evenly spaced batches."""
    where = torch.device("cpu") if reader.device.type == "mps" else reader.device  # mps has no float64
    moments = {depth: Moments(reader.width, sum(classes.values()), where) for depth in reader.depths}
    every, scored = -(-len(once.shards) // SCORED), list[Scored]()
    for number, batch in enumerate(once):
        targets = torch.cat([one_hot(batch.labels[label], count) for label, count in classes.items()], dim=1)
        features, there = reader(batch.pixels), upload(targets, reader.device)
        for depth, sums in moments.items():
            sums.add(features[depth], there)
        if number % every == 0:
            scored.append((features, batch.labels))
    return moments, scored


def _fits(moments: Mapping[int, Moments], classes: Mapping[str, int], world: World) -> dict[int, Fit]:
    """For each depth, the classifiers of all labels, each with its best penalty."""
    fits, outputs = {}, list(classes.values())
    with progress("fitting", len(moments)) as advance:
        for depth, sums in moments.items():
            sums.gram.copy_(world.sum(sums.gram.to(world.device)))  # over all ranks
            ridge = Ridge(sums)
            best = ridge.best_penalties(outputs)
            penalty = best.repeat_interleave(torch.tensor(outputs, device=best.device))
            fits[depth] = Fit(ridge.solve(penalty), best.tolist())
            advance()
    return fits


def _shares(
    fits: Mapping[int, Fit], batches: Iterable[Scored], classes: Mapping[str, int], world: World
) -> tuple[Tensor, int]:
    """The accuracy of each classifier (depths, labels) over the samples of all ranks, and the number of samples."""
    where = next(iter(fits.values())).scores.weight.device
    hits = torch.zeros(len(fits) + 1, len(classes), dtype=torch.int64, device=where)  # the last row: all samples
    for features, labels in batches:
        own = upload(torch.stack([labels[label] for label in classes]), where)  # (labels, B)
        for row, (depth, fit) in enumerate(fits.items()):
            scores = fit.scores(features[depth]).split(list(classes.values()), dim=1)
            hits[row] += (torch.stack([each.argmax(1) for each in scores]) == own).sum(1)
        hits[-1] += own.shape[1]
    hits = world.sum(hits.to(world.device)).cpu()
    return hits[:-1].double() / hits[-1], int(hits[-1, 0])


def choose_classes(train: Shards, test: Shards, labels: Sequence[str] | None) -> dict[str, int]:
    """Label -> number of its classes; UserError if the splits have other or too few classes, or lists or numbers."""
    labels = labels or [label for label in train.classes if train.kind(label) == ONE] or list(train.classes)
    for label in labels:
        for shards in (train, test):
            names = shards.classes
            if label not in names:
                raise UserError(
                    f"'{shards.path}' has no label {label!r}; it has {', '.join(names)}{nearest(label, names)}"
                )
            if (kind := shards.kind(label)) != ONE:
                raise UserError(f"label {label!r} of '{shards.path}' is {WORDS[kind]}; a classifier needs one class")
            present = class_counts(shards.labels[label], len(names[label])).nonzero()[0]
            if len(present) < 2:
                only = f"only samples of class {names[label][present[0]]!r}" if len(present) else "no samples"
                raise UserError(f"label {label!r} of '{shards.path}' has {only}; a classifier needs two classes")
        if train.classes[label] != test.classes[label]:
            differ = sorted(set(train.classes[label]) ^ set(test.classes[label]))
            how = f"{differ[0]!r} is only in one of them" if differ else "they have another order"
            raise UserError(f"label {label!r} has other classes in '{test.path}' than in '{train.path}': {how}")
    return {label: len(train.classes[label]) for label in labels}


def choose_depths(model: TubeViT, depths: Sequence[int] | None) -> list[int]:
    chosen = sorted(set(range(model.depth + 1) if depths is None else depths))
    if wrong := [depth for depth in chosen if not 0 <= depth <= model.depth]:
        raise UserError(f"depth {wrong[0]} does not fit {model.depth} blocks; allowed are 0 to {model.depth}")
    gate, below = model.arm.gate, model.frozen_depth
    if gate is not None and gate.alpha.any() and chosen[-1] > below:
        raise UserError(
            f"the gate of this model is open (alpha {gate.alpha.abs().max().item():.3g}), and a depth profile does not "
            f"apply it, so results above depth {below} would be wrong; allowed are depths 0 to {below}, or the model "
            "that its run started from"
        )
    return chosen


def _identify(model: TubeViT) -> dict[str, Any]:
    """The probed model: sha256 of the tensors of tokenizer and blocks, and the keys PROBED of its config."""
    assert model.trunk is not None
    state, prefix = model.trunk.state_dict(), model.block_prefix
    digests = tensors.hashes({name: tensor for name, tensor in state.items() if not tensor.is_meta})
    digests |= {n: model.base[public_name(f"trunk.{n}", prefix)] for n in state.keys() - digests.keys()}
    config = model.config.to_json()
    return {"sha256": tensors.fingerprint(digests), "depth": model.depth, **{key: config[key] for key in PROBED}}


def suggest_depths(rows: Sequence[DepthAccuracy]) -> int:
    """The smallest depth above which accuracy rises by no more than the standard error; a heuristic."""
    highest = [max(above.accuracy for above in rows[index:]) for index in range(len(rows))]
    return next(row.depth for row, best in zip(rows, highest, strict=True) if best <= row.accuracy + row.standard_error)


def plot(profile: DepthProfile, path: Path) -> None:
    """Plot accuracy on the test split against depth, with standard errors; a ring marks the suggested depth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, curve in profile.labels.items():
        points = {row.depth: 100 * row.accuracy for row in curve.rows}
        errors = [100 * row.standard_error for row in curve.rows]
        drawn = axes.errorbar(list(points), list(points.values()), errors, marker="o", capsize=3, label=label)
        colour, depth = drawn.lines[0].get_color(), curve.suggested_depth
        axes.plot(depth, points[depth], marker="o", markersize=14, fillstyle="none", color=colour)
        axes.axhline(100 * curve.chance, color=colour, linestyle=":")
    title = f"Linear classifiers, {profile.test.samples} samples; dotted: chance"
    axes.set(xlabel=f"blocks (of {profile.model['depth']})", ylabel="top-1 (%)", ylim=(0, 100), title=title)
    axes.legend()
    figure.savefig(path, dpi=120)


def write(profile: DepthProfile, out: Path, overwrite: bool = False) -> None:
    """``probe.json`` and ``probe.png`` in a directory that appears when both are complete."""
    with new_directory(out, overwrite) as directory:
        write_json(directory / "probe.json", asdict(profile))
        plot(profile, directory / "probe.png")
