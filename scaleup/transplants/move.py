"""Moves kernels into an adapted model: for another normalisation and another width, scaled, or random for a control.

A linear map of tokens is an alternative to folds (not in the paper). Both models turn the same images into tokens. A
ridge regression fits a map from the tokens of the small model to those of the backbone. This map is then applied to the
small model's tubes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from scaleup.backbones.backbone import Backbone
from scaleup.common.errors import UserError
from scaleup.common.ridge import Affine, Moments, Ridge
from scaleup.config.schema import Input
from scaleup.model.tokenizer import normalise
from scaleup.model.tubes import Size
from scaleup.model.tubevit import TubeViT
from scaleup.transplants.donor import Donor, Kernel
from scaleup.transplants.measure import rms
from scaleup.transplants.transplant_report import Alignment

HELD_OUT = 8  # one image of this many is left out of the fit; the map is measured on these images


def move(donor: Donor, model: TubeViT, map: Affine | None) -> None:
    """Copy the small model's kernels into the tubes of the adapted model, through ``map`` if there is one."""
    with torch.no_grad():
        for kernel in donor.kernels:
            weight, bias = refold(kernel, donor.config.input, model.config.input)
            tube = model.tokenizer.tubes[kernel.spec.name]
            if map is not None:
                weight, bias = align_kernels(weight, bias, map, tube.spec.places_per_token)
            tube.kernel.copy_(weight)
            tube.bias.copy_(bias)


def refold(kernel: Kernel, source: Input, target: Input) -> tuple[Tensor, Tensor]:
    """The kernel and bias for input normalised as ``target``, with the output that the small model has for ``source``.

    W' = W * S/s for each input channel and b' = b + sum of W * (M - m)/s; exact for valid convolutions.
    """
    m, s, big_m, big_s = (
        torch.tensor(values, dtype=torch.float64)[:, None, None, None]
        for values in (source.mean, source.std, target.mean, target.std)
    )
    weight = kernel.weight.double()
    bias = kernel.bias.double() + (weight * ((big_m - m) / s)).sum(dim=(1, 2, 3, 4))
    return (weight * (big_s / s)).float(), bias.float()


def align_kernels(weight: Tensor, bias: Tensor, map: Affine, places: int) -> tuple[Tensor, Tensor]:
    """Include a map in a kernel (c, 3, t, h, w) and its bias (c,): (D, places*3, t, h, w) and (D,).

    Before: the kernel is applied at each of ``places``, the outputs are concatenated and then mapped. After: one kernel
    for each place, whose outputs are summed. Both are linear and equal.
    """
    dropped = places * len(bias) - len(map.weight)  # channels of the last place that the small model does not keep
    rows = F.pad(map.weight, (0, 0, 0, dropped)).unflatten(0, (places, -1))  # (places, c, D)
    kernels = torch.einsum("pcd,cithw->dpithw", rows, weight.double()).flatten(1, 2)
    return kernels.float(), (map.bias + torch.einsum("pcd,c->d", rows, bias.double())).float()


def fit(
    patch: Kernel, source: Input, large: Backbone, images: Iterable[Tensor], fold: Size
) -> tuple[Affine, Alignment]:
    """Fit the map (places * d) -> D by ridge regression; generalized cross validation chooses the penalty.

    Args:
        patch: the small model's patch embedding.
        source: how the small model's images are normalised.
        images: batches (B, 3, H, W) in [0, 1].
        fold: this many neighbouring patches (1, h, w) of the small model are mapped to one token of the backbone.

    Raises:
        UserError: there are too few images.
    """
    moments, left_out, count = Moments(fold[1] * fold[2] * len(patch.bias), large.embed_dim), [], 0
    for batch in images:
        x, y = token_pairs(patch, source, large, batch, fold)
        out = (torch.arange(count, count + len(batch)) + 1) % HELD_OUT == 0
        moments.add(x[~out].flatten(0, 1), y[~out].flatten(0, 1))
        left_out.append((x[out].flatten(0, 1), y[out].flatten(0, 1)))
        count += len(batch)
    if count < HELD_OUT:
        raise UserError(f"{count} images could be read, and --match align needs {HELD_OUT} at least")
    ridge = Ridge(moments)
    (penalty,) = ridge.best_penalties([large.embed_dim])
    map, target = ridge.solve(penalty), torch.cat([y for _, y in left_out]).double()
    mapped = map(torch.cat([x for x, _ in left_out]))
    unexplained = (target - mapped).square().sum() / (target - target.mean(0)).square().sum()
    return map, Alignment(
        images=count,
        held_out=count // HELD_OUT,
        rows=int(ridge.count),
        penalty=(penalty / ridge.count).item(),
        r2=1 - unexplained.item(),
        rms_mapped=rms(mapped),
        rms_backbone=rms(target),
    )


@torch.no_grad()
def token_pairs(patch: Kernel, source: Input, large: Backbone, images: Tensor, fold: Size) -> tuple[Tensor, Tensor]:
    """Tokens of both models for the same places of images (B, 3, H, W), without positions.

    A place is h x w patches of the small model. For the backbone it is resized to one of the backbone's patches, so
    that both tokens show the same part of the image.

    Returns:
        The small model's (B, N, h*w*d), the patches of a place concatenated, and the backbone's (B, N, D).
    """
    (ph, pw), (_, fh, fw) = patch.spec.kernel[1:], fold
    rows, columns = images.shape[2] // (fh * ph), images.shape[3] // (fw * pw)
    if not rows or not columns:
        raise UserError(f"{fh}x{fw} patches of {ph}x{pw} pixels do not fit an image of {tuple(images.shape[2:])}")
    images = images[..., : rows * fh * ph, : columns * fw * pw]
    small = F.conv2d(_fed(images, source), patch.weight[:, :, 0], patch.bias, stride=(ph, pw))
    small = small.unflatten(3, (columns, fw)).unflatten(2, (rows, fh))  # (B, d, rows, fh, columns, fw)
    size = [count * side for count, side in zip((rows, columns), large.patch_size, strict=True)]
    resized = F.interpolate(images, size, mode="bilinear", antialias=True)
    tokens = _patch_tokens(large, _fed(resized, Input(mean=list(large.mean), std=list(large.std))))
    return small.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), tokens


def _fed(images: Tensor, input: Input) -> Tensor:
    return normalise(images[:, :, None], input)[:, :, 0]


def _patch_tokens(large: Backbone, images: Tensor) -> Tensor:
    """The backbone's tokens for all patches of images of any size: (B, 3, rows*h, columns*w) -> (B, N, D).

    The patches are rearranged into images of the backbone's size. Its positions are subtracted.
    """
    h, w = large.patch_size
    patches = images.unflatten(3, (-1, w)).unflatten(2, (-1, h)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    grid = large.size[0] // h, large.size[1] // w
    empty = patches.new_zeros(-len(patches) % (grid[0] * grid[1]), 3, h, w)
    laid = torch.cat([patches, empty]).unflatten(0, (-1, *grid))  # (M, gh, gw, 3, h, w)
    tokens = large.stem(laid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3))[:, large.num_prefix_tokens :]
    tokens = (tokens - large.stem.position_grid().flatten(0, 1)).flatten(0, 1)
    return tokens[: len(patches)].unflatten(0, (len(images), -1))


def scale_tubes(model: TubeViT, factors: Mapping[str, float]) -> None:
    """Multiply the kernel and bias of each tube, and so its tokens before positions, by a factor."""
    with torch.no_grad():
        for name, factor in factors.items():
            tube = model.tokenizer.tubes[name]
            tube.kernel.mul_(factor)
            tube.bias.mul_(factor)


def randomise_tubes(model: TubeViT, seed: int) -> None:
    """Replace the moved kernels by random ones, as a control. The caller scales them to the same RMS."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in model.tokenizer.tubes:
            tube = model.tokenizer.tubes[name]
            tube.kernel.copy_(torch.randn(tube.kernel.shape, generator=generator) / math.sqrt(tube.kernel[0].numel()))
            tube.bias.zero_()
