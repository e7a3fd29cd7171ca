"""Sparse video tubes (paper, Section 3.2): 3D kernels applied at few places of a video, and the tokens they give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaleup.backbones.backbone import Backbone
from scaleup.errors import UserError
from scaleup.model.places import Size, TubeSpec


def resize_kernel(weight: Tensor, kernel: Size) -> Tensor:
    """A kernel of another size by trilinear interpolation (Section 3.4): (c, C, t, h, w) -> (c, C, *kernel).

    Scaled by the ratio of the volumes, so that a constant input keeps its response.
    """
    resized = F.interpolate(weight, size=kernel, mode="trilinear", align_corners=False)
    return resized * (math.prod(weight.shape[2:]) / math.prod(kernel))


class Tube(nn.Module):
    """One tube: a kernel and its bias; ``weight`` is absent where all tubes share one interpolated kernel.

    The kernel emits ``channels`` at each place; of the concatenation the first ``embed_dim`` are kept. Where places are
    summed, their kernels lie one after the other along the input channels.
    """

    def __init__(self, spec: TubeSpec, embed_dim: int, shared: Sequence[int] | None = None) -> None:
        super().__init__()
        self.spec, self.embed_dim = spec, embed_dim
        self.channels = spec.channels_of(embed_dim)
        self.weight = None if shared else nn.Parameter(new_kernel(self.channels, spec.kernel, spec.kernels))
        self.bias = nn.Parameter(torch.zeros(self.channels))

    @property
    def kernel(self) -> nn.Parameter:
        """The tube's own kernel (c, 3, t, h, w); of f places that are summed (c, f*3, t, h, w)."""
        assert self.weight is not None, "all tubes share one interpolated kernel"
        return self.weight

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """x (B, 3, T, H, W) -> tokens (B, N, D), without positions."""
        weight = self.kernel if shared is None else resize_kernel(shared, self.spec.kernel)
        columns = self.spec.gather(x)  # (B, K, places)
        if self.spec.summed:
            seen = self.spec.concatenate(columns, x.shape[2:])  # type: ignore[arg-type]  # (B, N, f*K)
            return F.linear(seen, weight.flatten(1), self.bias)
        # A 1x1 convolution is a plain matrix product, and the fastest one that torch has on many CPUs.
        places = F.conv1d(columns, weight.flatten(1)[:, :, None], self.bias)  # (B, c, places)
        tokens = self.spec.concatenate(places, x.shape[2:])  # type: ignore[arg-type]
        return tokens[..., : self.embed_dim]


def new_kernel(channels: int, kernel: Sequence[int], count: int = 1) -> Tensor:
    """Freshly initialised kernels (channels, count * 3, t, h, w), unit gain in variance (fan-in)."""
    return torch.randn(channels, count * 3, *kernel) / math.sqrt(count * 3 * math.prod(kernel))


def module_name(kind: str, name: str) -> str:
    """A name that a parameter may carry: letters, digits and underscores, and none that is taken."""
    taken = any(hasattr(module, name) for module in (nn.ModuleDict(), nn.ParameterDict()))
    if not name.isidentifier() or taken or name in ("frames", "shared", "specs"):
        raise UserError(f"{kind} cannot be named {name!r}; allowed are letters, digits and _, but no word in use")
    return name


class TubeTokenizer(nn.ModuleDict):
    """All tubes of a model by name: a video becomes the tokens of each tube, one tube after the other."""

    def __init__(self, specs: Sequence[TubeSpec], embed_dim: int, interpolate: Sequence[int] | None = None) -> None:
        super().__init__({module_name("a tube", spec.name): Tube(spec, embed_dim, interpolate) for spec in specs})
        self.shared: nn.Parameter | None = None
        if interpolate and (summed := [spec.name for spec in specs if spec.summed]):
            raise UserError(f"tube {summed[0]!r} sums places with kernels of their own, and cannot share one kernel")
        if interpolate and specs:
            channels = {spec.channels_of(embed_dim) for spec in specs}
            if len(channels) > 1:
                raise UserError(
                    f"tubes that share one interpolated kernel must emit equally many channels; these emit "
                    f"{sorted(channels)}: fold equally many places in each"
                )
            self.shared = nn.Parameter(new_kernel(channels.pop(), interpolate))

    def __getitem__(self, name: str) -> Tube:
        return super().__getitem__(name)  # type: ignore[return-value]

    @property
    def specs(self) -> list[TubeSpec]:
        return [self[name].spec for name in self]

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) -> tokens (B, N, D), without positions."""
        return torch.cat([tube(x, self.shared) for tube in self.values()], dim=1)


def inflate(tubes: TubeTokenizer, backbone: Backbone) -> None:
    """Give each tube the backbone's patch kernel in its central frame, zeros in all others, and the patches' bias.

    This is the central frame initialisation of ViViT (arXiv 2103.15691): at first a tube's token is the patch of its
    frame t // 2.

    Raises:
        UserError: patches are made in another way, there is no tube, or one is not as high and wide as a patch, is
            folded, emits other channels than these, or has no kernel of its own.
    """
    if not tubes.specs:
        raise UserError("model.inflate: True, but model.tubes has none to inflate")
    patch = patch_of(backbone.stem)
    if patch is None:
        raise UserError(f"the patches of {backbone.name} are not one convolution, which tubes begin as (model.inflate)")
    for spec in tubes.specs:
        _refuse_misfit(spec, backbone, tubes.shared is not None)
        tube = tubes[spec.name]
        with torch.no_grad():
            tube.kernel.zero_()
            tube.kernel[:, :, spec.kernel[0] // 2] = patch.weight  # (D, 3, h, w)
            if patch.bias is not None:
                tube.bias.copy_(patch.bias)


def patch_of(stem: nn.Module) -> nn.Conv2d | None:
    """The convolution that makes an image ViT's patches, where it is a single one."""
    found = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    return found[0] if len(found) == 1 else None


def _refuse_misfit(spec: TubeSpec, backbone: Backbone, shared: bool) -> None:
    patch, width = tuple(backbone.patch_size), backbone.embed_dim
    other = spec.kernel[1:] != patch or spec.places_per_token > 1
    faults = {
        "shares an interpolated kernel": shared,
        f"has kernel {list(spec.kernel)} and fold {list(spec.fold)}": other,
        f"emits {spec.channels} channels": spec.channels not in (None, width),
    }
    if made := next((words for words, holds in faults.items() if holds), None):
        raise UserError(
            f"tube {spec.name!r} {made}, and cannot begin as a patch of {backbone.name} (model.inflate); allowed are "
            f"kernels [t, {patch[0]}, {patch[1]}] of its own that emit {width} channels, without fold"
        )
