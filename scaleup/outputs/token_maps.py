"""Where each tube looks over a clip, and what its kernel looks for (Figures 2 and 5 of the paper)."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from scaleup.evaluation.overlay import token_boxes
from scaleup.model.build import patch_of
from scaleup.model.tubes import Size, TubeSpec, resize_kernel
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.svg_plots import svg

SHOWN = 8  # channels of a kernel


def token_maps(model: TubeViT) -> dict[str, str]:
    """For each tube, and the frames, two pictures in one: how many tokens see each pixel, and each frame."""
    size = (model.preprocess.frames, *model.preprocess.size)
    return {spec.name: _token_map(spec, size) for spec in model.tokenizer.specs(size)}


def _token_map(spec: TubeSpec, size: Size) -> str:
    cover = np.zeros(size)
    for box in token_boxes(spec, size):
        cover[box] += 1
    picture = cover.max(axis=0)  # (H, W)
    times = np.repeat(cover.max(axis=(1, 2))[None], max(2, size[1] // 8), axis=0)  # a strip below: frames

    def draw(axes: Axes) -> None:
        axes.imshow(picture, cmap="viridis", vmin=0, extent=(0, size[2], size[1], 0))
        strip = axes.inset_axes((0, -0.22, 1, 0.12))
        strip.imshow(times, cmap="viridis", vmin=0, aspect="auto", extent=(0, size[0], 0, 1))
        strip.set(yticks=[], xlabel="frame")
        axes.set(xticks=[], yticks=[], title=f"{spec.name}: {spec.tokens(size)}")

    return svg(f"where {spec.name} looks", draw, (2.2, 2.6))


@torch.no_grad()
def kernels(model: TubeViT) -> dict[str, str]:
    """For the patches and each tube the first channels of its kernel: a row each, its frames side by side; those of
    places that are summed one after the other."""
    tubes, patch = model.tokenizer.tubes, patch_of(model.tokenizer.stem)
    weights = {} if patch is None else {"patches": patch.weight[:, :, None]}
    for spec in tubes.specs:
        kernel = tubes[spec.name].kernel if tubes.shared is None else resize_kernel(tubes.shared, spec.kernel)
        weights[spec.name] = kernel.unflatten(1, (spec.kernels, 3)).transpose(1, 2).flatten(2, 3)  # (c, 3, f*t, h, w)
    return {name: _kernel(name, weight) for name, weight in weights.items()}


def _kernel(name: str, weight: Tensor) -> str:
    """The picture of a kernel (c, 3, t, h, w)."""
    channels = len(weight)
    weight = weight[:SHOWN].cpu()
    weight = weight[:, :, :: max(1, weight.shape[2] // 8)]  # eight frames say enough
    span = weight.abs().amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-12)
    pictures = (0.5 + 0.5 * weight / span).permute(0, 3, 2, 4, 1)  # (c, h, t, w, 3)
    c, h, t, w, _ = pictures.shape
    framed = torch.ones(c, h + 1, t, w + 1, 3)
    framed[:, :h, :, :w] = pictures
    if t == 1:  # patches: side by side rather than below each other
        framed = framed.permute(2, 1, 0, 3, 4)
    rows, columns = framed.shape[0] * framed.shape[1], framed.shape[2] * framed.shape[3]

    def draw(axes: Axes) -> None:
        axes.imshow(framed.flatten(2, 3).flatten(0, 1).numpy(), interpolation="nearest")
        over = "" if t == 1 else ", over time"
        axes.set(xticks=[], yticks=[], title=f"{name}: {c} of {channels} channels{over}")

    return svg(f"kernel of {name}", draw, (4.7, min(6.0, 0.6 + 4.7 * rows / columns)))
