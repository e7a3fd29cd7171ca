"""The keys of a recipe, with types and defaults: a dataclass for each section; and the arms of a grid."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from scaleup.config.rules import (
    Areas,
    Betas,
    Count,
    Gate,
    Heads,
    Index,
    Lengths,
    Loggers,
    Magnitude,
    Mean,
    Named,
    NotNegative,
    Offsets,
    PoolDepth,
    Positive,
    Ratios,
    Share,
    Size,
    Std,
    Whole,
    allowed,
    in_order,
)

Loss = Literal["softmax", "sigmoid", "l2", "l1"]
SHORT = {"frozen_depth": "depth"}


def expand(grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """``{"frozen_depth": [6, 8], "gate": [True]}`` -> ``{"depth6_gate": {"frozen_depth": 6, "gate": True}, ...}``.

    The last setting changes fastest. An empty grid gives no arms.
    """
    combinations = itertools.product(*grid.values()) if grid else ()
    changes = [dict(zip(grid, values, strict=True)) for values in combinations]
    return {"_".join(itertools.starmap(_name, settings.items())): settings for settings in changes}


def _name(setting: str, value: Any) -> str:
    """A name for a setting and its value, of letters, digits, '_' and '-': ``depth6``, ``lr1e-4``, ``gate``,
    ``no_gate``."""
    setting = SHORT.get(setting, setting)
    if value is None or isinstance(value, bool):
        return setting if value else f"no_{setting}"
    if isinstance(value, int | float):
        return setting + _number(value)
    return re.sub(r"[^0-9A-Za-z_-]", "-", str(value))


def _number(value: float) -> str:
    """A number without a point, because names may not have one: 0.00015 is ``15e-5``."""
    exact = Decimal(repr(value))
    exponent = exact.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return f"{exact:.0f}" if 0 <= exponent <= 6 else f"{exact.scaleb(-exponent):.0f}e{exponent}"


@dataclass
class Tube:
    """A sparse video tube (Section 3.2). Every list is [t, h, w], in frames and pixels."""

    kernel: Lengths
    stride: Lengths
    offset: Offsets = field(default_factory=lambda: [0, 0, 0])
    fold: Lengths = field(default_factory=lambda: [1, 1, 1])  # space-to-depth: places per token along each axis
    channels: Count | None = None  # output channels of the kernel; None: width / places per token
    summed: bool = False  # each place of the fold has its own kernel; outputs are summed, not concatenated


@dataclass
class Frames:
    """The frames of a video that the image patches are taken from."""

    stride: Count = 32
    offset: Index = 0


@dataclass
class Positions:
    """Position embeddings (Section 3.3, Table 7a)."""

    kind: Literal["cosine", "cosine_no_stride", "learned", "relative", "none", "backbone"] = "cosine"
    amplitude: Positive = 1.0  # of the sines; 1 in the paper


@dataclass
class Backbone:
    """A plain image ViT and its weights: ``timm:NAME``, ``open_clip:NAME/TAG``, ``hf-hub:owner/name`` or an alias
    (vit_h)."""

    name: str = "timm:vit_base_patch16_224"
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments for the library's model
    weights: str | None = None  # "pretrained", a file, a directory, a name on a hub; None: random weights
    fresh_blocks: Index = 0  # random blocks that are added on top of the pretrained ones (Table 8)


@dataclass
class Input:
    """The input of a model: clips of ``frames`` frames at ``fps``, of ``size`` (h, w) pixels, normalised."""

    frames: Count = 32
    size: Size = field(default_factory=lambda: [224, 224])
    fps: Positive = 15.0
    mean: Mean = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: Std = field(default_factory=lambda: [0.5, 0.5, 0.5])


@dataclass
class Model:
    """The model at the start of a run: loaded from the directory ``load``, or described by the other keys."""

    load: str | None = None
    backbone: Backbone = field(default_factory=Backbone)
    input: Input = field(default_factory=Input)
    frames: Frames = field(default_factory=Frames)
    tubes: Named[Tube] = field(default_factory=dict)
    interpolate: Lengths | None = None  # one shared kernel of this size for all tubes, e.g. [8, 8, 8]
    inflate: bool = False  # tubes start as the backbone's patches, inflated in time (Table 5)
    positions: Positions = field(default_factory=Positions)


@dataclass
class Augment:
    """Random changes of a training sample; the same for all frames of a clip."""

    crop_scale: Areas = field(default_factory=lambda: [0.25, 1.0])  # area of the crop / area of the frame
    crop_ratio: Ratios = field(default_factory=lambda: [0.75, 1.3333])  # width over height
    flip: bool = True  # left-right; turn it off if labels name directions
    randaugment_layers: Index = 0
    randaugment_magnitude: Magnitude = 10


@dataclass
class Dataset:
    """A training set: shards of images or of videos, and the label that each head learns."""

    shards: str  # a directory, or an address such as https://host/train or s3://bucket/train
    heads: Heads = field(default_factory=dict)  # head name -> label name in the shards
    weight: Positive = 1.0  # share of the batches, relative to the other sets'
    augment: Augment = field(default_factory=Augment)
    sampling: Literal["uniform", "sqrt", "full"] = "uniform"  # how much more often samples of rare classes are drawn
    sampling_label: str | None = None  # the label whose classes count; None: that of the first head


@dataclass
class Valid:
    """The validation set. While arms train, they are tested on one clip and one crop of every sample."""

    shards: str  # a directory or an address
    heads: Heads = field(default_factory=dict)  # head -> label; empty: all that fit


@dataclass
class Data:
    """Training sets (each batch comes from one of them), the validation set, and how they are read."""

    train: Named[Dataset] = field(default_factory=dict)
    valid: Valid | None = None
    batch: Count = 64  # samples of a step, over all ranks
    workers: Index = 1  # loader processes of each rank
    max_bad: Share = 0.01  # largest share of unreadable samples; the run stops above it
    window: Count = 8192  # samples that mix; larger sets are shuffled within windows of so many


def shards_of(data: Data) -> dict[str, str]:
    """The shards of all sets, by the path of their setting."""
    places = {f"data.train.{name}.shards": dataset.shards for name, dataset in data.train.items()}
    return places | ({"data.valid.shards": data.valid.shards} if data.valid else {})


@dataclass
class Head:
    """What a head learns, in every set that it learns from."""

    loss: Loss = "softmax"  # one class; any number of classes; a number (l2, l1)
    balance: Literal["none", "sqrt", "full"] = "none"  # weights of classes, by their number of samples
    focal: NotNegative = 0.0  # gamma of the focal loss; 0: none


@dataclass
class Arm:
    """The part that trains. ``frozen_depth`` is the number of frozen blocks; 0 trains everything, tubes included."""

    frozen_depth: Index = 0
    gate: Gate = False  # true: one alpha, as in the paper; "channel": one alpha for each channel
    adapt: Literal["full", "lora", "dora", "ia3", "none"] = "full"  # of late blocks; none: frozen too
    lora_rank: Count = 8  # rank of lora and dora; their output is scaled by lora_alpha / lora_rank
    lora_alpha: Positive = 16.0
    pool: Literal["own", "mean", "attentive"] = "own"  # how tokens become features; own: the backbone's way
    pool_queries: Count = 1  # of attentive: learned queries, whose features the heads read side by side
    pool_heads: Count = 16  # of attentive: heads of its attention
    pool_depth: PoolDepth = 1  # of attentive: blocks, the last of them cross-attention
    taps: list[Count] = field(default_factory=list)  # depths below frozen_depth whose tokens a pool reads too
    precision: Literal["float32", "bfloat16", "auto"] | None = None  # of products; None: recipe.settle; auto: measured
    grad_checkpointing: bool = False  # compute blocks again in the backward pass, keep no activations
    lr: Positive = 1e-3
    gate_lr: Positive = 5e-3
    weight_decay: NotNegative = 1e-3
    clip: NotNegative = 1.0  # gradient norm is clipped to this; 0: no clipping
    steps: Count | None = None  # training steps of the arm, and of its cosine schedule; None: train.steps
    warmup: Index | None = None  # None: train.warmup
    patience: Index = 0  # validations without better accuracy that end the arm early; 0: never


@dataclass
class Trunk:
    """Precision and place of the frozen blocks. ``auto`` measures which precision is fastest on the device."""

    precision: Literal["float32", "bfloat16", "float16", "int8", "auto"] | None = None  # None: recipe.settle
    placement: Literal["device", "host", "disk"] = "device"  # where blocks are stored
    cache: str | None = None  # a token cache (tools/cache.py) to train from


@dataclass
class Train:
    """Optimizer and schedule of all arms. An arm may have its own steps and warm-up."""

    steps: Count = 500
    optimizer: Literal["adamw", "adam"] = "adamw"
    betas: Betas = field(default_factory=lambda: [0.9, 0.999])
    warmup: Index = 20  # steps of linear warm-up before the cosine
    label_smoothing: Share = 0.0
    mixup: NotNegative = 0.0  # alpha of the Beta distribution; 0: no mixup
    cutmix: NotNegative = 0.0  # the same; if both are set, each step uses one of them, with equal probability
    kernels: Literal["library", "lean", "products", "fast", "auto"] = "auto"  # model/kernels.py; auto: the fastest
    compile: Literal["auto", "off", "blocks"] = "auto"  # blocks by torch.compile; auto: on a GPU with a compiler
    cuda_graphs: Literal["auto", "off", "trunk"] = "auto"  # a GPU records the frozen pass; auto: where it pays
    zero_stage: Annotated[Whole, Field(ge=0, le=3), allowed("0, 1, 2 or 3")] = 0
    offload: bool = False  # optimizer state and update on the host; needs a zero_stage
    accumulate: Count = 1  # gradient accumulation: micro-batches per step
    tf32: bool = True  # a GPU computes float32 products in TF32
    deterministic: bool = False  # a GPU gives the same bits each time, which takes longer
    log: Loggers = field(default_factory=lambda: ["tensorboard"])  # where metrics go beside metrics.jsonl
    log_every: Count = 10  # steps between two that loggers get; metrics.jsonl gets all
    save_every: Index = 1000  # steps between checkpoints; 0: only at the end, and when the run is stopped
    keep: Count = 2  # number of checkpoints to keep
    valid_every: Index = 0  # steps between validations on data.valid (also when an arm ends); 0: no validation


if TYPE_CHECKING:
    Changes = dict[str, Any]
    Grid = dict[str, list[Any]]
else:  # any settings of an arm; the same with lists of values
    settings = get_type_hints(Arm, include_extras=True)
    lists = {name: Annotated[list[kind], Field(min_length=1)] for name, kind in settings.items()}
    Changes = Annotated[TypedDict("Changes", settings, total=False), in_order("a mapping of settings")]
    values = in_order("a mapping of settings to lists of values")
    Grid = Annotated[TypedDict("Grid", lists, total=False), values]


@dataclass
class Recipe:
    """A run. ``arm`` is the arm of a single run, and has the defaults of every entry of ``arms``."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # of all sections
    out: str = ""
    seed: Index = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    heads: Named[Head] = field(default_factory=dict)  # head -> what it learns; those not here: one class of each sample
    trunk: Trunk = field(default_factory=Trunk)
    train: Train = field(default_factory=Train)
    arm: Arm = field(default_factory=Arm)
    arms: Named[Changes] = field(default_factory=dict)  # name -> changes to arm
    grid: Grid = field(default_factory=dict)  # more arms: all combinations of these values


def schedule(arm: Arm, train: Train) -> tuple[int, int]:
    """Steps and warm-up steps of an arm: its own, or those of the run."""
    steps = train.steps if arm.steps is None else arm.steps
    return steps, train.warmup if arm.warmup is None else arm.warmup


def run_steps(arms: Iterable[Arm], train: Train) -> int:
    """Steps of a run: those of its longest arm."""
    return max(schedule(arm, train)[0] for arm in arms)
