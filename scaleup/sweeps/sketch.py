"""The models of a run without weights, and the cost of a trunk pass and of a step of each arm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from scaleup.common.distributed import device_type
from scaleup.config.recipe import settle
from scaleup.config.schema import Arm, Recipe
from scaleup.data.loader import open_datasets
from scaleup.model.kernel_choice import SMALLEST
from scaleup.model.kernels import LARGEST
from scaleup.model.trunk import COMPUTED_IN, Taps, Trunk, taps_of
from scaleup.model.tubes import Size
from scaleup.model.tubevit import TubeViT, arm_inputs, depths_of
from scaleup.sweeps.trace import Pass, Trace, affine, empty, empty_tensor
from scaleup.training.arm_trainer import Classifier
from scaleup.training.cache_size import blank_record, cache_bytes
from scaleup.training.run_inputs import data_of, models_on_meta

SETTINGS = (  # settings of an arm that change the cost of its step
    *("frozen_depth", "gate", "adapt", "lora_rank", "precision", "grad_checkpointing"),
    *("pool", "pool_queries", "pool_heads", "pool_depth", "taps"),
)


@dataclass
class CacheSize:
    """The size of a token cache for all arms."""

    views: int  # of each sample
    bytes: dict[str, int]  # by the precision of the tokens


class Sketch:
    """Measures passes by calling the run's modules with tensors without content, once for arms with equal settings."""

    def __init__(self, recipe: Recipe, arms: dict[str, Arm]) -> None:
        recipe, arms = settle(recipe, arms, device_type())
        self.recipe, self.arms, self.models = recipe, arms, models_on_meta(recipe, arms)
        self.datasets = open_datasets(data_of(recipe))
        self.modalities = sorted({shards.modality for shards in self.datasets.values()})
        self.largest = self.modalities[-1]  # a video is larger than an image
        exact = recipe.train.kernels == "library"
        for model in self.models.values():
            model.arm.kernels = "library" if exact else "lean"  # fast has the same operations; see :meth:`scores`
        self._passes: dict[Any, Callable[[int], Pass]] = {}

    def scores(self) -> int:
        """Bytes of attention scores, before and after softmax, that the trunk holds at a time with ``fast`` kernels."""
        model = next(iter(self.models.values()))
        count = model.count_tokens(model.preprocess.frames)
        small = self.recipe.train.kernels == "auto" and count * model.tokenizer.embed_dim < SMALLEST
        if small or self.recipe.train.kernels not in ("auto", "fast") or device_type() != "cpu":
            return 0
        parts: Any = model.blocks[0].modules()
        heads = next(part.num_heads for part in parts if hasattr(part, "num_heads"))
        return 2 * 4 * count**2 * min(heads, max(1, LARGEST // count**2))

    def deepest(self, names: Collection[str]) -> TubeViT:
        """The model with the deepest trunk of all ``names``."""
        return max((self.models[name] for name in names), key=lambda model: model.frozen_depth)

    def size(self, modality: str) -> Size:
        """(T, H, W) of an input."""
        preprocess = next(iter(self.models.values())).preprocess
        return (preprocess.frames if modality == "video" else 1, *preprocess.size)

    def trunk(self, names: Collection[str], modality: str, batch: int) -> Pass:
        """One pass of the trunk that arms share. ``kept`` is what the arms read. Zero if nothing is frozen."""
        model, models = self.deepest(names), [self.models[name] for name in names]
        depths = depths_of(models)
        if model.trunk is None or self.recipe.trunk.cache is not None:
            count = 4 * model.count_tokens(self.size(modality)[0]) * model.tokenizer.embed_dim
            kept = batch * count * (len(depths) + 1 if depths else 0)
            return Pass(0, 0, np.array([kept]), np.zeros(1, int), kept)
        trunk, key = (
            model.trunk,
            ("trunk", frozenset((m.frozen_depth, m.reads_first) for m in models), *depths, modality),
        )
        if key not in self._passes:
            without = empty(_cast(trunk, self.recipe.trunk.precision))
            self._passes[key] = affine(lambda batch: _forward(without, models, _pixels(self.size(modality), batch)))
        return self._passes[key](batch)

    def arm(self, name: str, modality: str, batch: int) -> Pass:
        """Forward and backward of an arm, which reads the output of the trunk."""
        settings, model = self.arms[name], self.models[name]
        key = (modality, *(str(getattr(settings, setting)) for setting in SETTINGS))
        if key not in self._passes:
            self._passes[key] = affine(lambda batch: _step(model, settings, self.size(modality), batch))
        return self._passes[key](batch)

    def cache_bytes(self, views: int) -> CacheSize | None:
        """The size of a token cache; None if an arm freezes nothing."""
        if any(model.trunk is None for model in self.models.values()):
            return None
        depths = depths_of(self.models.values())
        model = next(iter(self.models.values()))
        sizes = dict.fromkeys(("bfloat16", "int8"), 0)
        for precision in sizes:
            for shards in self.datasets.values():
                blank = blank_record(model, shards.modality, depths, precision)
                sizes[precision] += cache_bytes(shards, len(blank), views)
        return CacheSize(views, sizes)


def _pixels(size: Size, batch: int) -> torch.Tensor:
    return empty_tensor(batch, 3, *(size if size[0] > 1 else size[1:]))


def _cast(trunk: Trunk, precision: str | None) -> Trunk:
    """The trunk in the precision in which it computes; with int8 weights, that is bfloat16."""
    cast = copy.deepcopy(trunk)
    if precision not in (None, "auto"):
        cast.precision = precision
        cast.blocks.to(COMPUTED_IN[precision])
    return cast


def _forward(trunk: Trunk, models: Collection[TubeViT], pixels: torch.Tensor) -> Pass:
    with _apart(), Trace() as trace:
        taps = arm_inputs(trunk, pixels, models)
    assert taps
    return Pass(trace.flops, trace.flops, np.array(trace.alive), np.array(trace.gradients), trace.held)


def _step(model: TubeViT, settings: Arm, size: Size, batch: int) -> Pass:
    module = Classifier(empty(model.arm), settings.precision).train()
    module.arm.grad_checkpointing = settings.grad_checkpointing
    inputs = _inputs(model, size, batch)
    with _apart(), Trace() as trace:
        for parameter in module.parameters():
            if parameter.requires_grad:
                trace.watch(parameter)
        logits = module(inputs, list(module.arm.heads))
        classes = torch.zeros(batch, dtype=torch.long)
        loss = torch.stack([F.cross_entropy(each, classes) for each in logits.values()]).mean()
        forward, kept = trace.flops, trace.held
        loss.backward()
    return Pass(forward, trace.flops, np.array(trace.alive), np.array(trace.gradients), kept)


def _inputs(model: TubeViT, size: Size, batch: int) -> torch.Tensor | Taps:
    if model.trunk is None:
        return _pixels(size, batch)
    tokenizer = empty(model.trunk.tokenizer)
    shape = (batch, model.count_tokens(size[0]), tokenizer.embed_dim)
    tokens = {depth: empty_tensor(*shape) for depth in depths_of([model])}
    return taps_of(empty_tensor(*shape), tokens, tokenizer.context(size))[model.frozen_depth]


@contextmanager
def _apart():
    """Inside, torch's own attention layers use operations that can be counted, as they do in training."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def tensors(modules: Collection[nn.Module]) -> dict[int, torch.Tensor]:
    """The parameters and buffers of modules, each once."""
    return {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
