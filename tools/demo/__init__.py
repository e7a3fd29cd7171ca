"""The demo: all steps from shards to an exported adapted model, on small data that it makes itself.

Each stage calls what a tool calls, with the recipes in recipes/demo. The run directory holds the outputs of all stages.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from demo.report import Best, Report, Row, plot, readme
from scaleup.common.errors import UserError
from scaleup.common.files import refuse_existing, write_json
from scaleup.common.timing import progress
from scaleup.config import recipe, schema
from scaleup.config.recipe import sweep_arms
from scaleup.data.shapes import MOTIONS, SHAPES, make_shapes
from scaleup.evaluation.accuracy import Evaluation, evaluate, record
from scaleup.model.build import load, load_run
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.conversion import export, parity
from scaleup.sweeps import costs
from scaleup.training.run import train
from scaleup.training.run_directory import RunResult, StoppedRun
from scaleup.transplants.adapted_model import transplant
from scaleup.transplants.transplant_plan import Options
from scaleup.transplants.transplant_report import TransplantReport

RECIPES = Path(__file__).parents[2] / "recipes" / "demo"
VIDEOS = {"train": 6000, "val": 500, "test": 1000}
IMAGES = {"train": 6000, "val": 500}
CHANCE = {"shape": 1 / len(SHAPES), "motion": 1 / len(MOTIONS)}
STAGES = 8


class Trained(NamedTuple):
    """A run of the demo, and GFLOPs of a step for each of its arms."""

    result: RunResult
    gflops: dict[str, float]


@dataclass
class Demo:
    """The demo in directory ``out``."""

    out: Path
    seed: int = 0
    changes: Sequence[str] = ()  # changes to all recipes, such as data.batch=32
    stage: int = 0
    began: float = field(default_factory=time.perf_counter)

    def run(self) -> Report:
        """Run all stages."""
        with self._stage("shards of moving shapes: MP4 and PNG files"):
            total = sum(VIDEOS.values()) + sum(IMAGES.values())
            with progress("writing", total) as advance:
                make_shapes(self.out / "data", VIDEOS, IMAGES, self.seed, frames=24, advance=advance)
        with self._stage("small joint model on images and videos, and the same without tubes"):
            trained = {name: self._train(name) for name in ("small", "patches")}
        with self._stage("large image ViT, on images only"):
            self._train("large")
        with self._stage("transplant, and its control with random tubes"):
            transplants = {name: self._transplant(name) for name in ("adapted", "control")}
        with self._stage("sweep of frozen depths, with and without the gate"):
            sweeps = {"transplanted": self._sweep("sweep", start="adapted", out="sweep")}
        with self._stage("the same sweep on the control"):
            sweeps["random"] = self._sweep("control", start="control", out="control-sweep")
        with self._stage("evaluation on the test split"):
            rows = self._rows(trained, sweeps)
            best = self._best()
            test, views = self.out / "data/videos-test", "4x1"  # frames are square, so three crops would be the same
            scores = evaluate({"best": load(best)}, test, views, batch=32)["best"]
        with self._stage("export and reload"):
            full = export(best, "full", self.out / "exported")
            difference = max(parity(load(best), load(self.out / "exported")).values())
        return Report(
            seconds=time.perf_counter() - self.began,
            seed=self.seed,
            chance=CHANCE,
            views="1x1",
            rows=rows,
            best=Best(arm=best.name, directory=str(best), **vars(scores)),
            image_max_abs_diff=transplants["adapted"].image_max_abs_diff,
            reload_max_abs_diff=difference,
            exported_bytes=full.bytes,
            transplant={name: tube.token_max_abs_diff for name, tube in transplants["adapted"].tubes.items()},
        )

    @contextmanager
    def _stage(self, title: str) -> Iterator[None]:
        self.stage += 1
        elapsed = time.perf_counter() - self.began
        print(f"[{self.stage}/{STAGES}] {title} ({elapsed:.0f} s so far)", file=sys.stderr)
        yield

    def _read(self, name: str, **paths: str) -> schema.Recipe:
        """A recipe of the demo, with the run's changes, its seed, and ``paths`` inside its directory."""
        changes = [*self.changes, f"seed={self.seed}", *(f"{key}={self.out / value}" for key, value in paths.items())]
        return recipe.load(RECIPES / f"{name}.yaml", changes)

    def _train(self, name: str) -> Trained:
        videos = {} if name == "large" else {"data.train.videos.shards": "data/videos-train"}
        read = self._read(name, out=name, **videos, **{"data.train.images.shards": "data/images-train"})
        return _trained(read, {"model": read.arm})

    def _sweep(self, name: str, start: str, out: str) -> Trained:
        paths = {"out": out, "model.load": start, "data.train.videos.shards": "data/videos-train"}
        read = self._read(name, **paths)
        return _trained(read, sweep_arms(read))

    def _transplant(self, name: str) -> TransplantReport:
        small, large = str(self.out / "small/model"), str(self.out / "large/model")
        options = Options(seed=self.seed, random_tubes=name == "control")
        return transplant(small, large, self.out / name, options, self.out / "data/videos-train")

    def _rows(self, trained: Mapping[str, Trained], sweeps: Mapping[str, Trained]) -> list[Row]:
        test = self.out / "data/videos-test"
        rows = []
        for name, run in trained.items():
            scores = _recorded({name: load(self.out / name / "model")}, test, [self.out / name / "model"])[name]
            tubes = "none" if name == "patches" else "trained"
            title = "2D patches only" if name == "patches" else "small joint model"
            rows.append(_row(title, "model", "small", tubes, run, scores))
        for tubes, run in sweeps.items():
            out = run.result.out
            models = load_run(out)
            for name, scores in _recorded(models, test, [Path(out, name) for name in models]).items():
                kind = tubes if run.result.arms[name].frozen_depth else "trained"
                rows.append(_row(name, name, "adapted", kind, run, scores))
        return rows

    def _best(self) -> Path:
        """The directory of the arm with frozen blocks that has the best motion accuracy on the validation split."""
        arms = load_run(self.out / "sweep")
        scores = evaluate(arms, self.out / "data/videos-val", "1x1", batch=64)
        frozen = [name for name in arms if arms[name].frozen_depth]
        return self.out / "sweep" / max(frozen, key=lambda name: scores[name].heads["motion"].lead)


def _recorded(models: dict[str, TubeViT], shards: Path, directories: Sequence[Path]) -> dict[str, Evaluation]:
    """Evaluate models on shards, and write the scores into the models' directories, where ``report`` reads them."""
    scores = evaluate(models, shards, "1x1", batch=64)
    for (name, model), directory in zip(models.items(), directories, strict=True):
        record(directory, model, scores[name], {"strides": {}, "precision": "float32"})
    return scores


def _trained(read: schema.Recipe, arms: dict[str, schema.Arm]) -> Trained:
    """Train, and count the operations of a step.

    Raises:
        KeyboardInterrupt: a signal stopped the run.
    """
    flops, result = costs.step_flops(read, arms), train(read, arms)
    if isinstance(result, StoppedRun):
        raise KeyboardInterrupt
    return Trained(result, {name: value / 1e9 for name, value in flops.items()})


def _row(title: str, name: str, kind: str, tubes: str, run: Trained, scores: Evaluation) -> Row:
    arm, seconds = run.result.arms[name], {other: _seconds(run.result, other) for other in run.result.arms}
    return Row(
        name=title,
        kind=kind,
        frozen_depth=arm.frozen_depth,
        gate=arm.alpha is not None,
        alpha=arm.alpha,
        tubes=tubes,
        trained_parameters=arm.trained_parameters,
        step_gflop=run.gflops[name],
        seconds_share=seconds[name] / max(seconds.values()),
        shape=scores.heads["shape"].lead,
        motion=scores.heads["motion"].lead,
    )


def _seconds(result: RunResult, name: str) -> float:
    """Seconds of a step: those of the arm, and its share of the trunk's, by the number of blocks."""
    arm, deepest = result.arms[name], max(arm.frozen_depth for arm in result.arms.values())
    assert arm.arm_seconds is not None
    return arm.arm_seconds + (result.trunk_seconds * arm.frozen_depth / deepest if deepest else 0.0)


def _is_demo(out: Path) -> bool:
    """Whether ``out`` has the data of a demo, which appear when they are whole, or only what they are written to."""
    if (out / "data").is_dir():
        sets = {*(f"videos-{split}" for split in VIDEOS), *(f"images-{split}" for split in IMAGES)}
        return {path.name for path in (out / "data").iterdir()} == sets
    return out.is_dir() and all(path.name.startswith(".data-") for path in out.iterdir())


def demo(out: Path, seed: int = 0, changes: Sequence[str] = (), overwrite: bool = False) -> Report:
    """Run the demo and write report.json, plot.png and README.md into ``out``."""
    refuse_existing(out, overwrite)
    if out.exists() and not _is_demo(out):
        raise UserError(f"'{out}' has other data than a demo, or none, and will not be replaced; name another")
    shutil.rmtree(out, ignore_errors=True)
    torch.manual_seed(seed)
    report = Demo(out, seed, changes).run()
    write_json(out / "report.json", asdict(report))
    plot(report, out / "plot.png")
    (out / "README.md").write_text(readme(report))
    return report
