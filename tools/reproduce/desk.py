"""A desk: the data of each seed, recipes that read it, and the models that rows start from. Each is made once."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from reproduce.runs import find_arm, trained
from reproduce.tables import STAGES, TRANSPLANTS, Source
from scaleup.common.errors import UserError
from scaleup.common.timing import progress
from scaleup.config import recipe
from scaleup.config.compose import compose
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Arm, Recipe
from scaleup.data.shapes import make_shapes
from scaleup.transplants.adapted_model import transplant
from scaleup.transplants.transplant_plan import Options

RECIPES = Path(__file__).parent.parent.parent / "recipes" / "paper"
FRAMES = 24  # frames of a video; a clip of 16 may begin at any of the first 9
TUBES: Mapping[str, Mapping[str, Any]] = {  # kind of tubes -> options of the transplant
    "folded": {},  # as in the paper
    "aligned": {"match": "align"},
    "random": {"random_tubes": True},  # the control
}
START_SETTINGS = ("model.load", "model.backbone.weights")  # settings that may name a model to start from


@dataclass
class Desk:
    """The directory ``out``: a directory for each seed, and ``runs``.

    Args:
        changes: changes to all recipes, such as train.steps=2.
        samples: number of training videos, and of training images. An eighth as many are for validation, a quarter as
            many videos for the test.
    """

    out: Path
    changes: Sequence[str] = ()
    samples: int = 4000
    contents: dict[tuple[Source, int], dict[str, Any]] = field(default_factory=dict)  # a cache, as is the next
    readings: dict[tuple[Source, int, str], tuple[Recipe, Arm]] = field(default_factory=dict)

    def data(self, seed: int) -> Path:
        """The directory of the shards of a seed."""
        path = self._of(seed) / "data"
        if not path.exists():
            images = {"train": self.samples, "val": max(self.samples // 8, 1)}
            videos = images | {"test": max(self.samples // 4, 1)}
            with progress(f"shapes of seed {seed}", sum(videos.values()) + sum(images.values())) as advance:
                make_shapes(path, videos, images, seed, frames=FRAMES, places=True, advance=advance)
        return path

    def content(self, source: Source, seed: int = 0) -> dict[str, Any]:
        """The desk variant of a recipe as a dict, before its values are checked."""
        if (source, seed) not in self.contents:
            path, keys = RECIPES / f"{source.recipe}.yaml", [item.name for item in fields(Recipe)]
            self.contents[source, seed] = compose(path, self._choices(source, seed), keys, [])
        return self.contents[source, seed]

    def _choices(self, source: Source, seed: int) -> list[str]:
        return ["scale=desk", *source.choices, *self.changes, f"seed={seed}"]

    def steps(self, source: Source) -> int:
        return self.content(source)["train"]["steps"]

    def test_steps(self, source: Source, views: str) -> float:
        """The number of training steps that take as long as the test. A forward pass is a third of a step."""
        passes = self.samples // 4 * math.prod(map(int, views.split("x")))
        return passes / 3 / self.content(source)["data"]["batch"]

    def is_transplant(self, source: Source) -> bool:
        """Whether the recipe starts from a transplant."""
        return any(name in TRANSPLANTS for name in start_models(self.content(source)).values())

    def stages(self, source: Source) -> list[Source]:
        """The recipes that train the models that a recipe starts from."""
        names = start_models(self.content(source)).values()
        return [STAGES[stage] for name in names for stage in TRANSPLANTS.get(name, (name,))]

    def has(self, source: Source, seed: int, tubes: str = "folded") -> bool:
        """Whether the data of a recipe and the models that it starts from exist."""
        if not (self._of(seed) / "data").exists():
            return False
        return all(self._exists(name, seed, tubes) for name in start_models(self.content(source)).values())

    def _exists(self, name: str, seed: int, tubes: str) -> bool:
        if name in TRANSPLANTS:
            return self._adapted(seed, tubes).exists()
        read, arm = self.read(STAGES[name], seed)
        return find_arm(read, arm, self.runs) is not None

    def read(self, source: Source, seed: int, tubes: str = "folded") -> tuple[Recipe, Arm]:
        """The desk variant of a recipe, with the paths of its data and start models of ``seed``, and the source's arm.

        Args:
            tubes: kind of tubes (``TUBES``) of the transplant, if the recipe starts from one.
        """
        key = source, seed, tubes
        if key not in self.readings:
            self.readings[key] = self._read(source, seed, tubes)
        return self.readings[key]

    def _read(self, source: Source, seed: int, tubes: str) -> tuple[Recipe, Arm]:
        data, content = self.data(seed), self.content(source, seed)
        datasets = {name: dataset for name, dataset in content["data"]["train"].items() if dataset is not None}
        paths = [f"data.train.{name}.shards={data / Path(item['shards']).name}" for name, item in datasets.items()]
        paths += [f"{key}={self.make_model(name, seed, tubes)}" for key, name in start_models(content).items()]
        read = recipe.load(RECIPES / f"{source.recipe}.yaml", [*self._choices(source, seed), *paths])
        return read, sweep_arms(read)[source.arm] if source.arm else read.arm

    def make_model(self, name: str, seed: int, tubes: str = "folded") -> Path:
        """The directory of a model that rows start from; it is trained or transplanted if it does not exist."""
        if name not in TRANSPLANTS:
            read, arm = self.read(STAGES[name], seed)
            if find_arm(read, arm, self.runs) is None:
                print(f"seed {seed}: training {name}, which rows start from", file=sys.stderr)
            model = trained(read, {name: arm}, self.runs)[name]
            if model is None:
                raise UserError(
                    f"the model that rows start from, {name}, diverged; lower the learning rate of its recipe"
                )
            return model
        path = self._adapted(seed, tubes)
        if not path.exists():
            small, large = (str(self.make_model(parent, seed)) for parent in TRANSPLANTS[name])
            options = replace(Options(seed=seed), **TUBES[tubes])
            transplant(small, large, path, options, self.data(seed) / "videos-train", self._images(options, seed))
        return path

    def _images(self, options: Options, seed: int) -> Path | None:
        """The images that tokens are aligned on; None if the tubes are not aligned."""
        return self.data(seed) / "images-train" if options.match == "align" else None

    def _of(self, seed: int) -> Path:
        return self.out / f"seed{seed}"

    def _adapted(self, seed: int, tubes: str) -> Path:
        return self._of(seed) / f"adapted-{tubes}"

    @property
    def runs(self) -> Path:
        return self.out / "runs"


def start_models(content: dict[str, Any]) -> dict[str, str]:
    """The models that a recipe starts from: setting -> name in ``STAGES`` or ``TRANSPLANTS``."""
    model = content["model"]
    names = model.get("load"), (model.get("backbone") or {}).get("weights")
    pairs = zip(START_SETTINGS, names, strict=True)
    return {key: name for key, name in pairs if name in (*STAGES, *TRANSPLANTS)}
