"""What holds on real weights: images give timm's own output, and low precision moves features and predictions by so
much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from real.material import Material
from scaleup.common.distributed import join
from scaleup.config.schema import Trunk
from scaleup.data.loader import eval_loader
from scaleup.data.shards import Shards
from scaleup.model.build import load, prepare_trunks
from scaleup.model.trunk import drift
from scaleup.model.tubevit import TubeViT

PHOTOS = 8
CLIPS = 64
BATCH = 8
PRECISIONS: tuple[Literal["float32", "bfloat16", "float16", "int8"], ...] = ("float32", "bfloat16", "float16", "int8")


@dataclass
class Moved:
    """A precision of the frozen blocks, compared with float32 on test clips."""

    drift: float  # of the features: RMS of the difference over their RMS
    same: float  # share of the clips whose first class is the same
    top1: float


@torch.inference_mode()
def difference_to_timm(model: TubeViT, name: str, material: Material, side: int) -> float:
    """The largest absolute difference between the features of photographs in ``model``, whose gate is closed, and in
    timm's model of this name with the same weights and timm's own resampling of positions."""
    own = timm.create_model(name, num_classes=0)
    own.load_state_dict(load_file(material.weights))
    own.set_input_size(img_size=(side, side))
    photos = []
    for path in sorted(material.photos.iterdir())[:PHOTOS]:
        with Image.open(path) as image:
            photos.append(pil_to_tensor(image.convert("RGB").resize((side, side))))
    x = model.eval().preprocess(torch.stack(photos))
    return float((model.forward_features(x) - own.eval()(x)).abs().max())


@torch.inference_mode()
def compare_precisions(directory: Path, shards: Path, head: str, label: str) -> dict[str, Moved]:
    """How an arm does on CLIPS test clips with its frozen blocks in each precision.

    Args:
        directory: of the arm.
        head, label: the head, and its label in the shards.
    """
    moved, features = dict[str, Moved](), dict[str, Tensor]()
    for precision in PRECISIONS:
        model, rows, labels = load(directory).eval(), [], []
        prepare_trunks([model], Trunk(precision=precision), join())
        for batch in eval_loader(Shards.open(shards), {head: label}, model.config.input, batch=BATCH):
            rows.append(model.forward_features(model.preprocess(batch.pixels[:, 0])))
            labels.append(batch.labels[head])
            if len(rows) * BATCH >= CLIPS:
                break
        features[precision], truth, classify = torch.cat(rows), torch.cat(labels), model.arm.heads[head]
        exact, first = features["float32"], classify(features[precision]).argmax(1)
        same = (first == classify(exact).argmax(1)).float().mean()
        moved[precision] = Moved(drift(exact, features[precision]), float(same), float((first == truth).float().mean()))
    return moved
