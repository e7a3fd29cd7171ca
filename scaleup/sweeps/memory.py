"""Bytes on a device at the moment of a step that needs most memory.

Counted: weights, the optimizer's moments, gradients and the copies of them that DeepSpeed sends to other ranks, pixels,
and every tensor that exists between two operations of a pass.

Not counted: Python, libraries, the context of an accelerator, memory that one operation uses inside, batches that wait
in loader processes, and freed memory that the allocator keeps, but :func:`with_gaps`.
"""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from scaleup.checkpoint.model_directory import DELTA
from scaleup.common.distributed import device_type
from scaleup.config.schema import Train
from scaleup.model.trunk import COMPUTED_IN
from scaleup.model.tubes import Size
from scaleup.sweeps.sketch import Sketch, tensors
from scaleup.training.engine import LIVE

BUCKET = 4 * 500_000_000  # bytes of gradients that DeepSpeed reduces at a time
MARGIN = 0.1  # share of a GPU's memory that plans leave free
GAPS = 3  # on a CPU one byte lies idle for so many of tensors that come and go in a step
MOST = 2**16  # the largest micro-batch that is tried
MOMENTS, MASTER = 2, 1  # copies of the trained weights: two moments of Adam; with ZeRO also master weights


def own_memory() -> int:
    """Bytes of memory that a run may fill: all of a machine's; of a GPU's less a margin for libraries and gaps."""
    if device_type() == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int((1 - MARGIN) * torch.get_device_module(device_type()).mem_get_info()[1])


class Moment(NamedTuple):
    """Bytes at one moment of a step, without weights, optimizer and batch."""

    gradients: int
    activations: int


def by_part(sketch: Sketch, names: Collection[str], batch: int | None = None, ranks: int = 1) -> dict[str, int]:
    """Bytes on each device by part, for arms that train together.

    Args:
        batch: samples of a step, over all ranks; None for the recipe's. They are videos if the run has videos.
    """
    batch = sketch.recipe.data.batch if batch is None else batch
    fullest = max(_moments(sketch, names, batch, ranks), key=sum)
    parts = {
        "trunk": trunk_bytes(sketch, names),
        "arms": _held_weights(sketch, names, ranks),
        "optimizer": sum(_optimizer(trained(sketch, name), sketch.recipe.train, ranks) for name in names),
        "gradients": fullest.gradients,
        "activations": fullest.activations,
        "batch": 0 if sketch.recipe.trunk.cache else batch // ranks * _pixels(sketch.size(sketch.largest)),
    }
    return parts | {"total": sum(parts.values())}


def with_gaps(parts: Mapping[str, int]) -> int:
    """Bytes that a process on a CPU takes for the ``parts`` of a plan.

    Training makes glibc keep all freed memory. Gaps remain between tensors, into which the next tensor does not fit.
    """
    return parts["total"] + (parts["gradients"] + parts["activations"] + parts["batch"]) // GAPS


def largest_batch(sketch: Sketch, names: Collection[str], available: int, ranks: int = 1) -> int:
    """The largest number of samples of a step, over all ranks, that fit into ``available`` bytes of each device."""
    unit = ranks * sketch.recipe.train.accumulate

    def total(micro: int) -> int:
        return by_part(sketch, names, micro * unit, ranks)["total"]

    return unit * bisect.bisect(range(1, MOST + 1), available, key=total)


def _pixels(size: Size) -> int:
    """Bytes of a sample as normalised float32, and as uint8: the pixels before, or on a GPU those of the next batch."""
    return 3 * math.prod(size) * (1 + 4)


def trained(sketch: Sketch, name: str) -> int:
    """Bytes of an arm's trained parameters. Their gradients have as many."""
    return sum(parameter.nbytes for parameter in sketch.models[name].arm.parameters() if parameter.requires_grad)


def trunk_bytes(sketch: Sketch, names: Collection[str]) -> int:
    """Bytes of the tokenizer and the frozen blocks. Of blocks that wait elsewhere, two at a time are on the device."""
    trunk, settings = sketch.deepest(names).trunk, sketch.recipe.trunk
    if trunk is None:
        return 0
    waits = settings.placement == "disk" or (settings.placement == "host" and device_type() != "cpu")
    computed = 0 if settings.cache and sketch.recipe.model.load else 2 if waits else None
    blocks = list(trunk.blocks)[:computed]
    own = _bytes([trunk.tokenizer]) + sum(_frozen(block, settings.precision) for block in blocks)
    return own + (0 if waits or _known(sketch) or settings.precision in ("float32", "auto") else _bytes(blocks))


def _known(sketch: Sketch) -> bool:
    """Whether the float32 content of frozen blocks is in a file or, beside a GPU, on the host. If not, cast blocks keep
    it in the device's memory, for saving."""
    if device_type() != "cpu":
        return True
    return (Path(sketch.recipe.model.load or "") / DELTA).exists()


def _frozen(block: nn.Module, precision: str | None) -> int:
    """Bytes of a frozen block. With int8, matrices have one scale for each row, and other tensors are bfloat16."""
    if precision != "int8":
        return (
            sum(t.numel() for t in tensors([block]).values()) * COMPUTED_IN.get(str(precision), torch.float32).itemsize
        )
    matrices = [layer.weight for layer in block.modules() if isinstance(layer, nn.Linear)]
    return 2 * sum(t.numel() for t in tensors([block]).values()) - sum(w.numel() - 2 * len(w) for w in matrices)


def _bytes(modules: Collection[nn.Module]) -> int:
    return sum(tensor.nbytes for tensor in tensors(modules).values())


def _held_weights(sketch: Sketch, names: Collection[str], ranks: int) -> int:
    """Bytes of the weights of arms on a device: with stage 3 a part of them, and those whole that a pass uses at a
    time."""
    weights = weights_of_arms(sketch, names)
    if sketch.recipe.train.zero_stage < 3:
        return weights
    return weights // ranks + min(LIVE * torch.float32.itemsize, max(trained(sketch, name) for name in names))


def weights_of_arms(sketch: Sketch, names: Collection[str]) -> int:
    """Bytes of the weights of arms. Tensors that arms share, or that the trunk holds too, are counted once."""
    weights = tensors([sketch.models[name].arm for name in names])
    trunk, settings = sketch.deepest(names).trunk, sketch.recipe.trunk
    if trunk is not None and (settings.precision, settings.placement) == ("float32", "device"):
        weights = {key: tensor for key, tensor in weights.items() if key not in tensors([trunk])}
    return sum(tensor.nbytes for tensor in weights.values())


def _optimizer(weights: int, train: Train, ranks: int) -> int:
    """Bytes of the optimizer on a device: moments; with ZeRO, a rank's part of the moments and the master weights."""
    if train.zero_stage == 0:
        return MOMENTS * weights
    return 0 if train.offload and device_type() != "cpu" else (MOMENTS + MASTER) * weights // ranks


def _moments(sketch: Sketch, names: Collection[str], batch: int, ranks: int) -> Iterator[Moment]:
    """The moments of a step that may need most memory: in the trunk, in each arm's passes, at each arm's update."""
    train = sketch.recipe.train
    micro = batch // ranks // train.accumulate
    trunk = sketch.trunk(names, sketch.largest, micro)
    every = sum(trained(sketch, name) for name in names) if train.accumulate > 1 else 0
    waiting = every // ranks if train.zero_stage >= 2 else every  # of earlier micro-batches
    yield Moment(waiting, int(trunk.alive.max()) + (sketch.scores() if trunk.flops else 0))
    for name in names:
        arm, own = sketch.arm(name, sketch.largest, micro), trained(sketch, name)
        if train.zero_stage:  # gradients are collected in a bucket, which is then sent to their rank
            bucket = min(own, BUCKET) if device_type() == "cpu" else BUCKET
            yield Moment(waiting + bucket, trunk.kept + int((arm.alive - arm.gradients).max()))
            yield Moment(waiting + 2 * own // ranks, trunk.kept)
        else:
            fullest = arm.alive.argmax()
            gradients = int(arm.gradients[fullest])
            yield Moment(waiting + gradients, trunk.kept + int(arm.alive[fullest]) - gradients)
            yield Moment((waiting or own) + (min(own, BUCKET) if ranks > 1 else 0), trunk.kept)
