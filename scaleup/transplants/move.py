"""Kernels on their way: re-expressed for another normalisation and another width, scaled, or replaced for a control.

A map takes the small model's tokens to the backbone's width, as an alternative to folds (not in the paper). Both models
turn the same images into tokens. The map that takes one's to the other's, by ridge regression, takes the small model's
tubes to where the backbone's own patches live.
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

HELD_OUT = 8  # every so manyth image is left out of the fit, and the map measured on it


def move(donor: Donor, model: TubeViT, map: Affine | None) -> None:
    """Copy the small model's kernels into the tubes of the adapted model, through ``map`` or as they are."""
    with torch.no_grad():
        for kernel in donor.kernels:
            weight, bias = refold(kernel, donor.config.input, model.config.input)
            tube = model.tokenizer.tubes[kernel.spec.name]
            if map is not None:
                weight, bias = align_kernels(weight, bias, map, tube.spec.places_per_token)
            tube.kernel.copy_(weight)
            tube.bias.copy_(bias)


def refold(kernel: Kernel, source: Input, target: Input) -> tuple[Tensor, Tensor]:
    """The kernel and bias that give from input normalised as ``target`` what the small model gives from ``source``.

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
    """A kernel (c, 3, t, h, w) and its bias (c,), applied at ``places`` whose channels are concatenated and then
    mapped, as kernels that are summed: (D, places*3, t, h, w) and (D,). Exact: both are linear."""
    dropped = places * len(bias) - len(map.weight)  # channels of the last place that the small model does not keep
    rows = F.pad(map.weight, (0, 0, 0, dropped)).unflatten(0, (places, -1))  # (places, c, D)
    kernels = torch.einsum("pcd,cithw->dpithw", rows, weight.double()).flatten(1, 2)
    return kernels.float(), (map.bias + torch.einsum("pcd,c->d", rows, bias.double())).float()


def fit(
    patch: Kernel, source: Input, large: Backbone, images: Iterable[Tensor], fold: Size
) -> tuple[Affine, Alignment]:
    """Fit the map (places * d) -> D on images (B, 3, H, W) in [0, 1], its penalty chosen by generalized cross
    validation.

    Args:
        patch: the small model's patch embedding, which reads images normalised as ``source`` says.
        fold: how many patches (1, h, w) of the small model side by side become one token of the backbone.

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
    """Tokens of the same places of images (B, 3, H, W), without positions: the small model's (B, N, h*w*d), its places
    side by side, and the backbone's (B, N, D).

    A place is what the small model's patch covers, or h x w patches do. The backbone sees it resized to one of its own
    patches, so that a token of either stands for the same piece of the image.
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
    """The backbone's tokens of all patches of images of any size: (B, 3, rows*h, columns*w) -> (B, N, D).

    The patches are laid out anew as images of the size that the backbone takes; its positions are taken off.
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
    """Multiply the tokens of each tube, before positions, by a factor folded into its kernel."""
    with torch.no_grad():
        for name, factor in factors.items():
            tube = model.tokenizer.tubes[name]
            tube.kernel.mul_(factor)
            tube.bias.mul_(factor)


def randomise_tubes(model: TubeViT, seed: int) -> None:
    """Fresh kernels in place of the moved ones: the control of a transplant (scale them to the same RMS)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in model.tokenizer.tubes:
            tube = model.tokenizer.tubes[name]
            tube.kernel.copy_(torch.randn(tube.kernel.shape, generator=generator) / math.sqrt(tube.kernel[0].numel()))
            tube.bias.zero_()
