"""A desk: the data of each seed, recipes that read it, and the models that rows begin from, each made once."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from reproduce.runs import place, trained
from reproduce.tables import STAGES, TRANSPLANTS, Source
from scaleup import recipe
from scaleup.common.timing import progress
from scaleup.config.compose import compose
from scaleup.config.schema import Arm, Recipe
from scaleup.data.shapes import make_shapes
from scaleup.errors import UserError
from scaleup.recipe import sweep_arms
from scaleup.transplants.adapted_model import transplant
from scaleup.transplants.transplant_plan import Options

RECIPES = Path(__file__).parent.parent.parent / "recipes" / "paper"
FRAMES = 24  # of a video: clips of 16 begin anywhere
TUBES: Mapping[str, Mapping[str, Any]] = {  # how they get into the large model, as options of a transplant
    "folded": {},  # the paper
    "aligned": {"match": "align"},
    "random": {"random_tubes": True},  # the control
}
BEGINNINGS = ("model.load", "model.backbone.weights")  # where a recipe says what it begins from


@dataclass
class Desk:
    """What stands below ``out``: a directory for each seed, and ``runs``.

    Args:
        changes: to all recipes, e.g. train.steps=2.
        samples: videos to train on, and as many images; an eighth of them to validate, a quarter to test.
    """

    out: Path
    changes: Sequence[str] = ()
    samples: int = 4000
    contents: dict[tuple[Source, int], dict[str, Any]] = field(default_factory=dict)  # read before
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
        """What the desk variant of a recipe says, before it is held against the schema."""
        if (source, seed) not in self.contents:
            path, taken = RECIPES / f"{source.recipe}.yaml", [item.name for item in fields(Recipe)]
            self.contents[source, seed] = compose(path, self._choices(source, seed), taken, [])
        return self.contents[source, seed]

    def _choices(self, source: Source, seed: int) -> list[str]:
        return ["scale=desk", *source.choices, *self.changes, f"seed={seed}"]

    def steps(self, source: Source) -> int:
        return self.content(source)["train"]["steps"]

    def test_steps(self, source: Source, views: str) -> float:
        """Steps that take as long as the test split with so many views: of a step, a third is the forward pass."""
        passes = self.samples // 4 * math.prod(map(int, views.split("x")))
        return passes / 3 / self.content(source)["data"]["batch"]

    def is_transplant(self, source: Source) -> bool:
        return any(begins in TRANSPLANTS for begins in _beginnings(self.content(source)).values())

    def stages(self, source: Source) -> list[Source]:
        """What trains the models that a recipe begins from."""
        names = _beginnings(self.content(source)).values()
        return [STAGES[stage] for name in names for stage in TRANSPLANTS.get(name, (name,))]

    def has(self, source: Source, seed: int, tubes: str = "folded") -> bool:
        """Whether what a recipe reads and begins from is there."""
        if not (self._of(seed) / "data").exists():
            return False
        return all(self._begun(name, seed, tubes) for name in _beginnings(self.content(source)).values())

    def _begun(self, name: str, seed: int, tubes: str) -> bool:
        if name in TRANSPLANTS:
            return self._adapted(seed, tubes).exists()
        read, arm = self.read(STAGES[name], seed)
        return place(read, arm, self.runs) is not None

    def read(self, source: Source, seed: int, tubes: str = "folded") -> tuple[Recipe, Arm]:
        """The desk variant of a recipe on what it reads and begins from with ``seed``, and the arm that is meant.

        Args:
            tubes: of the transplant that it begins from, if it does.
        """
        key = source, seed, tubes
        if key not in self.readings:
            self.readings[key] = self._read(source, seed, tubes)
        return self.readings[key]

    def _read(self, source: Source, seed: int, tubes: str) -> tuple[Recipe, Arm]:
        data, content = self.data(seed), self.content(source, seed)
        sets = {f"data.train.{name}": each for name, each in content["data"]["train"].items() if each is not None}
        paths = [f"{at}.shards={data / Path(settings['shards']).name}" for at, settings in sets.items()]
        paths += [f"{at}={self.begin(name, seed, tubes)}" for at, name in _beginnings(content).items()]
        read = recipe.load(RECIPES / f"{source.recipe}.yaml", [*self._choices(source, seed), *paths])
        return read, sweep_arms(read)[source.arm] if source.arm else read.arm

    def begin(self, name: str, seed: int, tubes: str = "folded") -> Path:
        """The directory of a model that rows begin from."""
        if name not in TRANSPLANTS:
            read, arm = self.read(STAGES[name], seed)
            if place(read, arm, self.runs) is None:
                print(f"seed {seed}: {name}, which rows begin from", file=sys.stderr)
            made = trained(read, {name: arm}, self.runs)[name]
            if made is None:
                raise UserError(
                    f"the model that rows begin from, {name}, diverged; lower the learning rate of its recipe"
                )
            return made
        path = self._adapted(seed, tubes)
        if not path.exists():
            small, large = (str(self.begin(parent, seed)) for parent in TRANSPLANTS[name])
            options = replace(Options(seed=seed), **TUBES[tubes])
            transplant(small, large, path, options, self.data(seed) / "videos-train", self._images(options, seed))
        return path

    def _images(self, options: Options, seed: int) -> Path | None:
        """What tokens are aligned on."""
        return self.data(seed) / "images-train" if options.match == "align" else None

    def _of(self, seed: int) -> Path:
        return self.out / f"seed{seed}"

    def _adapted(self, seed: int, tubes: str) -> Path:
        return self._of(seed) / f"adapted-{tubes}"

    @property
    def runs(self) -> Path:
        return self.out / "runs"


def _beginnings(content: dict[str, Any]) -> dict[str, str]:
    """Settings that name a model to begin from, and its name."""
    model = content["model"]
    found = zip(BEGINNINGS, (model.get("load"), (model.get("backbone") or {}).get("weights")), strict=True)
    return {at: name for at, name in found if name in (*STAGES, *TRANSPLANTS)}
