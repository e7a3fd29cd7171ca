"""A training run: for each batch one pass of the trunk, then an update of every arm."""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scaleup.common.distributed import join
from scaleup.common.errors import UserError
from scaleup.common.processes import environment
from scaleup.common.timing import Span, late_mean, progress
from scaleup.config import recipe as recipes
from scaleup.config.schema import Arm, Recipe, Trunk, run_steps
from scaleup.model.build import prepare_trunks
from scaleup.model.compiled import STOPWATCH
from scaleup.model.kernel_choice import choose_precision, set_compile, set_graphs, set_kernels
from scaleup.model.kernels import set_products
from scaleup.training import input_hashes, run_directory, run_inputs
from scaleup.training.arm_trainer import ArmTrainer, read_numbers, whole_step
from scaleup.training.feed import Cached, Fed, Live
from scaleup.training.log import Entry, Metrics, Recent, line
from scaleup.training.loggers import refuse_missing
from scaleup.training.run_directory import Checkpoint, Checkpoints, RunResult, StoppedRun
from scaleup.training.run_inputs import build_models
from scaleup.training.stop import Stop, exit_code
from scaleup.training.validation import Validation


def train(
    recipe: Recipe, arms: dict[str, Arm] | None = None, overwrite: bool = False, stop_after: float | None = None
) -> RunResult | StoppedRun:
    """Train arms together on the recipe's data and write the run directory ``recipe.out``.

    The directory has recipe.yaml, metrics.jsonl and what ``train.log`` names (tensorboard/); checkpoints/ until the run
    is complete; then a model directory for each arm, with the arm's name. If it has an unfinished run of the same
    recipe, this run is resumed from its newest complete checkpoint. With the same number of ranks, it ends with the
    same weights, bit for bit. The files that it reads must not have changed.

    Args:
        arms: by name; by default the recipe's one arm, as ``model``.
        overwrite: replace an existing run.
        stop_after: after this many seconds the run saves a checkpoint and ends, as it does on SIGTERM and SIGINT.

    Raises:
        UserError: a logger has no package or does not begin, the output is something else, an arm does not fit the
            model, the data does not open, the only arm diverges, or another rank no longer answers.
    """
    refuse_missing(recipe.train.log)
    resumes, out = run_directory.check_resumable(recipe, overwrite), Path(recipe.out)
    arms, world = arms or {"model": recipe.arm}, join()
    leads, stop = world.rank == 0, Stop(world, stop_after)
    saved = Checkpoints(out / "checkpoints", recipe.train.keep)
    with world.together(), ExitStack() as stack:
        if leads:
            stack.enter_context(run_directory.lock_run(out))
            resumes = run_directory.check_resumable(recipe, overwrite)  # it may be complete by now
        checkpoint = world.first(saved.newest() if resumes and leads else None)
        training = Run(recipe, arms, checkpoint)
        stack.callback(training.close)
        if leads and not resumes:
            run_directory.begin(training.recipe, overwrite)
            stack.enter_context(run_directory.lock_run(out))
        if leads and resumes:
            saved.clear(training.done)
            _say_resumed(training, checkpoint)
        metrics = None
        if leads:
            settings = recipes.resolved(training.recipe)
            metrics = Metrics(out, recipe.train.log_every, training.done, recipe.train.log, settings)
            stack.enter_context(closing(metrics))
            training.remember(metrics.kept)
        stack.enter_context(stop)
        early = training.train(metrics, saved, stop)
        if not early and leads:
            run_directory.write(training.result(), training.models, training.lists)
            shutil.rmtree(saved.directory, ignore_errors=True)
    if early:
        return StoppedRun(recipe.out, training.steps, training.done, exit_code(early))
    return training.result()


class Run:
    """The arms of a run and their feed, after ``done`` steps."""

    def __init__(self, recipe: Recipe, arms: dict[str, Arm], checkpoint: Checkpoint | None = None) -> None:
        self.world = join()
        recipe, arms = recipes.settle(recipe, arms, self.world.device.type)
        self.recipe, self.arms, self.models = recipe, arms, build_models(recipe, arms)
        run_inputs.refuse_uneven(recipe, self.world.size)
        set_products(self.world.device, recipe.train.tf32, recipe.train.deterministic)
        self.done = checkpoint.step if checkpoint else 0
        self.sources, self.lists = input_hashes.hash_inputs(recipe), run_inputs.list_inputs(recipe)
        if checkpoint is not None:
            input_hashes.refuse_changed(checkpoint.state["sources"], self.sources)
        feed = Live if recipe.trunk.cache is None else Cached
        self.feed: Live | Cached = feed(recipe, self.models.values(), self.world, self.done)
        self.pass_size = recipe.data.batch // self.world.size // recipe.train.accumulate
        trunk, kernels, compile = recipe.trunk, recipe.train.kernels, recipe.train.compile
        if checkpoint is not None:  # ``auto`` measures, and may choose differently the next time
            trunk = replace(trunk, precision=checkpoint.state["precision"])
            kernels, compile = checkpoint.state["kernels"], checkpoint.state.get("compile", "off")
        if recipe.train.zero_stage == 3:  # programs take whole weights
            compile = "off"
        if compile == "blocks" and kernels == "auto":  # nothing is left to measure
            kernels = "lean"
        self.kernels = set_kernels(self.models.values(), kernels, self.world, self.pass_size)
        self.arms = arms = self._with_precisions(arms, checkpoint)
        valid = recipe.data.valid if recipe.train.valid_every else None
        self.about_trunk = self._prepare(trunk, valid is not None)
        self.compile = set_compile(self.models.values(), compile, self.world)
        self.graphs = set_graphs(self.models.values(), recipe.train.cuda_graphs, self.world, self.pass_size)
        weights = {head: each.to(self.world.device) for head, each in run_inputs.class_weights(recipe).items()}
        how = recipe, self.world, weights
        self.trainers = {name: ArmTrainer(name, self.models[name], arm, *how) for name, arm in arms.items()}
        self.steps = run_steps(arms.values(), recipe.train)
        shares, batch = run_inputs.guesses(recipe), recipe.data.batch
        self.recent = {n: Recent(n, shares, batch, each.steps, each.warmup) for n, each in self.trainers.items()}
        self.validation = valid and Validation(recipe, valid, self.models.values(), self.world)
        self.trunk_seconds: list[float] = []
        if checkpoint is not None:
            self._restore(checkpoint)

    def _with_precisions(self, arms: dict[str, Arm], checkpoint: Checkpoint | None) -> dict[str, Arm]:
        """The arms, with the precision that is measured or was chosen before in place of ``auto``."""
        unsettled = [name for name, arm in arms.items() if arm.precision == "auto"]
        if checkpoint is not None:
            stored = checkpoint.state["arms"]
            chosen = {name: stored[name]["precision"] for name in unsettled if name in stored}
        else:
            fastest = choose_precision(self.models.values(), self.world, self.pass_size) if unsettled else None
            chosen = dict.fromkeys(unsettled, fastest)
        return arms | {name: replace(arms[name], precision=precision) for name, precision in chosen.items()}

    def _prepare(self, trunk: Trunk, validates: bool) -> dict[str, Any]:
        """Prepare the trunk. With a token cache, only validation uses it, and its blocks are not moved."""
        made = self.feed.made if isinstance(self.feed, Cached) else None
        if made:
            trunk = replace(trunk, precision=made["trunk"]["precision"], placement="host")
        models = self.models.values()
        prepared = prepare_trunks(models, trunk, self.world, self.pass_size) if validates or not made else None
        about = asdict(prepared) if prepared else {}
        if made:
            cache = {"directory": self.recipe.trunk.cache} | {key: made[key] for key in ("views", "precision", "seed")}
            about = {"precision": trunk.precision} | about | {"cache": cache}
        return about

    def close(self) -> None:
        for trainer in self.trainers.values():
            trainer.engine.close()

    @property
    def running(self) -> dict[str, ArmTrainer]:
        """The arms that still train."""
        return {name: trainer for name, trainer in self.trainers.items() if trainer.standing.ended is None}

    def train(self, metrics: Metrics | None = None, saved: Checkpoints | None = None, stop: Stop | None = None) -> int:
        """Train until all arms have ended, with a progress bar and a line of metrics for each step.

        Returns:
            0, or the reason of ``stop`` if the run ended before its last step.
        """
        every, feed, reason = self.recipe.train.save_every, iter(self.feed), 0
        with progress("training", self.steps) as advance:
            advance(self.done)
            while self.running and not reason:
                self.feed.models = [arm.model for arm in self.running.values()]
                entry = self.step(self.done, next(feed))
                self.done += 1
                self._judge(entry["arms"])
                if metrics is not None:
                    metrics.log(entry)
                advance(1, line(self.recent[name] for name in entry["arms"]))
                reason = stop.reason() if stop is not None else 0
                if saved is not None and (reason or not self.running or (every and self.done % every == 0)):
                    self.save(saved, metrics)
        return reason if self.running else 0

    def _judge(self, entries: dict[str, Entry]) -> None:
        """Validate the arms that are due, add the results to their metrics, and end arms after their last step."""
        validated = self.validation(self.running, self.done) if self.validation else {}
        for name, valid in validated.items():
            entries[name]["valid"] = valid
            for sentence in self.recent[name].compare(self.done, valid):
                self._say(sentence)
        for arm in self.running.values():
            if arm.steps == self.done:
                arm.end("complete", self.done)

    def save(self, saved: Checkpoints, metrics: Metrics | None) -> None:
        """Write a checkpoint. If that fails, print a sentence; the run continues. All ranks must call."""
        tensors = {name: trainer.gather() for name, trainer in self.trainers.items()}
        if metrics is None:
            return
        try:
            metrics.sync()
            standings = {name: asdict(trainer.standing) for name, trainer in self.trainers.items()}
            saved.save(self.done, {**self._settings(), "standings": standings}, tensors)
        except (UserError, OSError) as error:
            print(f"the checkpoint of step {self.done} is not saved, training goes on: {error}", file=sys.stderr)

    def _settings(self) -> dict[str, Any]:
        """The content of a checkpoint except tensors."""
        return {
            "arms": {name: asdict(arm) for name, arm in self.arms.items()},
            "precision": self.about_trunk.get("precision", "float32"),
            "kernels": asdict(self.kernels),
            "compile": self.compile,
            "ranks": self.world.size,
            "sources": self.sources,
        }

    def _restore(self, checkpoint: Checkpoint) -> None:
        if (stored := checkpoint.state["arms"]) != (own := self._settings()["arms"]):
            raise UserError(f"'{checkpoint.directory}' is of other arms: {stored} there and {own} here")
        for name, trainer in self.trainers.items():
            trainer.restore(checkpoint.tensors(name), checkpoint.state["standings"][name])

    def remember(self, entries: list[Entry]) -> list[str]:
        """Count steps into the result, from their lines of metrics; returns a sentence on each new head at chance."""
        sentences = []
        for entry in entries:
            self.trunk_seconds.append(entry["trunk_seconds"])
            for name, arm in entry["arms"].items():
                self.trainers[name].remember(arm)
                sentences += self.recent[name].add(entry["step"], entry["dataset"], arm["heads"])
                if "valid" in arm:  # of a run that goes on
                    self.recent[name].compare(entry["step"] + 1, arm["valid"])
        return sentences

    def step(self, step: int, fed: Fed) -> Entry:
        """One update of every arm that has not ended; returns the step's line of metrics. An arm of a sweep
        that diverges ends alone; one that is no sweep's is a UserError."""
        size = fed.size // self.recipe.train.accumulate
        entries = []
        for rows in (slice(start, start + size) for start in range(0, fed.size, size)):
            with Span(self.world.device) as span:
                inputs = fed.inputs(rows)
            arms = {
                name: trainer.step(step, inputs[trainer.model.frozen_depth], fed.labels, fed.mix, rows)
                for name, trainer in self.running.items()
            }
            entries.append({"step": step, "dataset": fed.dataset, "trunk_seconds": span, "arms": arms})
        self.feed.batches.fetch()  # while a GPU computes
        entry = whole_step(read_numbers(entries))
        for name, trainer in self.running.items():
            if (fault := trainer.fault(step, entry["arms"][name])) is not None:
                self._lose(trainer, step, fault)
                del entry["arms"][name]
        for sentence in self.remember([entry]):
            self._say(sentence)
        if self.compile != "off" and (seconds := STOPWATCH.take()):
            self._say(f"step {step}: blocks were compiled in {seconds:.0f} s, which torch keeps for the next run")
        return entry

    def _lose(self, trainer: ArmTrainer, step: int, fault: str) -> None:
        if len(self.trainers) == 1 and self.trainers.keys() != self.recipe.arms.keys():
            raise UserError(fault)
        trainer.end("diverged", step)
        self._say(fault + ("; the other arms go on" if self.running else ""))

    def _say(self, sentence: str) -> None:
        if self.world.rank == 0:
            print(sentence, file=sys.stderr)

    def result(self) -> RunResult:
        """The result of a run whose arms have all ended."""
        out, trainers = Path(self.recipe.out), self.trainers.items()
        arms = {name: trainer.result(str(out / name), self.recent[name]) for name, trainer in trainers}
        return RunResult(
            out=self.recipe.out,
            steps=self.steps,
            trunk_seconds=late_mean(self.trunk_seconds),
            trunk=self.about_trunk,
            kernels=asdict(self.kernels),
            compile=self.compile,
            cuda_graphs=self.graphs,
            arms=arms,
            environment=environment(),
            exit=int(any(arm.diverged is not None for arm in arms.values())),
        )


def _say_resumed(training: Run, checkpoint: Checkpoint | None) -> None:
    ranks, before = training.world.size, checkpoint.state["ranks"] if checkpoint else training.world.size
    reasons = [f"ranks: {ranks} instead of {before}"] if ranks != before else []
    if training.world.device.type != "cpu" and not training.recipe.train.deterministic:
        reasons.append("train.deterministic is false")
    other = f"; {', '.join(reasons)}, so within rounding, not bit for bit" if reasons else ""
    print(f"resuming at step {training.done} of {training.steps}{other}", file=sys.stderr)
