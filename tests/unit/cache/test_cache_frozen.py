"""With a cache, frozen blocks stay in their file, and what is saved is all there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from scaleup.config import recipe as recipes
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Recipe
from scaleup.model.build import fresh, load
from scaleup.model.trunk import is_on_meta
from scaleup.outputs.conversion import export
from scaleup.training.run import Run, train
from scaleup.training.token_cache import make
from scaleup.transplants.adapted_model import transplant
from scaleup.transplants.transplant_plan import Options

ARMS = "arms: {last: {frozen_depth: 2}, gated: {frozen_depth: 1, gate: true}}\n"


@pytest.fixture
def loaded(frozen_path: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe that begins from the model in ``tmp_path / KIND``, a delta or all of it."""
    described = recipes.load(frozen_path, ["model.positions.kind=backbone"]).model
    for name, seed in (("small", 1), ("large", 2)):
        fresh(described, {}, seed).save_pretrained(tmp_path / name)
    transplant(str(tmp_path / "small"), str(tmp_path / "large"), tmp_path / "delta", Options(gate_at=2))
    export(tmp_path / "delta", "full", tmp_path / "full")
    text = frozen_path.read_text()
    begin, end = text.index("model:"), text.index("data:")

    def read(kind: str, *changes: str) -> Recipe:
        path = tmp_path / f"{kind}.yaml"
        path.write_text(f"{text[:begin]}model: {{load: {tmp_path / kind}}}\n{text[end : text.index('arms:')]}{ARMS}")
        return recipes.load(path, list(changes))

    return read


@pytest.mark.parametrize("kind", ["delta", "full"])
def test_frozen_blocks_stay_in_their_file_and_what_is_saved_is_whole(
    loaded: Callable[..., Recipe], kind: str, tmp_path: Path
) -> None:
    live, made = loaded(kind, f"out={tmp_path / 'live'}"), tmp_path / "cache"
    train(live, sweep_arms(live))
    make(loaded(kind), [1, 2], made, precision="float32")
    recipe = loaded(kind, f"out={tmp_path / 'cached'}", f"trunk.cache={made}")
    training = Run(recipe, sweep_arms(recipe))
    assert all(is_on_meta(block) for model in training.models.values() for block in model.trunk.blocks)  # type: ignore
    train(recipe, sweep_arms(recipe))
    file = "delta.safetensors" if kind == "delta" else "model.safetensors"
    for arm in ("last", "gated"):
        wanted, found = (load_file(tmp_path / name / arm / file) for name in ("live", "cached"))
        assert found.keys() == wanted.keys()
        assert all((found[name] - wanted[name]).abs().max() <= 1e-5 for name in wanted)
        assert not any(is_on_meta(block) for block in load(tmp_path / "cached" / arm).blocks)


def test_another_seed_trains_from_the_same_views(loaded: Callable[..., Recipe], tmp_path: Path) -> None:
    """Of a model that is loaded, whose trunk is no other; the run's seed draws the order and the heads."""
    make(loaded("delta"), [1, 2], tmp_path / "cache")
    ends = []
    for seed in (2, 3):
        recipe = loaded("delta", f"seed={seed}", f"out={tmp_path / str(seed)}", f"trunk.cache={tmp_path / 'cache'}")
        ends.append(train(recipe, sweep_arms(recipe)).arms["last"].loss)
    assert ends[0] != ends[1]
