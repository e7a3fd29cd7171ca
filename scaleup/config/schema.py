"""The keys of a recipe: a dataclass for each section, with the default of each key; and the arms of a grid."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

SHORT = {"frozen_depth": "depth"}


def expand(grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """``{"frozen_depth": [6, 8], "gate": [True]}`` -> ``{"depth6_gate": {"frozen_depth": 6, "gate": True}, ...}``.

    The last setting changes fastest; no setting, no arm.
    """
    combinations = itertools.product(*grid.values()) if grid else ()
    changes = [dict(zip(grid, values, strict=True)) for values in combinations]
    return {"_".join(itertools.starmap(_said, each.items())): each for each in changes}


def _said(setting: str, value: Any) -> str:
    """A setting and its value in letters, digits, '_' and '-' alone: ``depth6``, ``lr1e-4``, ``gate``, ``no_gate``."""
    setting = SHORT.get(setting, setting)
    if value is None or isinstance(value, bool):
        return setting if value else f"no_{setting}"
    if isinstance(value, int | float):
        return setting + _number(value)
    return re.sub(r"[^0-9A-Za-z_-]", "-", str(value))


def _number(value: float) -> str:
    """A number without a point, which names may not have: 0.00015 is ``15e-5``."""
    exact = Decimal(repr(value))
    exponent = exact.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return f"{exact:.0f}" if 0 <= exponent <= 6 else f"{exact.scaleb(-exponent):.0f}e{exponent}"


@dataclass
class Tube:
    """A sparse video tube (Section 3.2); every list is in the order t, h, w, in frames and pixels."""

    kernel: list[int]
    stride: list[int]
    offset: list[int] = field(default_factory=lambda: [0, 0, 0])
    fold: list[int] = field(default_factory=lambda: [1, 1, 1])  # space-to-depth, in kernel places along each axis
    channels: int | None = None  # emitted by the kernel at each place; None: width / places
    summed: bool = False  # places of the fold have kernels of their own and are summed, not concatenated


@dataclass
class Frames:
    """Which frames of a video pass through the image tokenizer."""

    stride: int = 32
    offset: int = 0


@dataclass
class Positions:
    """Where tokens are (Section 3.3, Table 7a)."""

    kind: str = "cosine"  # cosine | cosine_no_stride | learned | relative | none | backbone
    amplitude: float = 1.0  # of the sines; 1 is the paper's


@dataclass
class Backbone:
    """A plain image ViT: ``timm:NAME``, ``open_clip:NAME/TAG``, ``hf-hub:owner/name`` or an alias (vit_h), and how its
    weights come to be."""

    name: str = "timm:vit_base_patch16_224"
    kwargs: dict[str, Any] = field(default_factory=dict)  # changes to the architecture, the library's own words
    weights: str | None = None  # None: random initialisation; "pretrained"; a file, a directory, a name on a hub
    fresh_blocks: int = 0  # on top of those that have weights, drawn at random (Table 8)


@dataclass
class Input:
    """What a model is fed: clips of ``frames`` frames at ``fps``, ``size`` (h, w) pixels, normalised."""

    frames: int = 32
    size: list[int] = field(default_factory=lambda: [224, 224])
    fps: float = 15.0
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])


@dataclass
class Model:
    """A model to begin with: ``load`` names a model directory; otherwise the rest describes a fresh one."""

    load: str | None = None
    backbone: Backbone = field(default_factory=Backbone)
    input: Input = field(default_factory=Input)
    frames: Frames = field(default_factory=Frames)
    tubes: dict[str, Tube] = field(default_factory=dict)
    interpolate: list[int] | None = None  # one shared kernel of this size for all tubes, e.g. [8, 8, 8]
    inflate: bool = False  # kernels of the tubes begin as the backbone's patches, inflated in time (Table 5)
    positions: Positions = field(default_factory=Positions)


@dataclass
class Augment:
    """Random changes of a training sample; the same for all frames of a clip."""

    crop_scale: list[float] = field(default_factory=lambda: [0.25, 1.0])  # share of the area kept
    crop_ratio: list[float] = field(default_factory=lambda: [0.75, 1.3333])  # width over height
    flip: bool = True  # left-right; off where labels name directions
    randaugment_layers: int = 0
    randaugment_magnitude: int = 10


@dataclass
class Dataset:
    """One training set: shards of images or of videos, and which head learns which label."""

    shards: str  # a directory, or an address such as https://host/train or s3://bucket/train
    heads: dict[str, str] = field(default_factory=dict)  # head name -> label name in the shards
    weight: float = 1.0  # share of the batches, relative to the other sets'
    augment: Augment = field(default_factory=Augment)


@dataclass
class Valid:
    """A set on which arms are validated while they train: one clip and one crop of every sample."""

    shards: str  # a directory or an address
    heads: dict[str, str] = field(default_factory=dict)  # head name -> label name; none: all whose name and classes fit


@dataclass
class Data:
    """Training sets (whole batches come from one of them), the set to validate on, and how they are read."""

    train: dict[str, Dataset] = field(default_factory=dict)
    valid: Valid | None = None
    batch: int = 64  # samples of a step, over all ranks
    workers: int = 1  # loader processes of each rank
    max_bad: float = 0.01  # share of unreadable samples left out before the run stops
    window: int = 8192  # samples within which an epoch is shuffled; larger sets are read in near sequence


@dataclass
class Arm:
    """What trains above the trunk. ``frozen_depth`` blocks are frozen; 0 trains everything, tubes included."""

    frozen_depth: int = 0
    gate: bool | str = False  # true: one alpha, the paper's; "channel": one for each channel
    adapt: str = "full"  # the late blocks: full | lora | dora | ia3 (adapters on frozen weights) | none (frozen)
    lora_rank: int = 8  # of lora and dora, whose products are scaled by lora_alpha / lora_rank
    lora_alpha: float = 16.0
    precision: str = "float32"  # of products in the arm: float32 | bfloat16; what trains is float32 in any case
    grad_checkpointing: bool = False  # compute each block twice instead of keeping its activations
    lr: float = 1e-3
    gate_lr: float = 5e-3
    weight_decay: float = 1e-3
    clip: float = 1.0  # gradient norm; 0: none
    steps: int | None = None  # after which the arm ends, and over which its cosine runs; None: train.steps
    warmup: int | None = None  # None: train.warmup
    patience: int = 0  # validations in a row without a rise of accuracy that end the arm early; 0: it never does


@dataclass
class Trunk:
    """How frozen blocks are kept while arms train; ``auto`` measures which precision is fastest on the device."""

    precision: str = "float32"  # float32 | bfloat16 | float16 | int8 | auto
    placement: str = "device"  # device | host | disk: where blocks wait for their turn
    cache: str | None = None  # a token cache (tools/cache.py), which stands for videos and frozen blocks in training


@dataclass
class Train:
    """Optimizer and schedule, alike for all arms of a sweep but where an arm has its own steps and warm-up."""

    steps: int = 500
    optimizer: str = "adamw"  # adamw | adam
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    warmup: int = 20  # steps of linear warm-up before the cosine
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the Beta distribution; 0: none
    cutmix: float = 0.0  # the same; where both are set each step draws one of them, half and half
    kernels: str = "auto"  # library | lean | fast (model/kernels.py) | auto: fast where measured to pay
    zero_stage: int = 0
    offload: bool = False  # optimizer state and update on the host; needs zero_stage 1 or 2
    accumulate: int = 1  # micro-batches of a step, one after the other: less memory, the same step
    log_every: int = 10
    save_every: int = 1000  # steps between checkpoints; 0: at the end alone, and where the run is stopped
    keep: int = 2  # checkpoints at a time
    valid_every: int = 0  # steps between validations on data.valid, and one where an arm ends; 0: none


@dataclass
class Recipe:
    """A whole run. ``arm`` is the arm of a single run and the defaults of every entry of ``arms``."""

    out: str = ""
    seed: int = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    trunk: Trunk = field(default_factory=Trunk)
    train: Train = field(default_factory=Train)
    arm: Arm = field(default_factory=Arm)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict, metadata={"changes": Arm})  # name -> changes to arm
    grid: dict[str, list[Any]] = field(default_factory=dict, metadata={"values": Arm})  # more arms: all combinations


def schedule(arm: Arm, train: Train) -> tuple[int, int]:
    """Steps and warm-up of an arm: its own, or those of the run."""
    steps = train.steps if arm.steps is None else arm.steps
    return steps, train.warmup if arm.warmup is None else arm.warmup
