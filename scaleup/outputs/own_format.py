"""A model as a directory of our own, read back: a delta or all of it, its adapter merged or beside it."""

from __future__ import annotations

from pathlib import Path

from scaleup.errors import UserError
from scaleup.model import adapter, pretrained
from scaleup.model.build import load
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.parity import parity


def write(model: TubeViT, source: str | Path, to: str, out: Path, base: str | None, merge: bool) -> tuple[float, float]:
    """Write ``source``, of which ``model`` was read; returns what :func:`parity` says of what was written."""
    kept = merged(load(source, base)) if merge else model
    if to == "delta" and not kept.base:
        kept.base = pretrained.base_of(kept.config, base)
    kept.save_pretrained(out, to, overwrite=True)
    del kept
    return parity(model, load(out, base), relative=merge)


def merged(model: TubeViT) -> TubeViT:
    """The model itself, its adapter folded into the weights of its blocks."""
    if model.config["adapter"] is None:
        raise UserError("this model has no adapter to merge; leave out --merge")
    adapter.merge(model.arm.blocks)
    model.config["adapter"] = None
    return model
