"""How far what was exported is from the model it was made of, on an image and on a video."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.tubevit import TubeViT


@torch.inference_mode()
def parity(one: TubeViT, other: TubeViT, relative: bool = False) -> tuple[float, float]:
    """Largest difference of the features and of every head's logits, on an image and on a video.

    Args:
        relative: in shares of the largest value that each of them has in ``one``.
    """
    video = normalise(natural_clip(one.preprocess.frames, one.preprocess.size), one.config.input)
    image, clip = (difference(_outputs(one, x), _outputs(other, x), relative) for x in (video[:, :, 0], video))
    return image, clip


def medians(*sides: Callable[[], Any], turns: int = 5) -> list[float]:
    """Seconds of each side, which take turns."""
    taken: list[list[float]] = [[] for _ in sides]
    for side, seconds in list(zip(sides, taken, strict=True)) * turns:
        began = time.perf_counter()
        side()
        seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in taken]


def largest(values: Iterable[float]) -> float:
    """The largest of some numbers; where one is none (nan), that, which ``max`` may lose."""
    return torch.tensor(list(values), dtype=torch.float64).max().item()


def _outputs(model: TubeViT, x: Tensor) -> dict[str, Tensor]:
    features = model.forward_features(x)
    return {"features": features} | {f"head {name}": head(features) for name, head in model.arm.heads.items()}


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor], relative: bool) -> float:
    """The largest difference of two sets of outputs, in shares of the largest value that each has in ``one``; absolute
    where that is 0, as of a head that nobody has trained."""
    sizes = {name: each.abs().max().item() if relative else 1.0 for name, each in one.items()}
    return largest((one[name] - other[name]).abs().max().item() / (size or 1.0) for name, size in sizes.items())
