"""The cost of a run before it begins: tokens, parameters, FLOPs, memory and time.

The run's own modules are called with tensors without content (:mod:`scaleup.sweeps.trace`), and their operations are
counted. So the counts are right for blocks that are frozen, adapted, checkpointed, or reduced to the class token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from scaleup.common.distributed import device_type
from scaleup.common.errors import UserError
from scaleup.common.text import format_gib
from scaleup.common.timing import now
from scaleup.config.recipe import all_arms, default_precision
from scaleup.config.schema import Arm, Recipe, run_steps
from scaleup.model.trunk import COMPUTED_IN
from scaleup.sweeps.memory import by_part, largest_batch, own_memory, trained, weights_of_arms, with_gaps
from scaleup.sweeps.sketch import CacheSize, Sketch
from scaleup.training.run_inputs import sizes

SIDE, TURNS = 1536, 5  # side of the two square matrices; how often they are multiplied
SIDE_ON_GPU = 8192  # smaller products would only show how fast a GPU is called


@torch.no_grad()
def measured(precision: str) -> float:
    """GFLOP/s of the device, measured: the fastest of a few products of two matrices in a precision."""
    device = torch.device(device_type())
    side = SIDE if device.type == "cpu" else SIDE_ON_GPU
    one, other = (torch.randn(side, side, device=device).to(COMPUTED_IN[precision]) for _ in range(2))
    fastest = float("inf")
    for _ in range(TURNS):
        began = now(device)
        one @ other
        fastest = min(fastest, now(device) - began)
    return 2 * side**3 / fastest / 1e9


def mean_of_sample(sketch: Sketch, flops: dict[str, int]) -> float:
    """The mean FLOPs of a training sample over the datasets, by their weights; ``flops`` are by modality."""
    weights = {name: sketch.recipe.data.train[name].weight for name in sketch.datasets}
    total = sum(weights[name] * flops[shards.modality] for name, shards in sketch.datasets.items())
    return total / sum(weights.values())


@dataclass
class Tokens:
    """Tokens of an input, including the prefix tokens."""

    image: int
    video: int
    prefix: int
    tubes: dict[str, int]


@dataclass
class ArmFlops:
    """Operations of an arm on one sample, without the trunk."""

    forward: int
    step: int  # forward, backward and update


@dataclass
class ArmCost:
    """The cost of one arm."""

    frozen_depth: int
    frozen_parameters: int
    trained_parameters: int
    weight_bytes: int
    gradient_bytes: int
    flops: dict[str, ArmFlops]  # by modality


@dataclass
class SampleFlops:
    """Operations on one sample, of the trunk and all arms together."""

    trunk: int
    forward: int
    step: int


@dataclass
class Time:
    """Seconds without reading the data."""

    gflops: float  # 10^9 operations of a device in a second
    measured: bool  # on this machine, by products of matrices
    step: float
    epoch: float  # every sample of every dataset once
    cached_epoch: float | None  # of the arms alone, with a token cache; None if an arm freezes nothing
    run: float


@dataclass
class Plan:
    """The cost of a run, known before it begins."""

    steps: int
    batch: int
    ranks: int
    tokens: Tokens
    arms: dict[str, ArmCost]
    flops: dict[str, SampleFlops]  # by modality
    memory: dict[str, int]  # bytes on a device by part, see memory()
    cpu_memory: int  # bytes that a process on a CPU takes for it, see scaleup.sweeps.memory.with_gaps
    available: int  # bytes of a device
    fits: bool
    largest_batch: int  # the largest that fits; 0 if one sample does not fit
    waves: list[list[str]]  # groups of arms that fit together, by name; empty if an arm does not fit alone
    cache: CacheSize | None  # None if an arm freezes nothing
    time: Time
    warnings: list[str]
    machines: list[list[str]] = field(default_factory=list)  # for a sweep on several machines: the arms of each


def seconds(sketch: Sketch, flops: dict[str, SampleFlops], gflops: float, measured: bool, ranks: int) -> Time:
    """The time of a run on ``ranks`` devices of ``gflops`` each."""
    data, recipe, rate = sketch.datasets, sketch.recipe, gflops * 1e9 * ranks
    step = recipe.data.batch * mean_of_sample(sketch, {kind: each.step for kind, each in flops.items()}) / rate
    epoch = sum(len(shards) * flops[shards.modality].step for shards in data.values())
    trunk = sum(len(shards) * flops[shards.modality].trunk for shards in data.values())
    frozen = all(model.trunk is not None for model in sketch.models.values())
    cached = (epoch - trunk) / rate if frozen else None
    return Time(gflops, measured, step, epoch / rate, cached, run_steps(sketch.arms.values(), recipe.train) * step)


def plan(
    recipe: Recipe,
    arms: dict[str, Arm] | None = None,
    ranks: int = 1,
    available: int | None = None,
    gflops: float | None = None,
    views: int = 1,
) -> Plan:
    """The cost of a run, before it begins.

    Args:
        arms: by name; by default all arms of a sweep, or the recipe's one arm as ``model``.
        ranks: devices that train together.
        available: bytes of each device; None for the memory of this machine's device.
        gflops: 10^9 operations a second of each device; None to measure products of matrices on this machine.
        views: views of each sample in a token cache.
    """
    arms = arms or all_arms(recipe)
    sketch = Sketch(recipe, arms)
    available = own_memory() if available is None else available
    rate, flops = gflops or measured(default_precision(device_type())), _flops(sketch)
    needed, largest = by_part(sketch, arms, ranks=ranks), largest_batch(sketch, arms, available, ranks)
    fits = needed["total"] <= available
    try:
        arms_of_waves = [list(wave) for wave in _waves(sketch, available, ranks)]
    except UserError:
        arms_of_waves = []
    return Plan(
        steps=run_steps(arms.values(), recipe.train),
        batch=recipe.data.batch,
        ranks=ranks,
        tokens=_tokens(sketch),
        arms={name: _arm(sketch, name) for name in arms},
        flops=flops,
        memory=needed,
        cpu_memory=with_gaps(needed),
        available=available,
        fits=fits,
        largest_batch=largest,
        waves=arms_of_waves,
        cache=sketch.cache_bytes(views),
        time=seconds(sketch, flops, rate, gflops is None, ranks),
        warnings=[] if fits else [_too_large(needed["total"], available, largest, recipe.data.batch)],
    )


def step_flops(recipe: Recipe, arms: dict[str, Arm]) -> dict[str, float]:
    """FLOPs of a step of ``data.batch`` samples of each arm alone, with its trunk; a weighted mean of the datasets."""
    sketch = Sketch(recipe, arms)
    return {name: recipe.data.batch * mean_of_sample(sketch, _of_sample(sketch, name)) for name in arms}


def memory(recipe: Recipe, arms: dict[str, Arm], ranks: int = 1) -> dict[str, int]:
    """Bytes on each device when a step needs most memory, by part, and their ``total``.

    Parts are trunk, arms, optimizer, gradients, activations and batch. :mod:`scaleup.sweeps.memory` says what is not
    counted."""
    return by_part(Sketch(recipe, arms), arms, ranks=ranks)


def waves(recipe: Recipe, arms: dict[str, Arm], available: int, ranks: int = 1) -> list[dict[str, Arm]]:
    """Arms in as few groups as possible, each of which fits into ``available`` bytes of a device; deepest arms first.

    Raises:
        UserError: an arm does not fit alone.
    """
    groups = _waves(Sketch(recipe, arms), available, ranks)
    return [{name: arms[name] for name in group} for group in groups]  # as they were: another machine may train them


def _waves(sketch: Sketch, available: int, ranks: int) -> list[dict[str, Arm]]:
    deepest_first = sorted(sketch.arms.items(), key=lambda pair: -pair[1].frozen_depth)
    if by_part(sketch, sketch.arms, ranks=ranks)["total"] <= available:  # seconds sooner than arm after arm
        return [dict(deepest_first)]
    waves: list[dict[str, Arm]] = []
    for name, arm in deepest_first:
        if waves and by_part(sketch, [*waves[-1], name], ranks=ranks)["total"] <= available:
            waves[-1][name] = arm
            continue
        if (needed := by_part(sketch, [name], ranks=ranks)["total"]) > available:
            raise UserError(
                f"arm {name!r} alone needs {format_gib(needed)} of a device and {format_gib(available)} are available; "
                "lower data.batch, raise train.accumulate or frozen_depth, or set grad_checkpointing"
            )
        waves.append({name: arm})
    return waves


def _tokens(sketch: Sketch) -> Tokens:
    model = next(iter(sketch.models.values()))
    size, prefix = sketch.size("video"), model.tokenizer.num_prefix_tokens
    tubes = {spec.name: spec.tokens(size) for spec in model.tokenizer.specs(size)}
    return Tokens(model.count_tokens(1), model.count_tokens(size[0]), prefix, tubes)


def _arm(sketch: Sketch, name: str) -> ArmCost:
    passes = {kind: sketch.arm(name, kind, 2) for kind in sketch.modalities}
    return ArmCost(
        **sizes(sketch.models[name]),
        weight_bytes=weights_of_arms(sketch, [name]),
        gradient_bytes=trained(sketch, name),
        flops={kind: ArmFlops(each.forward_flops // 2, each.flops // 2) for kind, each in passes.items()},
    )


def _of_sample(sketch: Sketch, name: str) -> dict[str, int]:
    return {k: (sketch.trunk([name], k, 2).flops + sketch.arm(name, k, 2).flops) // 2 for k in sketch.modalities}


def _flops(sketch: Sketch) -> dict[str, SampleFlops]:
    """By modality."""
    flops = {}
    for kind in sketch.modalities:
        trunk, arms = sketch.trunk(sketch.arms, kind, 2), [sketch.arm(name, kind, 2) for name in sketch.arms]
        forward, step = sum(arm.forward_flops for arm in arms), sum(arm.flops for arm in arms)
        flops[kind] = SampleFlops(trunk.flops // 2, (trunk.flops + forward) // 2, (trunk.flops + step) // 2)
    return flops


def _too_large(needed: int, available: int, largest: int, batch: int) -> str:
    advice = f"the largest batch that fits is {largest}, data.batch is {batch}" if largest else "not one sample fits"
    return f"the run needs {format_gib(needed)} of each device, which has {format_gib(available)}; {advice}"
