"""The keys of a recipe: a dataclass for each section, with the default of each key; and the arms of a grid."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from scaleup.config.rules import (
    Areas,
    Betas,
    Cache,
    Count,
    Gate,
    Heads,
    Index,
    Lengths,
    Magnitude,
    Mean,
    Named,
    NotNegative,
    Offsets,
    Positive,
    Ratios,
    Shards,
    Share,
    Size,
    Std,
    Whole,
    allowed,
    in_order,
)

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

    kernel: Lengths
    stride: Lengths
    offset: Offsets = field(default_factory=lambda: [0, 0, 0])
    fold: Lengths = field(default_factory=lambda: [1, 1, 1])  # space-to-depth, in kernel places along each axis
    channels: Count | None = None  # emitted by the kernel at each place; None: width / places
    summed: bool = False  # places of the fold have kernels of their own and are summed, not concatenated


@dataclass
class Frames:
    """Which frames of a video pass through the image tokenizer."""

    stride: Count = 32
    offset: Index = 0


@dataclass
class Positions:
    """Where tokens are (Section 3.3, Table 7a)."""

    kind: Literal["cosine", "cosine_no_stride", "learned", "relative", "none", "backbone"] = "cosine"
    amplitude: Positive = 1.0  # of the sines; 1 is the paper's


@dataclass
class Backbone:
    """A plain image ViT: ``timm:NAME``, ``open_clip:NAME/TAG``, ``hf-hub:owner/name`` or an alias (vit_h), and how its
    weights come to be."""

    name: str = "timm:vit_base_patch16_224"
    kwargs: dict[str, Any] = field(default_factory=dict)  # changes to the architecture, the library's own words
    weights: str | None = None  # None: random initialisation; "pretrained"; a file, a directory, a name on a hub
    fresh_blocks: Index = 0  # on top of those that have weights, drawn at random (Table 8)


@dataclass
class Input:
    """What a model is fed: clips of ``frames`` frames at ``fps``, ``size`` (h, w) pixels, normalised."""

    frames: Count = 32
    size: Size = field(default_factory=lambda: [224, 224])
    fps: Positive = 15.0
    mean: Mean = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: Std = field(default_factory=lambda: [0.5, 0.5, 0.5])


@dataclass
class Model:
    """A model to begin with: ``load`` names a model directory; otherwise the rest describes a fresh one."""

    load: str | None = None
    backbone: Backbone = field(default_factory=Backbone)
    input: Input = field(default_factory=Input)
    frames: Frames = field(default_factory=Frames)
    tubes: Named[Tube] = field(default_factory=dict)
    interpolate: Lengths | None = None  # one shared kernel of this size for all tubes, e.g. [8, 8, 8]
    inflate: bool = False  # kernels of the tubes begin as the backbone's patches, inflated in time (Table 5)
    positions: Positions = field(default_factory=Positions)


@dataclass
class Augment:
    """Random changes of a training sample; the same for all frames of a clip."""

    crop_scale: Areas = field(default_factory=lambda: [0.25, 1.0])  # share of the area kept
    crop_ratio: Ratios = field(default_factory=lambda: [0.75, 1.3333])  # width over height
    flip: bool = True  # left-right; off where labels name directions
    randaugment_layers: Index = 0
    randaugment_magnitude: Magnitude = 10


@dataclass
class Dataset:
    """One training set: shards of images or of videos, and which head learns which label."""

    shards: Shards  # a directory, or an address such as https://host/train or s3://bucket/train
    heads: Heads = field(default_factory=dict)  # head name -> label name in the shards
    weight: Positive = 1.0  # share of the batches, relative to the other sets'
    augment: Augment = field(default_factory=Augment)


@dataclass
class Valid:
    """A set on which arms are validated while they train: one clip and one crop of every sample."""

    shards: Shards  # a directory or an address
    heads: Heads = field(default_factory=dict)  # head name -> label name; none: all whose name and classes fit


@dataclass
class Data:
    """Training sets (whole batches come from one of them), the set to validate on, and how they are read."""

    train: Named[Dataset] = field(default_factory=dict)
    valid: Valid | None = None
    batch: Count = 64  # samples of a step, over all ranks
    workers: Index = 1  # loader processes of each rank
    max_bad: Share = 0.01  # share of unreadable samples left out before the run stops
    window: Count = 8192  # samples within which an epoch is shuffled; larger sets are read in near sequence


@dataclass
class Arm:
    """What trains above the trunk. ``frozen_depth`` blocks are frozen; 0 trains everything, tubes included."""

    frozen_depth: Index = 0
    gate: Gate = False  # true: one alpha, the paper's; "channel": one for each channel
    adapt: Literal["full", "lora", "dora", "ia3", "none"] = "full"  # the late blocks; none: frozen too
    lora_rank: Count = 8  # of lora and dora, whose products are scaled by lora_alpha / lora_rank
    lora_alpha: Positive = 16.0
    precision: Literal["float32", "bfloat16"] = "float32"  # of products; what trains is float32 in any case
    grad_checkpointing: bool = False  # compute each block twice instead of keeping its activations
    lr: Positive = 1e-3
    gate_lr: Positive = 5e-3
    weight_decay: NotNegative = 1e-3
    clip: NotNegative = 1.0  # gradient norm; 0: none
    steps: Count | None = None  # after which the arm ends, and over which its cosine runs; None: train.steps
    warmup: Index | None = None  # None: train.warmup
    patience: Index = 0  # validations in a row without a rise of accuracy that end the arm early; 0: it never does


@dataclass
class Trunk:
    """How frozen blocks are kept while arms train; ``auto`` measures which precision is fastest on the device."""

    precision: Literal["float32", "bfloat16", "float16", "int8", "auto"] = "float32"
    placement: Literal["device", "host", "disk"] = "device"  # where blocks wait for their turn
    cache: Cache | None = None  # a token cache (tools/cache.py), which stands for videos and frozen blocks in training


STAGES = "0, 1 or 2 (3 would take apart the frozen weights that arms share with the trunk)"


@dataclass
class Train:
    """Optimizer and schedule, alike for all arms of a sweep but where an arm has its own steps and warm-up."""

    steps: Count = 500
    optimizer: Literal["adamw", "adam"] = "adamw"
    betas: Betas = field(default_factory=lambda: [0.9, 0.999])
    warmup: Index = 20  # steps of linear warm-up before the cosine
    label_smoothing: Share = 0.0
    mixup: NotNegative = 0.0  # alpha of the Beta distribution; 0: none
    cutmix: NotNegative = 0.0  # the same; where both are set each step draws one of them, half and half
    kernels: Literal["library", "lean", "fast", "auto"] = "auto"  # model/kernels.py; auto: fast where measured to pay
    zero_stage: Annotated[Whole, Field(ge=0, le=2), allowed(STAGES)] = 0
    offload: bool = False  # optimizer state and update on the host; needs zero_stage 1 or 2
    accumulate: Count = 1  # micro-batches of a step, one after the other: less memory, the same step
    log_every: Count = 10
    save_every: Index = 1000  # steps between checkpoints; 0: at the end alone, and where the run is stopped
    keep: Count = 2  # checkpoints at a time
    valid_every: Index = 0  # steps between validations on data.valid, and one where an arm ends; 0: none


if TYPE_CHECKING:
    Changes = dict[str, Any]
    Grid = dict[str, list[Any]]
else:  # some settings of an arm; some with lists of values
    settings = get_type_hints(Arm, include_extras=True)
    lists = {name: Annotated[list[kind], Field(min_length=1)] for name, kind in settings.items()}
    Changes = Annotated[TypedDict("Changes", settings, total=False), in_order("a mapping of settings")]
    values = in_order("a mapping of settings to lists of values")
    Grid = Annotated[TypedDict("Grid", lists, total=False), values]


@dataclass
class Recipe:
    """A whole run. ``arm`` is the arm of a single run and the defaults of every entry of ``arms``."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # of all sections
    out: str = ""
    seed: Index = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    trunk: Trunk = field(default_factory=Trunk)
    train: Train = field(default_factory=Train)
    arm: Arm = field(default_factory=Arm)
    arms: Named[Changes] = field(default_factory=dict)  # name -> changes to arm
    grid: Grid = field(default_factory=dict)  # more arms: all combinations


def schedule(arm: Arm, train: Train) -> tuple[int, int]:
    """Steps and warm-up of an arm: its own, or those of the run."""
    steps = train.steps if arm.steps is None else arm.steps
    return steps, train.warmup if arm.warmup is None else arm.warmup
