"""How the blocks of a run are computed. What is fastest on this machine is measured once, and kept in a file of the
user's cache."""

from __future__ import annotations

import copy
import json
import os
import platform
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.common.files import write_json
from scaleup.common.processes import cpu_facts
from scaleup.common.timing import measure_in_turns, now
from scaleup.model.compiled import Call, begin_compiling, has_compiler
from scaleup.model.cuda_graphs import CudaGraphs, can_record
from scaleup.model.kernels import REPLACED, computed, every_token, keep_freed_memory
from scaleup.model.tokenizer import Context
from scaleup.model.trunk import COMPUTED_IN, Trunk, is_on_meta, load_block
from scaleup.model.tubevit import TubeViT

KERNELS_PAY = 1.02  # kernels that are chosen are at least this many times faster than ``lean``
PRECISION_PAYS = 1.05  # bfloat16, which costs accuracy, than float32
ROUNDS = 5  # of measurements that count
STARTED = 20  # blocks that are started together; a GPU has room for the programs of more
SMALLEST = 2**18  # tokens times width of a clip; for smaller models a measurement would be noise
LARGEST_BATCH = 2**20  # the same of all clips that are measured together
FORWARD, TRAINED = ("lean", "products", "fast"), ("lean", "products")  # candidates; fast ones train as products do
UNWRITABLE = (OSError, RuntimeError)  # of a file; of a user without a home directory


@dataclass(frozen=True)
class Kernels:
    """How frozen blocks, and those of arms, are computed; see :mod:`scaleup.model.kernels`."""

    trunk: str
    arm: str


def set_kernels(
    models: Collection[TubeViT],
    kernels: str | Mapping[str, str],
    world: World,
    batch: int = 1,
    trains: bool = True,
) -> Kernels:
    """Have the trunks and arms of ``models`` compute as :mod:`scaleup.model.kernels` says.

    To be called before blocks are cast; returns the choice.

    Args:
        kernels: of all blocks, or those of ``trunk`` and ``arm``; ``auto`` measures a block.
        batch: clips of a pass, for ``auto``.
        trains: whether the arms train, for ``auto``.
    """
    keep_freed_memory()
    if kernels == "auto":
        kernels = world.first(_measured_kernels(models, world.device, batch, trains) if world.rank == 0 else {})
    if kernels in [*REPLACED] and world.device.type != "cpu":  # what they have beyond lean ones is for CPUs
        kernels = "lean"
    chosen = Kernels(kernels, kernels) if isinstance(kernels, str) else Kernels(**kernels)
    _set(models, chosen)
    return chosen


def set_compile(models: Collection[TubeViT], compile: str, world: World) -> str:
    """Have the blocks of ``models`` compiled when they are first called (``blocks``), or not (``off``); ``auto``: on a
    GPU with a compiler, unless the kernels are the library's. Returns the choice.

    To be called after :func:`set_kernels`, and when blocks are cast and placed.
    """
    if compile == "auto":
        can = has_compiler(world.device) and next(iter(models)).arm.kernels != "library"
        compile = world.first("blocks" if can else "off")
    if compile == "blocks":
        begin_compiling()
        _set(models, Kernels("compiled", "compiled"))
    return compile


def set_graphs(models: Collection[TubeViT], graphs: str, world: World, batch: int) -> str:
    """Have a GPU record the pass of the trunk as CUDA graphs (``trunk``), or not (``off``); ``auto``: where the host
    takes more than half as long to start a block as the GPU to compute it, and the GPU can. Returns the choice.

    To be called after :func:`set_compile`. Nothing is recorded where no block is frozen.

    Args:
        batch: clips of a pass, for ``auto``.

    Raises:
        UserError: there is no GPU, or blocks are elsewhere.
    """
    model = max(models, key=lambda model: model.frozen_depth)
    if model.trunk is None:
        return "off"
    lacks = _lacking_for_graphs(model.trunk, world.device)
    if graphs == "trunk" and lacks:
        raise UserError(f"train.cuda_graphs is trunk, but {lacks}; allowed are auto and off")
    if graphs == "auto":
        pays = world.rank == 0 and not lacks and is_slow_to_start(model, batch) and can_record(world.device)
        graphs = world.first("trunk" if pays else "off")
    model.trunk.graphs = CudaGraphs() if graphs == "trunk" else None
    return graphs


def _lacking_for_graphs(trunk: Trunk, device: torch.device) -> str:
    if device.type != "cuda":
        return "this machine has no GPU that records them"
    waits = any(parameter.device.type != "cuda" for parameter in trunk.blocks.parameters())
    return "frozen blocks wait elsewhere (trunk.placement, trunk.cache)" if waits else ""


@torch.no_grad()
def is_slow_to_start(model: TubeViT, batch: int) -> bool:
    """Whether the host takes more than half as long to start a frozen block as the device to compute it."""
    assert model.trunk is not None
    device, dtype = next(model.trunk.blocks.parameters()).device, COMPUTED_IN[model.trunk.precision]
    block, h, context = sample_of(model, device, batch)
    call = partial(computed(every_token, model.trunk.kernels), block, h.to(dtype), **Context(**context).to(dtype).at(0))
    call()  # compiles it
    began = now(device)
    for _ in range(STARTED):
        call()
    started = perf_counter()
    return 2 * (started - began) > now(device) - began


def _set(models: Collection[TubeViT], kernels: Kernels) -> None:
    for model in models:
        if model.trunk is not None:
            model.trunk.kernels = kernels.trunk
        for part in (model.arm, model.arm.pool):
            if part is not None:
                part.kernels = kernels.arm


def _measured_kernels(models: Collection[TubeViT], device: torch.device, batch: int, trains: bool) -> dict[str, str]:
    """The fastest kernels, measured on one block. All blocks of a model are alike, so all arms of a sweep use the
    same."""
    sample = sample_of(next(iter(models)), device, batch)
    trunk = choose(*sample, trains=False)
    return {"trunk": trunk, "arm": choose(*sample, trains=True) if trains else trunk}


class Sample(NamedTuple):
    """A block in float32, tokens h (B, N, D) that enter it, and what it gets beside them."""

    block: nn.Module
    h: Tensor
    context: Mapping[str, Tensor]


def sample_of(model: TubeViT, device: torch.device, batch: int) -> Sample:
    """The first block of a model, with random tokens of a batch; on a CPU of fewer clips where these are many. (With
    few of them a GPU would only be asked how fast it is called.)"""
    block, frames = model.blocks[0], model.preprocess.frames
    tokens, width = model.count_tokens(frames), model.tokenizer.embed_dim
    clips = max(1, min(batch, LARGEST_BATCH // (tokens * width))) if device.type == "cpu" else batch
    if model.trunk is not None and is_on_meta(block):
        block = load_block(model.trunk.blocks, 0, model.trunk.file)
    with torch.no_grad():
        context = model.tokenizer.context((frames, *model.preprocess.size)).at(0)
    there = {name: tensor.to(device) for name, tensor in context.items()}  # the tokenizer is still on the CPU
    return Sample(block, torch.randn(clips, tokens, width, device=device), there)


def choose(block: nn.Module, h: Tensor, context: Mapping[str, Tensor], trains: bool) -> str:
    """The kernels that compute a block on float32 tokens h (B, N, D) fastest on this machine; ``lean`` if none gains.

    Args:
        trains: of a forward and a backward pass; else of a forward pass without gradients.
    """
    if h.device.type != "cpu" or h.shape[1:].numel() < SMALLEST:
        return "lean"
    names, work = (TRAINED, "forward and backward") if trains else (FORWARD, "forward")
    calls = {kernels: computed(every_token, kernels) for kernels in names}
    return _kept(work, Sample(block, h, context), calls, trains, KERNELS_PAY)


def choose_precision(models: Collection[TubeViT], world: World, batch: int) -> Literal["float32", "bfloat16"]:
    """The precision in which a block of an arm trains fastest on this device: float32, unless bfloat16 gains.

    To be called after :func:`set_kernels`, and before blocks are cast.
    """
    model = next(iter(models))
    exact = computed(every_token, model.arm.kernels)
    calls: dict[str, Call] = {"float32": exact, "bfloat16": partial(_in_bfloat16, exact)}
    work = f"precision of forward and backward, {model.arm.kernels}"
    own = "float32"
    if world.rank == 0:
        own = _kept(work, sample_of(model, world.device, batch), calls, True, PRECISION_PAYS)
    return "bfloat16" if world.first(own) == "bfloat16" else "float32"


def _in_bfloat16(call: Call, block: nn.Module, h: Tensor, **context: Tensor) -> Tensor:
    with torch.autocast(h.device.type, torch.bfloat16):
        return call(block, h, **Context(**context).to(torch.bfloat16).at(0))


def _kept(work: str, sample: Sample, calls: Mapping[str, Call], trains: bool, pays: float) -> str:
    """The fastest of ``calls``, from the file or measured; see :func:`kept_choices`."""
    key, kept = " | ".join([_machine(sample.h.device), _described(sample), work]), read_choices()
    if kept.get(key) in [*calls]:
        return kept[key]
    chosen = fastest(_measured(sample, calls, trains), pays)
    with suppress(*UNWRITABLE):  # then the next run measures again
        kept_choices().parent.mkdir(parents=True, exist_ok=True)
        write_json(kept_choices(), read_choices() | {key: chosen})
    return chosen


def kept_choices() -> Path:
    """The file with the choices of this user, by machine, block and work."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scaleup" / "kernels.json"


def read_choices() -> dict[str, Any]:
    """What the file holds; nothing if it is not there or damaged."""
    with suppress(*UNWRITABLE, ValueError):
        content = json.loads(kept_choices().read_text())
        return content if isinstance(content, dict) else {}
    return {}


def _machine(device: torch.device) -> str:
    """The processor or GPU, and torch, which has the libraries."""
    name = platform.processor()
    if device.type != "cpu":
        name = torch.get_device_module(device).get_device_name()
    elif about := cpu_facts():
        first = re.findall(r"^(?:model name|cpu family|model|stepping)\s*: (.*)$", about, re.MULTILINE)[:4]
        name = f"{' '.join(first)} {torch.backends.cpu.get_cpu_capability()}"
    return f"{name} | torch {torch.__version__}"


def _described(sample: Sample) -> str:
    block, h, context = sample
    weights = {tuple(parameter.shape): None for parameter in block.parameters() if parameter.dim() > 1}
    heads = [part.num_heads for part in block.modules() if hasattr(part, "num_heads")]
    return f"{type(block).__name__}{list(weights)}, heads {heads}, tokens {tuple(h.shape)}, {sorted(context)}"


def _measured(sample: Sample, calls: Mapping[str, Call], trains: bool) -> dict[str, list[float]]:
    """Seconds of each call in each round. On a CPU, time on one thread is measured, because other processes do not
    change it."""
    block, h, context = sample
    work = _pass
    if trains:
        work, block = _passes, copy.deepcopy(block).to(h.device).requires_grad_(True)
    works = {name: partial(work, partial(call, block), h, context) for name, call in calls.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clock = thread_time if h.device.type == "cpu" else partial(now, h.device)
        return measure_in_turns(works, clock, ROUNDS)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _pass(block: Callable[..., Tensor], h: Tensor, context: Mapping[str, Tensor]) -> None:
    block(h, **context)


@torch.enable_grad()
def _passes(block: Callable[..., Tensor], h: Tensor, context: Mapping[str, Tensor]) -> None:
    block(h.clone().requires_grad_(True), **context).sum().backward()


def fastest(seconds: Mapping[str, list[float]], pays: float) -> str:
    """The name that gains most over the first one, in the median of the rounds; the first if no gain reaches ``pays``.

    A gain is noise if the first was faster in more than one round.
    """
    (first, base), *others = seconds.items()
    gains = {name: sorted(one / own for one, own in zip(base, times, strict=True)) for name, times in others}
    clear = {name: median(each) for name, each in gains.items() if each[1] >= 1 and median(each) >= pays}
    return max(clear, key=clear.__getitem__, default=first)
