"""Crops of decoded pixels: random clips and crops for training, evenly spaced views for evaluation."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from scaleup.common.errors import UserError
from scaleup.config.schema import Augment, Input
from scaleup.data.decode import decode_clip, decode_clips, decode_image
from scaleup.data.pictures import Cut


class TrainTransform:
    """Random clip, crop, flip and RandAugment of one sample, the same for all frames.

    The result is a pure function of the sample and of ``source``, a random generator that the caller seeds.
    """

    def __init__(self, input: Input, augment: Augment) -> None:
        self.input, self.augment = input, augment
        # Big videos are decoded only as large as the smallest crop needs. This saves most of the work.
        self.short = math.ceil(max(input.size) / math.sqrt(augment.crop_scale[0]))
        layers, magnitude = augment.randaugment_layers, augment.randaugment_magnitude
        self.randaugment = v2.RandAugment(layers, magnitude, interpolation=v2.InterpolationMode.BILINEAR)

    def __call__(self, data: bytes, modality: str, source: random.Random) -> Tensor:
        """uint8 (3, T, h, w) of a video, (3, h, w) of an image; raises BadSample."""
        if modality == "image":
            return self.crop_image(decode_image(data, self.short), source)
        h, w = self.input.size

        def view(height: int, width: int) -> Cut:
            return Cut(_random_box(height, width, self.augment, source), (h, w), self._draw_flip(source))

        clip = decode_clip(data, self.input.frames, self.input.fps, source.random(), view)
        return self._randaugment(clip.transpose(0, 1), source).transpose(0, 1)

    def crop_image(self, pixels: Tensor, source: random.Random) -> Tensor:
        """Spatial changes: uint8 ([T,] 3, H, W) -> ([T,] 3, h, w)."""
        height, width = pixels.shape[-2:]
        box = _random_box(height, width, self.augment, source)
        pixels = _resize(pixels[..., box[0] : box[0] + box[2], box[1] : box[1] + box[3]], self.input.size)
        pixels = pixels.flip(-1) if self._draw_flip(source) else pixels
        return self._randaugment(pixels, source)

    def _draw_flip(self, source: random.Random) -> bool:
        return self.augment.flip and source.random() < 0.5

    def _randaugment(self, pixels: Tensor, source: random.Random) -> Tensor:
        """uint8 ([T,] 3, h, w)."""
        if not self.augment.randaugment_layers:
            return pixels
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.manual_seed(source.getrandbits(63))
            return self.randaugment(pixels)


def _random_box(height: int, width: int, augment: Augment, source: random.Random) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the random crop of Inception: area and ratio uniform, ratio in its logarithm."""
    low, high = (math.log(ratio) for ratio in augment.crop_ratio)
    for _ in range(10):
        area = height * width * source.uniform(*augment.crop_scale)
        ratio = math.exp(source.uniform(low, high))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return source.randint(0, height - h), source.randint(0, width - w), h, w
    h = max(1, min(height, round(width / augment.crop_ratio[0])))  # no try fits: the largest allowed crop, centred
    w = max(1, min(width, round(height * augment.crop_ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def _resize(pixels: Tensor, size: Sequence[int]) -> Tensor:
    same = tuple(pixels.shape[-2:]) == tuple(size)
    return pixels if same else F.resize(pixels, list(size), v2.InterpolationMode.BILINEAR, antialias=True)


def parse_views(text: str) -> tuple[int, int]:
    """``"4x3"`` -> (4 clips, 3 crops)."""
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
    if not match:
        raise UserError(f"views '{text}' is not CLIPSxCROPS with two numbers from 1 to 99, such as 1x1 or 4x3")
    return int(match[1]), int(match[2])


def count_views(text: str, modality: str) -> int:
    """Views of a sample; an image has only crops."""
    clips, crops = parse_views(text)
    return crops * (clips if modality == "video" else 1)


def eval_views(data: bytes, modality: str, input: Input, clips: int, crops: int) -> Tensor:
    """``clips`` evenly spaced clips of a video, each in ``crops`` spatial crops; for an image, only the crops.

    Returns:
        uint8 (V, 3, T, h, w), in the order clip, crop; or (V, 3, h, w). A single clip is the middle one.

    Raises:
        BadSample: the sample cannot be decoded.
    """
    if modality == "image":
        return spatial_views(decode_image(data, 2 * max(input.size)), input.size, crops)  # (s, 3, h, w)
    starts = [i / (clips - 1) for i in range(clips)] if clips > 1 else [0.5]

    def view(height: int, width: int) -> Cut:
        return Cut((0, 0, height, width), covering(height, width, input.size, crops))

    pixels = decode_clips(data, input.frames, input.fps, starts, view)  # (t, 3, T, H, W)
    frames = pixels.transpose(1, 2).flatten(0, 1)  # (t * T, 3, H, W)
    views = _crops(frames, input.size, crops).unflatten(1, (clips, -1))  # (s, t, T, 3, h, w)
    return views.transpose(0, 1).flatten(0, 1).transpose(1, 2)  # (t * s, 3, T, h, w)


def spatial_views(pixels: Tensor, size: Sequence[int], crops: int) -> Tensor:
    """``crops`` crops of ``size`` (h, w), evenly spaced along the longer side.

    The picture is first resized so that it just covers ``size``. A single crop is the centre. If several crops would be
    equal (a square picture and a square model), the picture is enlarged by 8/7, or until the crops differ by a pixel,
    and the crops are spaced along its width.

    Args:
        pixels: uint8 (..., 3, H, W).

    Returns:
        uint8 (crops, ..., 3, h, w).
    """
    height, width = pixels.shape[-2:]
    return _crops(_resize(pixels, covering(height, width, size, crops)), size, crops)


def _crops(pixels: Tensor, size: Sequence[int], crops: int) -> Tensor:
    """Crops along the longer side of a picture that covers ``size``: (..., 3, H, W) -> (crops, ..., 3, h, w)."""
    (height, width), (h, w) = pixels.shape[-2:], size
    down, right = height - h, width - w
    places = [i / (crops - 1) for i in range(crops)] if crops > 1 else [0.5]
    tops = [round(down * place) if down > right else down // 2 for place in places]
    lefts = [round(right * place) if right >= down else right // 2 for place in places]
    return torch.stack([pixels[..., y : y + h, x : x + w] for y, x in zip(tops, lefts, strict=True)])


def covering(height: int, width: int, size: Sequence[int], crops: int) -> tuple[int, int]:
    """The size (H, W) to which a picture is resized before it is cropped to ``size``."""
    h, w = size
    scale = max(h / height, w / width)
    if max(round(height * scale) - h, round(width * scale) - w) < crops - 1:
        scale *= max(8 / 7, 1 + crops / min(h, w))
    return max(h, round(height * scale)), max(w, round(width * scale))
