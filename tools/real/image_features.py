"""Whether the features of images still tell objects apart, by ridge regression: in each precision of the frozen blocks,
and in each exported program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from real.exact import PRECISIONS
from scaleup.common.distributed import join
from scaleup.common.ridge import Moments, Ridge
from scaleup.config.schema import Trunk
from scaleup.data.loader import eval_loader
from scaleup.data.shards import Shards
from scaleup.model.build import load, prepare_trunks
from scaleup.model.trunk import drift
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.programs import FORMS, HALF, write

KNOWN, ASKED = 480, 240  # images that a classifier is fitted to, and those that it names
BATCH = 16
Embed = Callable[[Tensor], Tensor]  # pixels -> features
PROGRAMS = {"torch": FORMS["torch"], "onnx": FORMS["onnx"], "onnx, half": HALF}


@dataclass
class Told:
    """What images become in a precision or a program."""

    drift: float  # of the features, from the model's in float32: RMS of the difference over their RMS
    top1: float  # share of the images whose class is named, by what was fitted to the same kind of features


class Pictures(NamedTuple):
    """Images and their classes."""

    pixels: Tensor  # uint8 (N, 3, h, w)
    labels: Tensor  # (N,)

    @classmethod
    def read(cls, shards: Path, label: str, model: TubeViT, count: int) -> Pictures:
        """The first images of shards, or first frames of their videos."""
        pixels, labels = [], []
        for batch in eval_loader(Shards.open(shards), {label: label}, model.config.input, batch=BATCH):
            first = batch.pixels[:, 0]
            pixels.append(first if first.dim() == 4 else first[:, :, 0])
            labels.append(batch.labels[label])
            if sum(map(len, labels)) >= count:
                break
        return cls(torch.cat(pixels)[:count], torch.cat(labels)[:count])


@torch.no_grad()
def compare_features(directory: Path, known: Path, asked: Path, label: str, folder: Path) -> dict[str, Told]:
    """How images do in the frozen ViT of an adapted model, by precision and by program.

    Args:
        known, asked: shards, to fit a classifier to and to name.
        folder: programs are written into it.
    """
    told, exact = dict[str, Told](), Tensor()
    model = _whole(directory)
    sets = Pictures.read(known, label, model, KNOWN), Pictures.read(asked, label, model, ASKED)
    for name, features in chain(_precisions(directory), _programs(directory, folder)):
        rows = [torch.cat([features(pixels) for pixels in each.pixels.split(BATCH)]) for each in sets]
        exact = rows[1] if name == "float32" else exact
        named = name_by_ridge(rows[0], sets[0].labels, rows[1])
        told[name] = Told(drift(exact, rows[1]), float((named == sets[1].labels).float().mean()))
    return told


def _whole(directory: Path) -> TubeViT:
    """An adapted model with all blocks frozen, without heads."""
    model = load(directory)
    return model.with_arm(model.depth, False, {}).eval()


def _precisions(directory: Path) -> Iterator[tuple[str, Embed]]:
    """What makes features of pixels, by the precision of the frozen blocks."""
    for precision in PRECISIONS:
        model = _whole(directory)
        prepare_trunks([model], Trunk(precision=precision), join())
        yield precision, lambda pixels: model.forward_features(model.preprocess(pixels))  # noqa: B023


def _programs(directory: Path, folder: Path) -> Iterator[tuple[str, Embed]]:
    """The same, by the kind of program."""
    for name, form in PROGRAMS.items():
        (out := folder / name).mkdir(parents=True, exist_ok=True)
        write(_whole(directory), form, out)
        run = form.read(out / f"image{form.ending}", ["features"])
        yield name, lambda pixels: run(pixels)["features"]  # noqa: B023


def name_by_ridge(known: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Classes by ridge regression onto one-hot labels, with the penalty of generalized cross validation.

    Args:
        known: features (N, D).
        labels: (N,).
        asked: features (M, D).

    Returns:
        (M,)
    """
    targets = F.one_hot(labels)
    moments = Moments(known.shape[1], targets.shape[1])
    moments.add(known, targets)
    fit = Ridge(moments)
    return fit.solve(fit.best_penalties([targets.shape[1]])[0])(asked).argmax(1)
