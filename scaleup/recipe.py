"""The schema of a recipe: the YAML file that describes one run, or a sweep of several arms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

# OmegaConf reads these annotations at run time, so they keep the spelling it understands.


@dataclass
class Tube:
    """A sparse video tube (Section 3.2); every list is in the order t, h, w, in frames and pixels."""

    kernel: list[int]
    stride: list[int]
    offset: list[int] = field(default_factory=lambda: [0, 0, 0])
    fold: list[int] = field(default_factory=lambda: [1, 1, 1])  # space-to-depth, in kernel places along each axis


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
    """A plain image ViT: ``timm:NAME`` or an alias (vit_h), and how its weights come to be."""

    name: str = "timm:vit_base_patch16_224"
    kwargs: dict[str, Any] = field(default_factory=dict)  # changes to the architecture, timm's own words
    weights: Optional[str] = None  # None: random initialisation; a local file or directory; "pretrained"


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

    load: Optional[str] = None
    backbone: Backbone = field(default_factory=Backbone)
    input: Input = field(default_factory=Input)
    frames: Frames = field(default_factory=Frames)
    tubes: dict[str, Tube] = field(default_factory=dict)
    interpolate: Optional[list[int]] = None  # one shared kernel of this size for all tubes, e.g. [8, 8, 8]
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

    shards: str
    heads: dict[str, str] = field(default_factory=dict)  # head name -> label name in the shards
    weight: float = 1.0  # share of the batches, relative to the other sets'
    augment: Augment = field(default_factory=Augment)


@dataclass
class Data:
    """Training sets (whole batches come from one of them), and how they are read."""

    train: dict[str, Dataset] = field(default_factory=dict)
    batch: int = 64  # samples of a step, over all ranks
    workers: int = 1  # loader processes of each rank
    max_bad: float = 0.01  # share of unreadable samples left out before the run stops


@dataclass
class Arm:
    """What trains above the trunk. ``frozen_depth`` blocks are frozen; 0 trains everything, tubes included."""

    frozen_depth: int = 0
    gate: bool = False
    lr: float = 1e-3
    gate_lr: float = 5e-3
    weight_decay: float = 1e-3
    clip: float = 1.0  # gradient norm; 0: none


@dataclass
class Train:
    """Optimizer and schedule, alike for all arms of a sweep."""

    steps: int = 500
    optimizer: str = "adamw"  # adamw | adam
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    warmup: int = 20  # steps of linear warm-up before the cosine
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of the Beta distribution; 0: none
    zero_stage: int = 0
    log_every: int = 10


@dataclass
class Recipe:
    """A whole run. ``arm`` is the arm of a single run and the defaults of every entry of ``arms``."""

    out: str = ""
    seed: int = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    arm: Arm = field(default_factory=Arm)
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> changes to ``arm``
