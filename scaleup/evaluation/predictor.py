"""Predicts labels of image and video files (:mod:`scaleup.data.media`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from scaleup.common.distributed import own_device
from scaleup.common.errors import UserError
from scaleup.common.files import growing_lines
from scaleup.common.timing import progress
from scaleup.data.augment import eval_views
from scaleup.data.decode import BadSample
from scaleup.data.media import STDIN, content, expanded, kind
from scaleup.data.playback import Noted, ignore
from scaleup.data.storage import Failure
from scaleup.data.stream import clips
from scaleup.evaluation import overlay
from scaleup.model.full_device import explain_full
from scaleup.model.kernels import set_products
from scaleup.model.objective import meaning
from scaleup.model.tubevit import TubeViT


@dataclass
class ClassProbability:
    """A class and its probability."""

    class_: str  # in JSON: class
    probability: float


@dataclass
class ClipPrediction:
    """The prediction for one clip of a video."""

    second: float  # at which the clip begins
    top: list[ClassProbability]  # the most probable classes, in falling order
    value: float | None = None  # of a head that gives a number

    def __str__(self) -> str:
        return f"{self.second:8.2f} s  {answer(self.top[:1], self.value)}"


@dataclass
class Prediction:
    """The prediction for an image or a video."""

    modality: str  # image | video
    top: list[ClassProbability]  # the most probable classes, in falling order; for a video, means over its clips
    clips: list[ClipPrediction] = field(default_factory=list)  # the clips of a video
    source: str | None = None  # the file or address
    value: float | None = None  # of a head that gives a number: it, for a video its mean over the clips


def answer(top: Sequence[ClassProbability], value: float | None) -> str:
    """A prediction in words."""
    if value is not None:
        return f"{value:.4g}"
    return ", ".join(f"{guess.class_} {guess.probability:.1%}" for guess in top) or "no label"


@dataclass
class Predictions:
    """The predictions for several sources."""

    head: str  # the head that was used
    files: list[Prediction]  # empty where they were written to ``out``
    failures: list[Failure]  # sources that cannot be read
    exit: int  # exit code: 1 if a source failed
    overlay: str | None = None  # the overlay that was written
    out: str | None = None  # the file with a line of JSON for each source that was read


class Predictor:
    """A model with settings for prediction.

    Args:
        head: the head to use; None if the model has only one.
        top: number of most probable classes to return; None: 5, and all of a head that names several.
        threshold: probability above which a head that names several classes names one; None: 0.5.
        hop: seconds from the beginning of one clip to that of the next; None: a clip's length.
        batch: clips per batch.
    """

    def __init__(
        self,
        model: TubeViT,
        head: str | None,
        top: int | None,
        hop: float | None,
        batch: int,
        threshold: float | None = None,
    ) -> None:
        self.head = model.head_name(head)
        self.loss = model.config.loss(self.head)
        if threshold is not None and self.loss != "sigmoid":
            raise UserError(f"head {self.head!r} has loss {self.loss}; a threshold is for heads with loss sigmoid")
        if top is not None and self.loss in ("l2", "l1"):
            raise UserError(f"head {self.head!r} gives a number, so there are no most probable classes (--top)")
        self.threshold = 0.0
        if self.loss == "sigmoid":
            self.threshold = 0.5 if threshold is None else threshold
        self.classes: list[str] = model.config.heads[self.head]
        self.input = model.config.input
        self.hop = self.input.frames / self.input.fps if hop is None else hop
        count = len(self.classes)
        self.top = min(top or (count if self.loss == "sigmoid" else 5), count)
        self.model, self.batch = model.eval(), batch

    def image(self, media: bytes) -> Prediction:
        """The prediction for the bytes of an image file; raises BadSample."""
        (output,) = self.outputs(eval_views(media, "image", self.input, 1, 1))
        return Prediction("image", self.named(output), value=self.value(output))

    def video(
        self,
        source: str | BinaryIO,
        on_clip: Callable[[ClipPrediction], None] | None = None,
        noted: Noted = ignore,
    ) -> Prediction:
        """The prediction for a video: the mean of the probabilities, or numbers, over its clips.

        Args:
            on_clip: called with each clip's prediction as soon as it is known; then clips are not collected in batches.
            noted: called at the end with sentences about what is unusual in the video.

        Raises:
            BadSample: it cannot be decoded.
        """
        predictions, total = list[ClipPrediction](), torch.zeros(len(self.classes))
        stream = clips(source, self.input, self.hop, noted)
        while batch := list(islice(stream, 1 if on_clip else self.batch)):
            seconds, pixels = zip(*batch, strict=True)
            for second, output in zip(seconds, self.outputs(torch.stack(pixels)), strict=True):
                total += output
                predictions.append(ClipPrediction(second, self.named(output), self.value(output)))
                if on_clip is not None:
                    on_clip(predictions[-1])
        mean = total / len(predictions)
        return Prediction("video", self.named(mean), predictions, value=self.value(mean))

    @torch.inference_mode()
    def outputs(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, T, h, w) or (B, 3, h, w) -> probabilities (B, C) or numbers (B, 1), on the CPU."""
        device = next(self.model.parameters()).device
        return meaning(self.model(self.model.preprocess(pixels.to(device)), self.head), self.loss).cpu()

    def named(self, output: Tensor) -> list[ClassProbability]:
        """The most probable classes of probabilities (C,), those above the threshold; none of a number."""
        if self.loss in ("l2", "l1"):
            return []
        best = output.topk(self.top)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [ClassProbability(self.classes[index], value) for index, value in pairs if value >= self.threshold]

    def value(self, output: Tensor) -> float | None:
        """The number (1,); None of classes."""
        return output.item() if self.loss in ("l2", "l1") else None


def predict(
    model: TubeViT,
    sources: Sequence[str],
    head: str | None = None,
    top: int | None = None,
    hop: float | None = None,
    batch: int = 8,
    picture: str | None = None,
    threshold: float | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> Predictions:
    """Predict the classes, or the number, of images and videos. An unreadable source is printed on stderr, and the
    others continue.

    Args:
        model: it moves to this process's device, and stays there.
        sources: files, folders, patterns, addresses, or ``-`` for a video stream on stdin.
        head, top, hop, batch, threshold: see :class:`Predictor`.
        picture: a .png or .mp4 file to write, which shows where the model looks in the first source.
        out: a file for the predictions, a line of JSON each, which are then not kept in memory.
        overwrite: replace an existing ``out``.

    Raises:
        UserError: there is no such head or source, ``picture`` has another extension, the head has no threshold, or
            ``out`` exists or cannot be written.
    """
    set_products(device := own_device())
    predictor = Predictor(model, head, top, hop, batch, threshold)
    names, files, failures = expanded(sources), list[Prediction](), list[Failure]()
    kept = growing_lines(Path(out), overwrite) if out else nullcontext(files.append)
    full = explain_full([model], batch, 1, "the CPU (CUDA_VISIBLE_DEVICES=)")
    with full, kept as keep, progress("predicting", len(names)) as advance:
        model.place(device)
        for name in names:
            try:
                keep(replace(_predict(predictor, name), source=name))
            except BadSample as error:
                print(f"{name}: {error}", file=sys.stderr)
                failures.append(Failure(name, str(error)))
            advance(1, name)
    drawn = picture if picture and len(failures) < len(names) else None
    if drawn:
        draw(predictor, names[0], drawn)
    return Predictions(predictor.head, files, failures, int(bool(failures)), drawn, out)


def draw(predictor: Predictor, source: str, path: str) -> None:
    """Write an overlay of one image or video to ``path`` (.png or .mp4), which shows where the model looks.

    Raises:
        UserError: the source cannot be read, or ``path`` has another extension.
    """
    try:
        overlay.write(_drawn(predictor, source), path, predictor.input.fps)
    except BadSample as error:
        raise UserError(f"no overlay of {source!r}: {error}") from None


def _drawn(predictor: Predictor, source: str) -> Iterator[np.ndarray]:
    """Pictures (T, h, w, 3) of each clip; for the last clip, only frames that were in no clip before."""
    input, frames = predictor.input, 0
    if kind(source) == "image":
        pixels = eval_views(content(source), "image", input, 1, 1)[0]
        yield overlay.overlay(predictor.model, pixels, predictor.head)
        return
    for second, pixels in clips(source, input, input.frames / input.fps):
        before = frames - round(second * input.fps)
        yield overlay.overlay(predictor.model, pixels, predictor.head)[before:]
        frames += input.frames - before


def _predict(predictor: Predictor, name: str) -> Prediction:
    if kind(name) == "image":
        return predictor.image(content(name))

    def noted(note: str) -> None:
        print(f"{name}: {note}", file=sys.stderr)

    if name == STDIN:
        return predictor.video(sys.stdin.buffer, lambda clip: print(clip, file=sys.stderr), noted)
    return predictor.video(name, None, noted)
