"""The toolkit's whole job at desk scale, on data it makes itself: from shards to an exported adapted model.

Every stage is what the tools do with the recipes in recipes/demo; the run directory holds what each of them writes.
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

from scaleup import recipe
from scaleup.common.files import refuse_existing, write_json
from scaleup.common.text import markdown
from scaleup.common.timing import progress
from scaleup.config import schema
from scaleup.data.shapes import MOTIONS, SHAPES, make_shapes
from scaleup.errors import UserError
from scaleup.evaluate import Evaluation, evaluate, record
from scaleup.model.build import load, load_run
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.conversion import export, parity
from scaleup.recipe import sweep_arms
from scaleup.sweeps import costs
from scaleup.training.run import run as train
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
    """A run of the demo, and the operations of a step of each of its arms."""

    result: RunResult
    gflops: dict[str, float]


@dataclass
class Row:
    """A line of the table; accuracies are shares of 1."""

    name: str
    kind: str  # small | adapted
    frozen_depth: int
    gate: bool
    alpha: float | None
    tubes: str  # none | trained | transplanted | random
    trained_parameters: int
    step_gflop: float
    seconds_share: float  # of those of the costliest arm of the same run, since each run has its own hour and load
    shape: float
    motion: float


@dataclass(kw_only=True)
class Best(Evaluation):
    """The best arm with frozen tubes, and its accuracy with many views."""

    arm: str
    directory: str


@dataclass
class Report:
    """What ``report.json`` holds."""

    seconds: float
    seed: int
    chance: dict[str, float]
    views: str  # of the rows
    rows: list[Row]
    best: Best
    image_max_abs_diff: float  # of the adapted model from its backbone
    reload_max_abs_diff: float  # of the exported model from the best arm
    exported_bytes: int
    transplant: dict[str, float | None]  # tube -> token_max_abs_diff


@dataclass
class Demo:
    """One run of the demo in directory ``out``."""

    out: Path
    seed: int = 0
    changes: Sequence[str] = ()  # to all recipes, e.g. data.batch=32
    stage: int = 0
    began: float = field(default_factory=time.perf_counter)

    def run(self) -> Report:
        """All stages."""
        with self._stage("shards of moving shapes: MP4 and PNG files"):
            total = sum(VIDEOS.values()) + sum(IMAGES.values())
            with progress("writing", total) as advance:
                make_shapes(self.out / "data", VIDEOS, IMAGES, self.seed, frames=24, advance=advance)
        with self._stage("small joint model on images and videos, and the same without tubes"):
            trained = {name: self._train(name) for name in ("small", "patches")}
        with self._stage("large image ViT, on images only"):
            self._train("large")
        with self._stage("transplant, and its control with random tubes"):
            moved = {name: self._transplant(name) for name in ("adapted", "control")}
        with self._stage("sweep of frozen depths, with and without the gate"):
            sweeps = {"transplanted": self._sweep("sweep", start="adapted", out="sweep")}
        with self._stage("the same sweep on the control"):
            sweeps["random"] = self._sweep("control", start="control", out="control-sweep")
        with self._stage("evaluation on the test split"):
            rows = self._rows(trained, sweeps)
            best = self._best()
            scores = evaluate({"best": load(best)}, self.out / "data/videos-test", "4x3", batch=32)["best"]
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
            image_max_abs_diff=moved["adapted"].image_max_abs_diff,
            reload_max_abs_diff=difference,
            exported_bytes=full.bytes,
            transplant={name: tube.token_max_abs_diff for name, tube in moved["adapted"].tubes.items()},
        )

    @contextmanager
    def _stage(self, title: str) -> Iterator[None]:
        self.stage += 1
        elapsed = time.perf_counter() - self.began
        print(f"[{self.stage}/{STAGES}] {title} ({elapsed:.0f} s so far)", file=sys.stderr)
        yield

    def _read(self, name: str, **paths: str) -> schema.Recipe:
        """A recipe of the demo, with this run's directory and seed."""
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
        """The arm with frozen tubes whose motion is best on the validation split."""
        arms = load_run(self.out / "sweep")
        scores = evaluate(arms, self.out / "data/videos-val", "1x1", batch=64)
        frozen = [name for name in arms if arms[name].frozen_depth]
        return self.out / "sweep" / max(frozen, key=lambda name: scores[name].heads["motion"].top1)


def _recorded(models: dict[str, TubeViT], shards: Path, directories: Sequence[Path]) -> dict[str, Evaluation]:
    """Scores of models on shards, kept in their directories, where a report finds them."""
    scores = evaluate(models, shards, "1x1", batch=64)
    for (name, model), directory in zip(models.items(), directories, strict=True):
        record(directory, model, scores[name], {"strides": {}, "precision": "float32"})
    return scores


def _trained(read: schema.Recipe, arms: dict[str, schema.Arm]) -> Trained:
    """Train, and count the operations.

    Raises:
        KeyboardInterrupt: the run was stopped by a signal.
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
        shape=scores.heads["shape"].top1,
        motion=scores.heads["motion"].top1,
    )


def _seconds(result: RunResult, name: str) -> float:
    """Of a step: the arm's own part and its share of the trunk's pass, by blocks."""
    arm, deepest = result.arms[name], max(each.frozen_depth for each in result.arms.values())
    assert arm.arm_seconds is not None
    return arm.arm_seconds + (result.trunk_seconds * arm.frozen_depth / deepest if deepest else 0.0)


def demo(out: Path, seed: int = 0, changes: Sequence[str] = (), overwrite: bool = False) -> Report:
    """Run the demo and write report.json, plot.png and README.md into ``out``."""
    refuse_existing(out, overwrite)
    if out.exists() and not (out / "data").is_dir():
        raise UserError(f"'{out}' is not the directory of a demo, it has no data; it will not be replaced")
    shutil.rmtree(out, ignore_errors=True)
    torch.manual_seed(seed)
    report = Demo(out, seed, changes).run()
    write_json(out / "report.json", asdict(report))
    plot(report, out / "plot.png")
    (out / "README.md").write_text(readme(report))
    return report


def table(report: Report) -> str:
    """The rows as a Markdown table."""
    header = ["model", "tubes", "frozen blocks", "gate alpha", "trained", "GFLOP / step", "seconds", "shape", "motion"]
    rows = []
    for row in report.rows:
        alpha = "-" if row.alpha is None else f"{row.alpha:.2f}"
        cost = f"{row.trained_parameters:,}", f"{row.step_gflop:.0f}", f"{row.seconds_share:.0%}"
        rows.append([row.name, row.tubes, row.frozen_depth, alpha, *cost, f"{row.shape:.1%}", f"{row.motion:.1%}"])
    return "\n".join(markdown(header, rows))


def readme(report: Report) -> str:
    """A short page for the run directory."""
    best = report.best
    score = ", ".join(f"{head} {value.top1:.1%}" for head, value in best.heads.items())
    return f"""# Moving shapes: a small model's tubes in a larger image ViT

{table(report)}

Chance: shape {report.chance["shape"]:.1%}, motion {report.chance["motion"]:.1%}. One view a clip, test split.
GFLOP are those of a step of the arm by itself, by the plan; seconds are shares of the costliest arm's in the same run.
The best arm with frozen tubes on the validation split is `{best.arm}`: {score} with {best.views} views
({best.samples} videos, list {best.list_sha256[:12]}).

- The adapted model answers images like its backbone: max abs diff {report.image_max_abs_diff}.
- Exported in full and reloaded: max abs diff {report.reload_max_abs_diff}.
- The whole demo took {report.seconds:.0f} s (seed {report.seed}).

`plot.png` shows accuracy and cost against frozen depth. Load the result:

```python
import scaleup
model = scaleup.load("exported")
logits = model(x, head="motion")  # x: (B, 3, 16, 32, 32), see model.preprocess
```
"""


def plot(report: Report, path: Path) -> None:
    """Motion accuracy and the operations of a step against frozen depth, transplanted tubes beside random ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rows = sorted((row for row in report.rows if row.kind == "adapted"), key=lambda row: row.frozen_depth)
    for tubes, colour in (("transplanted", "tab:blue"), ("random", "tab:orange"), ("trained", "tab:green")):
        for gate, marker in ((False, "o"), (True, "^")):
            line = [row for row in rows if (row.tubes, row.gate) == (tubes, gate)]
            if line:
                depths = [row.frozen_depth for row in line]
                label = f"{tubes} tubes" + (", gated" if gate else "")
                style = {"marker": marker, "color": colour, "linestyle": "-" if len(line) > 1 else "none"}
                left.plot(depths, [100 * row.motion for row in line], label=label, **style)
                right.plot(depths, [row.step_gflop for row in line], label=label, **style)
    left.axhline(100 * report.chance["motion"], color="grey", linestyle=":", label="chance")
    left.set(xlabel="frozen blocks (of 6)", ylabel="motion, top-1 (%)", ylim=(0, 100), title="Accuracy")
    right.set(xlabel="frozen blocks (of 6)", ylabel="GFLOP of a step, by the plan", ylim=(0, None), title="Cost")
    left.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
