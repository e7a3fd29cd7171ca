"""The other models that TubeViT is compared with, all of one size and with random weights.

Each gets the same clips of 32x224x224 bytes. A model of fewer frames gets evenly spaced frames of them. All compute in
the precision that ours do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.measure import Side
from scaleup.common.distributed import own_device
from scaleup.config.recipe import default_precision
from scaleup.config.schema import Input
from scaleup.model.tokenizer import Preprocess

FRAMES, PATCH, CLASSES = 32, 16, 600


class Size(NamedTuple):
    """The size of all models that are compared."""

    width: int
    depth: int
    heads: int
    image: int  # pixels, square

    @property
    def patches(self) -> int:
        """Number of patches of a frame."""
        return (self.image // PATCH) ** 2


VIT_B, TINY = Size(768, 12, 12, 224), Size(24, 4, 2, 64)


def random_clips(frames: int, height: int, width: int, count: int = 1) -> Tensor:
    """uint8 (B, 3, T, H, W)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, frames, height, width), dtype=torch.uint8, generator=generator)


def with_plain_loop(
    model: nn.Module,
    logits: Callable[[Tensor], Tensor],
    frames: int,
    tokens: int,
    size: Size,
    batch: int = 1,
    precision: str | None = None,
) -> Side:
    """A model with the simplest training loop, on this process's device.

    Args:
        logits: function from normalised clips (B, 3, T, H, W) to the model's logits.
        precision: float32 or bfloat16; None for the device's own.
    """
    device = own_device()
    low = (precision or default_precision(device.type)) == "bfloat16"
    trained = [parameter for parameter in model.to(device).parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    pixels = Preprocess(Input(FRAMES, [size.image] * 2))
    clips = random_clips(FRAMES, size.image, size.image, batch)[:, :, :: FRAMES // frames].to(device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def computed() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            return logits(pixels(clips)).float()

    def step() -> None:
        model.train()
        F.cross_entropy(computed(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.inference_mode()
    def infer() -> None:
        model.eval()
        computed()

    return Side(tokens, frames, sum(parameter.numel() for parameter in trained), step, infer)


def transformers_model(name: str, size: Size, **settings: Any) -> Any:
    """A video classifier of transformers with random weights; its classes are NAMEConfig and
    NAMEForVideoClassification."""
    import transformers  # seconds to import

    config = getattr(transformers, f"{name}Config")(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        num_labels=CLASSES,
        **settings,
    )
    return getattr(transformers, f"{name}ForVideoClassification")(config)


def from_transformers(name: str, frames: int, steps: int, prefix: int, size: Size, **options: Any) -> Side:
    """VideoMAE, TimeSformer and ViViT: everything trains; the library's defaults are the published base models.

    Args:
        steps: number of token positions in time.
    """
    settings = {"num_frames": frames, "intermediate_size": 4 * size.width, "image_size": size.image}
    model = transformers_model(name, size, **settings)
    tokens = steps * size.patches + prefix
    return with_plain_loop(model, lambda x: model(x.transpose(1, 2)).logits, frames, tokens, size, **options)


def vjepa2(size: Size, **options: Any) -> Side:
    """V-JEPA 2: the encoder is frozen, the attentive pooler and the classifier train. A classifier has no predictor."""
    settings = {"crop_size": size.image, "frames_per_clip": FRAMES, "pred_num_hidden_layers": 0}
    model = transformers_model("VJEPA2", size, **settings)
    model.vjepa2.requires_grad_(False)
    tokens = FRAMES // 2 * size.patches
    return with_plain_loop(model, lambda x: model(x.transpose(1, 2)).logits, FRAMES, tokens, size, **options)


def frame_wise(frames: int, prepare: Callable[[Any, Size], None], size: Size, **options: Any) -> Side:
    """An image ViT on every frame; logits are averaged over frames. The head is linear, so this averages features
    too."""
    shape = {"embed_dim": size.width, "depth": size.depth, "num_heads": size.heads, "img_size": size.image}
    vit: Any = timm.create_model("vit_base_patch16_224", num_classes=CLASSES, **shape)  # type: ignore[arg-type]
    vit.requires_grad_(False)
    prepare(vit, size)
    vit.head.requires_grad_(True)
    tokens = frames * (size.patches + 1)

    def logits(x: Tensor) -> Tensor:
        return vit(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, frames)).mean(1)

    return with_plain_loop(vit, logits, frames, tokens, size, **options)


def last_quarter(vit: Any, size: Size) -> None:
    vit.blocks[size.depth - size.depth // 4 :].requires_grad_(True)
    vit.norm.requires_grad_(True)


def lora(vit: Any, size: Size) -> None:
    """An adapter on every linear layer of every block."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=r"blocks\..*\.(qkv|proj|fc1|fc2)"), vit)


PEERS: dict[str, Callable[..., Side]] = {
    "VideoMAE, 16 frames": partial(from_transformers, "VideoMAE", 16, 8, 0),
    "VideoMAE, 32 frames": partial(from_transformers, "VideoMAE", 32, 16, 0),
    "TimeSformer, 8 frames": partial(from_transformers, "Timesformer", 8, 8, 1),
    "ViViT, 32 frames": partial(from_transformers, "Vivit", 32, 16, 1),
    "V-JEPA 2, frozen, attentive probe, 32 frames": vjepa2,
    "ViT on each of 32 frames, last quarter trains": partial(frame_wise, 32, last_quarter),
    "ViT on each of 8 frames, LoRA in every block": partial(frame_wise, 8, lora),
}
