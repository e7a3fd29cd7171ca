"""How products are computed is chosen once a run, for all its arms."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import scaleup
from scaleup.common.tensors import hashes
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Recipe
from scaleup.model.kernel_choice import Kernels
from scaleup.training.run import Run, train

Tiny = Callable[..., Recipe]


@pytest.fixture
def convolutions(convolutions: list[tuple], monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Even the products of a tiny model are large."""
    monkeypatch.setattr("scaleup.model.kernels.FEWEST", 2)
    monkeypatch.setattr("scaleup.model.kernels.NARROWEST", 2)
    return convolutions


def test_a_run_measures_once_for_all_trunks_and_once_for_all_arms(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(["fast", "products"])
    monkeypatch.setattr("scaleup.model.kernel_choice.choose", lambda *_, trains: f"{next(calls)}{trains}")
    recipe = tiny()
    models = Run(recipe, sweep_arms(recipe)).models.values()
    assert {model.trunk.kernels for model in models if model.trunk is not None} == {"fastFalse"}
    assert {model.arm.kernels for model in models} == {"productsTrue"}


def test_what_the_recipe_names_is_not_measured(tiny: Tiny) -> None:
    recipe = tiny("train.kernels=library")
    assert Run(recipe, {"model": recipe.arm}).kernels == Kernels("library", "library")


def test_a_resumed_run_keeps_the_kernels_that_were_chosen(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured again, others could be the fastest."""
    recipe, chosen = tiny(), iter(["fast", "products", "lean", "lean"])
    monkeypatch.setattr("scaleup.model.kernel_choice.choose", lambda *_, trains: next(chosen))
    arms = {"model": replace(recipe.arm, frozen_depth=2)}
    train(recipe, arms, stop_after=0)
    assert train(recipe, arms).kernels == {"trunk": "fast", "arm": "products"}


def test_auto_is_measured_once_for_all_arms_and_kept_on_resume(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, chosen = tiny("arm.precision=auto"), iter(["bfloat16", "float32"])
    monkeypatch.setattr("scaleup.training.run.choose_precision", lambda *_: next(chosen))
    own = replace(recipe.arm, frozen_depth=2)
    arms = {"one": own, "two": replace(own, lr=0.1), "exact": replace(own, precision="float32")}
    train(recipe, arms, stop_after=0)
    found = {name: arm.precision for name, arm in train(recipe, arms).arms.items()}
    assert found == {"one": "bfloat16", "two": "bfloat16", "exact": "float32"}


def test_fast_arms_learn_alike_together_and_alone(tiny: Tiny, tmp_path: Path, convolutions: list[tuple]) -> None:
    recipe = tiny("train.kernels=fast", "train.steps=2")
    arms, weights = sweep_arms(recipe), {}
    for names in (list(arms), list(arms)[-1:]):
        train(recipe, {name: arms[name] for name in names}, overwrite=True)
        weights[len(names)] = hashes(scaleup.load(tmp_path / "out" / names[-1]).state_dict())
    assert weights[1] == weights[len(arms)]
    assert any(shape[2:] == (1, 1) for shape in convolutions)


def test_what_was_trained_fast_is_loaded_as_the_librarys(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny("train.kernels=fast", "train.steps=1")
    train(recipe, {"model": replace(recipe.arm, frozen_depth=2)})
    model = scaleup.load(tmp_path / "out" / "model")
    assert model.arm.kernels == "library" and model.trunk is not None and model.trunk.kernels == "library"
