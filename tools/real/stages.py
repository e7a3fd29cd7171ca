"""The stages of ``make real``: material, shards, small model, transplant, token cache, arms, frames, figures.

Each stage leaves its figures in ``OUT/stages/NAME.json``, and is skipped where this file is. So a call that was
interrupted goes on where it stopped; training and caches go on inside a stage.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from real import frames
from real.emoji import draw_animals
from real.exact import compare_precisions, difference_to_timm
from real.films import Films
from real.frames import CHEAP, DEAR, DENSE, LATE, FrameReader, FrameTokens, Reading
from real.groups import ABLATIONS, DONORS, GROUPS, TUBES, Group
from real.image_features import compare_features
from real.material import MODEL, Material, fetch_material
from real.rows import Real, Row, join_seeds, row_of_frames, row_of_model
from scaleup.cli.cache import frozen_depths
from scaleup.common.distributed import join
from scaleup.common.files import read_json, write_json
from scaleup.common.processes import environment
from scaleup.common.timing import progress
from scaleup.config import recipe as recipes
from scaleup.config.schema import Arm, Recipe, Trunk
from scaleup.data.generated import write_splits
from scaleup.data.scenes import Material as Pictures
from scaleup.data.scenes import Scenes
from scaleup.data.shards import Shards
from scaleup.evaluation.accuracy import evaluate
from scaleup.model.build import load, load_run, prepare_trunks
from scaleup.model.kernel_choice import set_kernels
from scaleup.model.tubevit import TubeViT
from scaleup.outputs import report_page
from scaleup.training import token_cache
from scaleup.training.run import train
from scaleup.training.run_directory import StoppedRun, is_complete
from scaleup.transplants.adapted_model import transplant
from scaleup.transplants.transplant_plan import Options
from scaleup.transplants.transplant_report import TransplantReport

RECIPES = Path(__file__).parents[2] / "recipes" / "real"
VIDEOS = {"scenes": {"train": 3000, "val": 300, "test": 600}, "films": {"train": 1000, "val": 200, "test": 400}}
IMAGES = {"scenes": {"train": 3000}, "films": {}}
HEADS = {  # of the test sets -> labels
    "scenes": {"object": "object", "motion": "motion", "event": "event", "camera": "camera"},
    "films": {"film_motion": "motion", "film": "film"},
}


@dataclass
class Stages:
    """``make real`` in the directory ``out``.

    Args:
        material: where the material is, or is fetched to.
        seeds: of the late arms and of the readings of frames, but dear ones, which have the first seed alone. Small
            models have the first seed alone too, unless ``ablations``; the first one's tubes go into the ViT.
        changes: to all recipes, such as ``train.steps=60``.
        ablations: whether the groups of ABLATIONS, all small models and the readings DEAR are run too.
        backbone: timm's name of the model whose weights are in the material.
        size: of clips, pixels of a side.
        sides: at which images are compared with timm's own model.
        videos, images: samples of each set.
    """

    out: Path
    material: Path
    seeds: Sequence[int] = (0,)
    changes: Sequence[str] = ()
    ablations: bool = False
    backbone: str = MODEL
    size: int = 112
    sides: Sequence[int] = (112, 126, 224, 518)
    videos: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: VIDEOS)
    images: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: IMAGES)

    def run(self) -> Real:
        """Run what is missing, and return all figures."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._stage("material", lambda: {"weights": str(fetch_material(self.material).weights)})
        clips = self._stage("shards", self._write_shards)
        groups = GROUPS | (ABLATIONS if self.ablations else {})
        donors = DONORS if self.ablations else ["small"]
        rows = [self._stage(donor, partial(self._train_donor, donor, donor, self.seeds[0])) for donor in donors]
        tubes = self._stage("transplant", self._transplant)
        exact = self._stage("exact", self._compare_images)
        self._stage("frames", partial(self._encode_frames, frames.FRAMES))
        if self.ablations:
            rows += self._ablate_donors()
            self._stage("frames16", partial(self._encode_frames, frames.DENSE_FRAMES))
        for seed in self.seeds:
            for name, group in groups.items():
                rows += self._stage(f"arms-{name}-{seed}", partial(self._arms, name, group, seed))
            for reading in self._readings(seed):
                rows.append(self._stage(f"{reading.name}-{seed}", partial(self._read_frames, reading, seed)))
        precisions = self._stage("precisions", self._precisions)
        features = self._stage("features", self._compare_features)
        self._stage("report", self._report)
        seconds = {file.stem: read_json(file)["seconds"] for file in (self.out / "stages").glob("*.json")}
        chance = {head: 1 / len(names) for head, names in self._classes().items()}
        every, seeds = join_seeds([Row(**row) for row in rows]), list(self.seeds)
        return Real(every, seeds, chance, clips, tubes, exact, precisions, features, seconds, environment())

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        """The figures of a stage, from its file or by doing its work."""
        file = self.out / "stages" / f"{name}.json"
        if not file.exists():
            print(f"{name}: begins", file=sys.stderr)
            began, figures = time.perf_counter(), work()
            file.parent.mkdir(exist_ok=True)
            write_json(file, {"seconds": time.perf_counter() - began, "figures": figures})
        return read_json(file)["figures"]

    def _write_shards(self) -> dict[str, int]:
        """Shards of scenes and of films; the number of clips or images of each set."""
        material, pictures = Material.of(self.material), self.out / "pictures"
        if not pictures.exists():
            draw_animals(material.emoji, pictures / "objects")
            for name, folder in (("photos", material.photos), ("films", material.films)):
                (pictures / name).symlink_to(folder.resolve())
        scenes = Scenes(Pictures.of(pictures), size=self.size)
        sets: dict[str, Scenes | Films] = {"scenes": scenes, "films": Films(material.films, size=self.size)}
        sizes: dict[str, int] = {}
        for name, generate in sets.items():
            out, videos, images = self.out / "data" / name, self.videos[name], self.images[name]
            if not out.exists():
                with progress(name, sum(videos.values()) + sum(images.values())) as advance:
                    write_splits(out, generate, generate.classes, videos, images, advance=advance)
            for kind, counts in (("videos", videos), ("images", images)):
                sizes |= {f"{name}, {kind}, {split}": count for split, count in counts.items()}
        return sizes

    def _read(self, name: str, changes: Sequence[str] = (), **paths: str) -> Recipe:
        """A recipe, with paths inside ``out``, these changes and the run's."""
        data = {f"data.train.{key}.shards": f"data/{key}/videos-train" for key in ("scenes", "films")}
        inside = [f"{key}={self.out / value}" for key, value in (data | paths).items()]
        return recipes.load(RECIPES / f"{name}.yaml", [*inside, *changes, *self.changes])

    def _ablate_donors(self) -> list[dict[str, Any]]:
        """All small models with the other seeds."""
        names = [(f"{donor}-{seed}", donor, seed) for seed in self.seeds[1:] for donor in DONORS]
        return [self._stage(name, partial(self._train_donor, name, donor, seed)) for name, donor, seed in names]

    def _train_donor(self, out: str, donor: str, seed: int) -> dict[str, Any]:
        paths = {"data.train.images.shards": "data/scenes/images-train", "data.valid.shards": "data/scenes/videos-val"}
        recipe = self._read("small", DONORS[donor].changes, out=out, **paths)
        recipe.seed = seed
        _train(recipe, {"model": recipe.arm})
        model = load(self.out / out / "model")
        scores = self._evaluate({"model": model}, Trunk())["model"]
        return asdict(row_of_model(donor, "small", model, scores))

    def _transplant(self) -> dict[str, Any]:
        """The small model's tubes in the pretrained ViT; the report on each tube."""
        return {name: asdict(tube) for name, tube in self._move_tubes("transplanted").tubes.items()}

    def _move_tubes(self, tubes: str) -> TransplantReport:
        frozen_depth = recipes.sweep_arms(self._read("sweep"))["last3"].frozen_depth
        return self._move(tubes, self.size, TUBES[tubes].donor, frozen_depth, **TUBES[tubes].options)

    def _move(
        self, out: str, side: int, donor: str = "small", frozen_depth: int | None = None, **options: Any
    ) -> TransplantReport:
        weights = str(Material.of(self.material).weights)
        choices = Options(weights, frozen_depth, size=(side, side), overwrite=True, **options)
        clips = self.out / "data/films/videos-train" if side == self.size else None
        return transplant(str(self.out / donor / "model"), f"timm:{self.backbone}", self.out / out, choices, clips)

    def _compare_images(self) -> dict[str, float]:
        """At each side, the largest difference between the adapted model's features of photographs and timm's."""
        material, differences = Material.of(self.material), {}
        for side in self.sides:
            self._move(f"side-{side}", side)
            model = load(self.out / f"side-{side}")
            differences[str(side)] = difference_to_timm(model, self.backbone, material, side)
        return differences

    def _arms(self, name: str, group: Group, seed: int) -> list[dict[str, Any]]:
        """The arms of a group, from a token cache."""
        changes = [change.format(out=self.out) for change in group.changes]
        recipe = self._read("sweep", changes, **{"model.load": group.tubes})
        if group.arms is not None:
            recipe.arms = {arm: recipe.arms[arm] for arm in group.arms}
        if not (self.out / group.tubes).exists():
            self._move_tubes(group.tubes)
        if not (cache := self.out / f"cache-{group.cache or group.tubes}").exists():
            token_cache.make(recipe, frozen_depths(recipe), cache)
        recipe.trunk.cache, recipe.out, recipe.seed = str(cache), str(self.out / f"sweep-{name}-{seed}"), seed
        arms = recipes.sweep_arms(recipe)
        _train(recipe, arms)
        models = load_run(recipe.out)
        scores = self._evaluate(models, recipe.trunk)
        return [asdict(row_of_model(arm, name, models[arm], scores[arm])) for arm in arms]

    def _evaluate(self, models: dict[str, TubeViT], trunk: Trunk) -> dict[str, dict[str, float]]:
        """Top-1 of each head on the test sets, by model."""
        top1: dict[str, dict[str, float]] = {name: {} for name in models}
        learnt = next(iter(models.values())).config.heads
        for data, labels in HEADS.items():
            if heads := {head: label for head, label in labels.items() if head in learnt}:
                scores = evaluate(models, self.out / f"data/{data}/videos-test", "1x1", heads, trunk=trunk)
                for name, each in scores.items():
                    top1[name] |= {head: score.lead for head, score in each.heads.items()}
        return top1

    @property
    def _depths(self) -> tuple[int, int]:
        """The depths at which the tokens of frames are kept: below the late blocks, and after all blocks."""
        arms = recipes.sweep_arms(self._read("sweep"))
        return arms["last3"].frozen_depth, arms["head"].frozen_depth

    def _encode_frames(self, count: int) -> dict[str, int]:
        """Compute the tokens of ``count`` frames of all clips that train or test; the number of clips of each set."""
        adapted = load(self.out / "transplanted")
        whole, sizes = adapted.with_arm(adapted.depth, False, {}).eval(), {}
        recipe = self._read("sweep")
        set_kernels([whole], recipe.train.kernels, world := join(), frames.BATCH, trains=False)
        prepare_trunks([whole], recipe.trunk, world, frames.BATCH)
        for name, heads in HEADS.items():
            for split in ("train", "test"):
                shards, out = self.out / f"data/{name}/videos-{split}", self._frames_of(count) / f"{name}-{split}"
                sizes[f"{name}-{split}"] = frames.encode(whole, shards, heads, self._depths, out, count)
        return sizes

    def _read_frames(self, reading: Reading, seed: int) -> dict[str, Any]:
        """A reading of single frames, with the sweep's steps, batches and rates."""
        recipe = self._read("sweep")
        recipe.seed, arms = seed, recipes.sweep_arms(recipe)
        arm = arms["last3_attentive" if reading.kind == "late" else "attentive"]
        adapted = load(self.out / "transplanted")
        reader = FrameReader.of(adapted, reading, arm, self._classes(), seed)
        frames.train(reader, arm.frozen_depth, self._frames("train", reading), recipe, arm)
        top1: dict[str, float] = {}
        for test in self._frames("test", reading).values():
            top1 |= frames.accuracy(reader, arm.frozen_depth, test)
        whole = adapted.with_arm(adapted.depth, False, {}).eval()
        return asdict(row_of_frames(whole, reader, arm.frozen_depth, top1))

    def _readings(self, seed: int) -> list[Reading]:
        """Those of a seed: the dear ones have the first seed alone, and some belong to the ablations."""
        every = CHEAP + DENSE if self.ablations else CHEAP
        dear = [LATE, *DEAR] if self.ablations else [LATE]
        return every + dear if seed == self.seeds[0] else every

    def _frames(self, split: str, reading: Reading) -> dict[str, FrameTokens]:
        folder = self._frames_of(reading.frames)
        return {name: FrameTokens.read(folder / f"{name}-{split}", self._depths) for name in HEADS}

    def _frames_of(self, count: int) -> Path:
        """The directory with the tokens that a reading of ``count`` frames needs."""
        return self.out / ("frames" if count <= frames.FRAMES else f"frames{frames.DENSE_FRAMES}")

    def _precisions(self) -> dict[str, Any]:
        """The attentive arm on real films, with its frozen blocks in each precision."""
        arm, films = self.out / f"sweep-transplanted-{self.seeds[0]}/attentive", self.out / "data/films/videos-test"
        moved = compare_precisions(arm, films, "film_motion", HEADS["films"]["film_motion"])
        return {precision: asdict(each) for precision, each in moved.items()}

    def _compare_features(self) -> dict[str, Any]:
        """What an image's features tell of objects, in each precision and each exported program."""
        known, asked = self.out / "data/scenes/images-train", self.out / "data/scenes/videos-test"
        told = compare_features(self.out / "transplanted", known, asked, "object", self.out / "programs")
        return {name: asdict(each) for name, each in told.items()}

    def _report(self) -> dict[str, Any]:
        """A page with curves, tubes and confusions of the first arms, on scenes."""
        run, shards = self.out / f"sweep-transplanted-{self.seeds[0]}", self.out / "data/scenes/videos-test"
        return asdict(report_page.write([run], self.out / "report.html", shards))

    def _classes(self) -> dict[str, list[str]]:
        """The classes of each head."""
        sets = {name: Shards.open(self.out / f"data/{name}/videos-test").classes for name in HEADS}
        return {head: sets[name][label] for name, heads in HEADS.items() for head, label in heads.items()}


def _train(recipe: Recipe, arms: dict[str, Arm]) -> None:
    """Train arms, unless their run is complete.

    Raises:
        KeyboardInterrupt: a signal stopped the run.
    """
    if not is_complete(Path(recipe.out)) and isinstance(train(recipe, arms), StoppedRun):
        raise KeyboardInterrupt
