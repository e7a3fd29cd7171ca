"""Adapted models in the forms that others load; parity is measured before success is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaleup.common.files import new_directory, refuse_existing, write_json
from scaleup.errors import UserError, nearest
from scaleup.model.build import load
from scaleup.outputs import programs
from scaleup.outputs.formats import merge_adapter, write_adapter, write_own, write_timm
from scaleup.outputs.parity import largest, parity

__all__ = ["TARGETS", "export", "parity"]

OWN = ("delta", "full")
TARGETS = (*OWN, "peft", "timm", *programs.FORMS)
ROUNDING = 1e-4  # share of its size by which an output may differ where sums are taken in another order


def export(
    source: str | Path,
    to: str,
    out: str | Path,
    base: str | None = None,
    overwrite: bool = False,
    merge: bool = False,
    frames: Sequence[int | str] = (),
) -> dict[str, Any]:
    """Write a model in another form, read that back, and compare the two on an image and on a video.

    Args:
        to: ``delta`` or ``full`` (our own directories), ``peft`` (the adapter alone), ``timm`` (the image model alone,
            in timm's layout), ``torch`` (torch.export), ``onnx`` or ``aoti`` (compiled for this machine by
            AOTInductor).
        base: where the backbone's weights are now, if not where they were.
        frames: other lengths of clips, and spans of lengths (``"32-128"``), that programs are written for; each is
            compared too.
        merge: fold the model's adapter into the weights of its blocks; programs always do.

    Returns:
        ``{"to", "out", "bytes", "image_max_abs_diff", "video_max_abs_diff"}``; where sums are taken in another order
        (merged models, programs), in shares of the largest output, ``"image_max_rel_diff"`` and
        ``"video_max_rel_diff"``; for programs and timm ``"seconds"`` and ``"eager_seconds"`` of one image and one
        video, for programs ``"program_bytes"`` and ``"model_bytes"``, also in ``report.json`` beside them.

    Raises:
        UserError: an unknown target, a model that the target cannot hold or that has no adapter to merge, or a result
            that differs: at all, or where sums are taken in another order by more than ROUNDING.
    """
    if to not in TARGETS:
        raise UserError(f"unknown target {to!r}; allowed are {', '.join(TARGETS)}{nearest(to, TARGETS)}")
    if frames and to not in programs.FORMS:
        raise UserError(f"--frames is for programs ({', '.join(programs.FORMS)}); {to} is of no fixed length")
    out = Path(out)
    refuse_existing(out, overwrite)
    model = load(source, base)
    exact = to not in programs.FORMS and not merge
    found, timed = dict[str, float](), dict[str, Any]()
    with new_directory(out, overwrite) as half:
        if to in OWN:
            found = dict(zip(("image", "video"), write_own(model, source, to, half, base, merge), strict=True))
        elif to == "peft":
            found = dict(zip(("image", "video"), write_adapter(model, source, half, base), strict=True))
        elif to == "timm":
            found["image"], timed = write_timm(merge_adapter(model) if merge else model, half)
        else:
            plain = merge_adapter(model) if model.config.adapter else model
            found, timed = programs.write(plain, programs.FORMS[to], half, frames)
        limit, measure = (0, "abs") if exact else (ROUNDING, "rel")
        if not (most := largest(found.values())) <= limit:
            share = "" if exact else " of its size"
            raise UserError(f"{to} of {source} differs from it by {most:.1e}{share}; allowed is {limit:g}")
        differences = {f"{name}_max_{measure}_diff": each for name, each in found.items()}
        if timed:
            write_json(half / "report.json", differences | timed)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {"to": to, "out": str(out), "bytes": size, **differences, **timed}
