"""Shows where a model looks: colours the pixels whose tokens support the predicted class, and writes a video or
image."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from scaleup.common.errors import UserError
from scaleup.model.objective import log_meaning, meaning
from scaleup.model.tokenizer import size_of
from scaleup.model.trunk import Taps
from scaleup.model.tubes import Size, TubeSpec
from scaleup.model.tubevit import TubeViT


def token_relevance(model: TubeViT, x: Tensor, head: str, target: int) -> Tensor:
    """How much each input token of the arm supports class ``target`` of one sample: (N,), without prefix tokens.

    This is a first-order estimate: how much the class's log probability, or the number, would fall if the token were
    replaced by the mean of all tokens. Rises count as 0. It needs only gradients, so it works for every backbone.
    """
    inputs = model.arm_inputs(x)
    if isinstance(inputs, Tensor):  # pixels, if nothing is frozen
        z0 = model.tokenizer(x).detach()
        inputs = Taps(z0, z0, model.tokenizer.context(size_of(x)))
    h = inputs.h.detach().requires_grad_()
    taps = model.config.pool.taps if model.config.pool else []
    lower = {depth: inputs.lower[depth].detach().requires_grad_() for depth in taps}
    logits = model.arm(inputs._replace(h=h, lower=lower), head)
    chosen = log_meaning(logits, model.config.loss(head))[0, target]
    gradients = torch.autograd.grad(chosen, [h, *lower.values()])
    prefix = model.tokenizer.num_prefix_tokens
    relevance = []
    for each, gradient in zip((h, *lower.values()), gradients, strict=True):
        tokens = each[0, prefix:].detach()  # (N, D)
        relevance.append((gradient[0, prefix:] * (tokens - tokens.mean(0))).sum(-1))
    return torch.stack(relevance).sum(0).clamp(min=0)


def paint_relevance(relevance: Tensor, specs: list[TubeSpec], size: Size) -> Tensor:
    """Relevance of pixels (T, H, W), at most 1, from that of tokens (N,). A pixel gets the mean of the tokens that
    cover it.
    """
    total, cover = torch.zeros(2, *size)
    weights = iter(relevance.tolist())
    for spec in specs:
        for box in token_boxes(spec, size):
            total[box] += next(weights)
            cover[box] += 1
    mean = total / cover.clamp(min=1)
    return mean / mean.max().clamp(min=1e-12)


def token_boxes(spec: TubeSpec, size: Size) -> list[tuple[slice, slice, slice]]:
    """The box that each token covers, including all places of its fold, in the order of tokens."""
    t, h, w = (
        [slice(int(places[0]), int(places[-1]) + kernel) for places in axis]
        for axis, kernel in zip(spec.places(size), spec.kernel, strict=True)
    )
    return [(a, b, c) for a in t for b in h for c in w]


def refuse_name(path: str | Path) -> None:
    """UserError if :func:`write` cannot write a file of this name, or its directory does not exist."""
    if Path(path).suffix not in (".mp4", ".png"):
        raise UserError(f"an overlay must be .mp4 or .png, not {str(path)!r}")
    if not Path(path).parent.is_dir():
        raise UserError(
            f"the overlay {str(path)!r} cannot be written: there is no directory {str(Path(path).parent)!r}"
        )


def write(clips: Iterable[np.ndarray], path: str | Path, fps: float) -> None:
    """Write pictures (T, h, w, 3), clip after clip, as a video (.mp4), or the middle one of the first as a .png."""
    refuse_name(path)
    half = Path(path).with_name(f".half-{Path(path).name}")
    try:
        if half.suffix == ".png":
            first = next(iter(clips))
            Image.fromarray(first[len(first) // 2]).save(half)
        else:
            _encode(clips, half, fps)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _encode(clips: Iterable[np.ndarray], path: Path, fps: float) -> None:
    """Write H.264, which needs even sides: an odd side loses a row or a column."""
    with av.open(path, "w") as container:
        rate = Fraction(fps).limit_denominator(1000)  # 30 / 1.001 is a rate too
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        for pictures in clips:
            height, width = (side - side % 2 for side in pictures.shape[1:3])
            if not stream.codec_context.is_open:
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for picture in pictures[:, :height, :width]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode())


COLOUR = torch.tensor([255.0, 40.0, 0.0])


def overlay(model: TubeViT, pixels: Tensor, head: str) -> np.ndarray:
    """Colour a clip uint8 (3, T, h, w) or an image (3, h, w) red where the most probable class is seen: (T, h, w, 3).

    The class and its probability are written in the corner, or the number that the head gives.
    """
    x = model.preprocess(pixels[None]).to(next(model.parameters()).device)
    with torch.no_grad():
        output = meaning(model(x, head), model.config.loss(head))[0]
    target, size = int(output.argmax()), size_of(x)
    heat = paint_relevance(token_relevance(model, x, head, target).cpu(), model.tokenizer.specs(size), size)
    frames = (pixels if pixels.dim() == 4 else pixels[:, None]).permute(1, 2, 3, 0).float()  # (T, h, w, 3)
    strength = 0.7 * heat[..., None]
    mixed = (1 - strength) * frames + strength * COLOUR
    is_number = model.config.loss(head) in ("l2", "l1")
    text = f"{output[0]:.4g}" if is_number else f"{model.config.heads[head][target]} {output[target]:.0%}"
    return np.stack([_labelled(each, text) for each in mixed.round().byte().numpy()])


def _labelled(picture: np.ndarray, text: str) -> np.ndarray:
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((2, 2), text, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(image)
