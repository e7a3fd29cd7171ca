"""Pictures of where a model looks, drawn over what it was shown."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from scaleup.evaluation.relevance import painted, token_relevance
from scaleup.model.tokenizer import size_of
from scaleup.model.tubevit import TubeViT

COLOUR = torch.tensor([255.0, 40.0, 0.0])


def overlay(model: TubeViT, pixels: Tensor, head: str) -> np.ndarray:
    """A clip uint8 (3, T, h, w) or an image (3, h, w), red where the likeliest class is seen: (T, h, w, 3).

    The class and its probability stand in the corner.
    """
    x = model.preprocess(pixels[None]).to(next(model.parameters()).device)
    with torch.no_grad():
        probabilities = model(x, head).softmax(-1)[0]
    target, size = int(probabilities.argmax()), size_of(x)
    heat = painted(token_relevance(model, x, head, target).cpu(), model.tokenizer.specs(size), size)
    frames = (pixels if pixels.dim() == 4 else pixels[:, None]).permute(1, 2, 3, 0).float()  # (T, h, w, 3)
    strength = 0.7 * heat[..., None]
    mixed = (1 - strength) * frames + strength * COLOUR
    text = f"{model.config['heads'][head][target]} {probabilities[target]:.0%}"
    return np.stack([_labelled(each, text) for each in mixed.round().byte().numpy()])


def _labelled(picture: np.ndarray, text: str) -> np.ndarray:
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((2, 2), text, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(image)
