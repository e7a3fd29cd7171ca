"""A training run: for each batch one pass of the trunk, then an update of every arm."""

from __future__ import annotations

import shutil
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from scaleup import cli
from scaleup import recipe as recipes
from scaleup.adapter import Adapt
from scaleup.checkpoint import load
from scaleup.data.loader import Batch, classes_of, train_loader
from scaleup.errors import UserError
from scaleup.model import TubeViT, fresh
from scaleup.recipe import Arm, Input, Recipe
from scaleup.training import engine
from scaleup.training.frozen import settle
from scaleup.training.metrics import Metrics
from scaleup.training.step import ArmTrainer, draw_mix, now, settled_mean
from scaleup.trunk import Taps


def run(recipe: Recipe, arms: dict[str, Arm], overwrite: bool = False) -> dict[str, Any]:
    """Train ``arms`` together on the recipe's data and write the run directory ``recipe.out``.

    It holds recipe.yaml, metrics.jsonl, tensorboard/, and a model directory for each arm, named as the arm is.

    Returns:
        ``{"out", "steps", "trunk_seconds", "trunk", "arms": {name: {"directory", "frozen_depth", "frozen_parameters",
        "trained_parameters", "adapt", "precision", "arm_seconds", "loss", "alpha"}}}``. Seconds are means over the
        steps after the first few, the loss is the mean over the last tenth of them, alpha is None without a gate; for
        ``trunk`` see :func:`scaleup.training.frozen.settle`.

    Raises:
        UserError: the output exists, an arm does not fit the model, the data does not open, or an arm diverges.
    """
    _check_out(recipe.out, overwrite)
    training = Run(recipe, arms)
    out, leads = Path(recipe.out), training.world.rank == 0
    if leads:
        _begin(out, recipe)
    with closing(Metrics(out, recipe.train.log_every)) if leads else nullcontext() as metrics:
        training.train(metrics)
    result = training.result()
    if leads:
        for name, model in training.models.items():
            model.report = {"training": result["arms"][name], "began_from": model.report}
            model.save_pretrained(out / name)
    return result


def models(recipe: Recipe, arms: dict[str, Arm]) -> dict[str, TubeViT]:
    """A model for each arm; frozen tensors are shared, what trains is each arm's own."""
    heads = classes_of(recipe.data)
    if recipe.model.load is not None:
        template = load(recipe.model.load, placement=recipe.trunk.placement)
    else:
        template = fresh(recipe.model, heads, recipe.seed)
    for name, arm in arms.items():
        if arm.frozen_depth > template.depth:
            raise UserError(
                f"arm {name!r} has frozen_depth {arm.frozen_depth}; the model has {template.depth} blocks, "
                f"allowed are 0 to {template.depth}"
            )
    return {
        name: template.with_arm(
            arm.frozen_depth, arm.gate, heads, recipe.seed, Adapt(arm.adapt, arm.lora_rank, arm.lora_alpha)
        )
        for name, arm in arms.items()
    }


class Run:
    """The arms of a run, and the deepest trunk among theirs, which serves them all."""

    def __init__(self, recipe: Recipe, arms: dict[str, Arm]) -> None:
        self.recipe, self.models = recipe, models(recipe, arms)
        deepest = max(self.models.values(), key=lambda model: model.frozen_depth)
        self.preprocess, self.trunk = deepest.preprocess, deepest.trunk
        self.depths = sorted({model.frozen_depth for model in self.models.values()} - {0})
        self.world = engine.start()
        self.batches = train_loader(
            recipe.data,
            Input(**deepest.config["input"]),
            recipe.seed,
            recipe.train.steps,
            rank=self.world.rank,
            world=self.world.size,
        )
        self.settled = settle(self.models.values(), recipe.trunk, self.world)
        self.trainers = {name: ArmTrainer(name, self.models[name], arms[name], recipe, self.world) for name in arms}
        self.trunk_seconds: list[float] = []

    def train(self, metrics: Metrics | None) -> None:
        """Take every step, with a progress bar and a line of metrics each."""
        with cli.progress("training", self.recipe.train.steps) as advance:
            for step, batch in enumerate(self.batches):
                entry = self.step(step, batch)
                if metrics is not None:
                    metrics.log(entry)
                advance(1, " ".join(f"{name} {arm['loss']:.3f}" for name, arm in entry["arms"].items()))

    def step(self, step: int, batch: Batch) -> dict[str, Any]:
        """One update of every arm; returns the step's line of metrics."""
        device = self.world.device
        pixels = self.preprocess(batch.pixels.to(device))  # (B, 3, T, H, W) or (B, 3, H, W)
        labels = {head: each.to(device) for head, each in batch.labels.items()}
        mix = draw_mix(self.recipe.train.mixup, len(pixels), self.recipe.seed, step)
        inputs = self._inputs(pixels if mix is None else mix.pixels(pixels))
        arms = {
            name: trainer.step(step, inputs[trainer.model.frozen_depth], labels, mix)
            for name, trainer in self.trainers.items()
        }
        return {"step": step, "dataset": batch.dataset, "trunk_seconds": self.trunk_seconds[-1], "arms": arms}

    def _inputs(self, pixels: Tensor) -> dict[int, Tensor | Taps]:
        """What arms read, by frozen depth; where nothing is frozen, the pixels themselves."""
        began = now(self.world.device)
        taps = self.trunk(pixels, self.depths) if self.trunk is not None else {}
        self.trunk_seconds.append(now(self.world.device) - began)
        return {0: pixels, **taps}

    def result(self) -> dict[str, Any]:
        """What :func:`run` returns."""
        out = self.recipe.out
        arms = {
            name: {"directory": str(Path(out) / name), **sizes(trainer.model), **trainer.result()}
            for name, trainer in self.trainers.items()
        }
        seconds = settled_mean(self.trunk_seconds)
        return {
            "out": out,
            "steps": self.recipe.train.steps,
            "trunk_seconds": seconds,
            "trunk": self.settled,
            "arms": arms,
        }


def plan(recipe: Recipe, arms: dict[str, Arm]) -> dict[str, Any]:
    """What a run would do, without a step of it: steps, tokens, and the parameters of each arm."""
    planned = models(recipe, arms)
    model = next(iter(planned.values()))
    return {
        "steps": recipe.train.steps,
        "tokens": {"image": tokens(model, 1), "video": tokens(model, model.preprocess.frames)},
        "arms": {name: sizes(model) for name, model in planned.items()},
    }


def tokens(model: TubeViT, frames: int) -> int:
    """Tokens of an input of so many frames; an image is one frame."""
    height, width = model.preprocess.size
    size = (frames, height, width)
    return model.tokenizer.num_prefix_tokens + sum(spec.tokens(size) for spec in model.tokenizer.specs(size))


def sizes(model: TubeViT) -> dict[str, int]:
    """How many blocks are frozen, and how many parameters are and are not."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return {"frozen_depth": model.frozen_depth, "frozen_parameters": counts[False], "trained_parameters": counts[True]}


def _check_out(out: str, overwrite: bool) -> None:
    if not out:
        raise UserError("the recipe names no directory to write to; set out, for example out=runs/first")
    if Path(out).exists() and not overwrite:
        raise UserError(f"{out!r} exists; name another directory (out=...) or replace the run in it (--overwrite)")
    if Path(out).exists() and not (Path(out) / "recipe.yaml").is_file():
        raise UserError(f"{out!r} is not the directory of a run, it has no recipe.yaml; it will not be replaced")


def _begin(out: Path, recipe: Recipe) -> None:
    """Make the run directory, in the place of an older run."""
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    if recipe.model.load and Path(recipe.model.load).is_dir():  # the run may be read from another directory
        recipe = replace(recipe, model=replace(recipe.model, load=str(Path(recipe.model.load).resolve())))
    recipes.save(recipe, out / "recipe.yaml")
