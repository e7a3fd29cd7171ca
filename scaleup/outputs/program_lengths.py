"""How long the clips are that a program reads: one number of frames, or all of a span."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from scaleup.errors import UserError
from scaleup.model.places import TubeSpec
from scaleup.model.tubevit import TubeViT

Ends = tuple[int, int]  # the shortest and the longest clip; equal where there is one length


def programs(model: TubeViT, frames: Sequence[int | str]) -> dict[str, Ends | None]:
    """The lengths of clips that each program reads, by its name; None of an image.

    Raises:
        UserError: what was asked is no length and no span, or a tube of the model does not fit into it.
    """
    own = model.preprocess.frames
    spans = {str(each): _ends(str(each)) for each in frames}
    for text, (shortest, longest) in spans.items():
        specs = model.tokenizer.specs((max(shortest, 2), *model.preprocess.size))
        for spec in specs:
            spec.places((shortest, *model.preprocess.size))
        if shortest < longest and shortest < (first := max(map(_free_from, specs))):
            raise UserError(
                f"frames {text!r}: in clips of less than {first} frames a tube has one token in time, or places closer "
                f"together; allowed are spans that begin at {first} or later, and lengths one by one"
            )
    asked = {f"video_{text}": ends for text, ends in spans.items() if ends != (own, own)}
    return {"image": None, "video": (own, own)} | asked


def _free_from(spec: TubeSpec) -> int:
    """The shortest clip of a span: two tokens in time (tracing tells one from many), places apart as stride / fold."""
    return spec.offset[0] + spec.kernel[0] + max(spec.stride[0], math.ceil(spec.spacing(0) * (spec.fold[0] - 1)))


def _ends(text: str) -> Ends:
    """``64`` or ``32-128`` as the shortest and the longest length."""
    found = [int(part) for part in text.split("-")] if re.fullmatch(r"\d+(-\d+)?", text) else []
    if not found or found[0] < len(found) or found != sorted(set(found)):  # a clip of one frame would be an image
        raise UserError(f"frames {text!r}; allowed are a length of clips (64) and spans from 2 frames on (32-128)")
    return found[0], found[-1]
