"""Adapted models in the forms that others load; parity is measured before success is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from scaleup import adapter, checkpoint
from scaleup.errors import UserError, nearest
from scaleup.files import refuse_existing
from scaleup.model import TubeViT
from scaleup.transplant.measure import natural_clip, normalise

TARGETS = ("delta", "full")
MERGED = 1e-4  # share of its size by which the output of a merged model may differ: rounding


def export(
    source: str | Path,
    to: str,
    out: str | Path,
    base: str | None = None,
    overwrite: bool = False,
    merge: bool = False,
) -> dict[str, Any]:
    """Write a model as a ``delta`` or a ``full`` directory, read it back, and compare the two.

    Args:
        base: where the backbone's weights are now, if not where they were.
        merge: fold the model's adapter into the weights of its blocks.

    Returns:
        ``{"to", "out", "bytes", "image_max_abs_diff", "video_max_abs_diff"}``; of a merged model, in shares of the
        largest output, ``"image_max_rel_diff"`` and ``"video_max_rel_diff"``.

    Raises:
        UserError: an unknown target, a model that the target cannot hold or that has no adapter to merge, or a result
            that differs: at all, or after a merge by more than MERGED.
    """
    if to not in TARGETS:
        raise UserError(f"unknown target {to!r}; allowed are {', '.join(TARGETS)}{nearest(to, TARGETS)}")
    out = Path(out)
    refuse_existing(out, overwrite)
    model = checkpoint.load(source, base)
    kept = merged(checkpoint.load(source, base)) if merge else model
    if to == "delta" and not kept.base:
        kept.base = checkpoint.base_of(kept.config, base)
    checkpoint.save(kept, out, to, overwrite=overwrite)
    del kept
    limit, measure = (MERGED, "rel") if merge else (0, "abs")
    image, video = parity(model, checkpoint.load(out, base), relative=merge)
    if not (image <= limit and video <= limit):
        shutil.rmtree(out)
        most = f"by at most {limit:g} of its size" if merge else "not"
        raise UserError(f"{out} differs from {source} by {max(image, video):.1e}, where it must {most}; it was removed")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    found = {f"image_max_{measure}_diff": image, f"video_max_{measure}_diff": video}
    return {"to": to, "out": str(out), "bytes": size, **found}


def merged(model: TubeViT) -> TubeViT:
    """The model itself, its adapter folded into the weights of its blocks."""
    if model.config["adapter"] is None:
        raise UserError("this model has no adapter to merge; leave out --merge")
    adapter.merge(model.arm.blocks)
    model.config["adapter"] = None
    return model


@torch.inference_mode()
def parity(one: TubeViT, other: TubeViT, relative: bool = False) -> tuple[float, float]:
    """Largest difference of the features and of every head's logits, on an image and on a video.

    Args:
        relative: in shares of the largest value that each of them has in ``one``.
    """
    video = normalise(natural_clip(one.preprocess.frames, one.preprocess.size), one.config)
    return _difference(one, other, video[:, :, 0], relative), _difference(one, other, video, relative)


def _difference(one: TubeViT, other: TubeViT, x: torch.Tensor, relative: bool) -> float:
    a, b = one.forward_features(x), other.forward_features(x)
    pairs = [(a, b), *((one.arm.heads[head](a), other.arm.heads[head](b)) for head in one.arm.heads)]
    return max(
        (left - right).abs().max().item() / (left.abs().max().item() if relative else 1) for left, right in pairs
    )
