from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.config.rules import is_name
from scaleup.config.schema import Arm, Recipe, expand


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recipe with a grid of four arms and one beside them."""
    arms, grid = {"base": {}}, {"frozen_depth": [6, 8], "lr": ["1e-4", "3e-4"]}
    OmegaConf.save(OmegaConf.create({"arm": {"clip": 0.5}, "arms": arms, "grid": grid}), tmp_path / "grid.yaml")
    return tmp_path / "grid.yaml"


def test_a_grid_is_every_combination_beside_the_arms_that_are_named(path: Path) -> None:
    assert recipe.sweep_arms(recipe.load(path)) == {
        "base": Arm(clip=0.5),
        "depth6_lr1e-4": Arm(frozen_depth=6, lr=1e-4, clip=0.5),
        "depth6_lr3e-4": Arm(frozen_depth=6, lr=3e-4, clip=0.5),
        "depth8_lr1e-4": Arm(frozen_depth=8, lr=1e-4, clip=0.5),
        "depth8_lr3e-4": Arm(frozen_depth=8, lr=3e-4, clip=0.5),
    }
    assert recipe.sweep_arms(Recipe(grid={"gate": [False]})) == {"no_gate": Arm()}


def test_names_say_settings_exactly_and_are_allowed() -> None:
    grid = {"lr": [1e-4, 1.5e-4, 0.00015001, 0.25, 12.5, 100.0, 5e-324, 3e22], "gate": [True, False], "steps": [None]}
    names = list(expand(grid | {"adapt": ["lora"], "odd": ["a.b/c"]}))
    assert names[:3] == [f"lr{lr}_no_steps_lora_a-b-c" for lr in ("1e-4_gate", "1e-4_no_gate", "15e-5_gate")]
    assert names[-2:] == ["lr3e22_gate_no_steps_lora_a-b-c", "lr3e22_no_gate_no_steps_lora_a-b-c"]
    assert len(set(names)) == 16 and all(map(is_name, names))
    written = [float(name.split("_")[0].removeprefix("lr")) for name in names[::2]]
    assert written == grid["lr"]


def test_overrides_reach_a_grid_and_the_recipe_keeps_it(path: Path, tmp_path: Path) -> None:
    read = recipe.load(path, ["grid.lr=[1e-5]", "grid.weight_decay=[1%,0]", "grid.gate=[true]"])
    assert read.grid == {"frozen_depth": [6, 8], "lr": [1e-5], "weight_decay": [0.01, 0], "gate": [True]}
    recipe.save(read, tmp_path / "saved.yaml")
    assert recipe.load(tmp_path / "saved.yaml") == read
    assert len(recipe.sweep_arms(read)) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("grid=3", "grid: 3 is not a mapping of settings to lists of values"),
        ("grid.lr=1e-4", "grid.lr: 0.0001 is not a list of values"),
        ("grid.lr=[]", "grid.lr: [] is not a list of values"),
        ("grid.lr=[-1,0.1,-1]", "grid.lr: -1 is not a number above 0"),
        ("grid.frozen=[1,2]", "grid.frozen: unknown key; nearest: 'frozen_depth'"),
        ("grid.adapt=[full,loar]", "grid.adapt: 'loar' is not one of 'full', 'lora', 'dora', 'ia3', 'none'"),
        ("grid.weight_decay=[1%,x%]", "grid.weight_decay: 'x%' is not a number of at least 0"),
        ("grid.lr=[1e-4,0.0001]", "grid.lr: 0.0001 is listed twice"),
        ("arms.depth6_lr1e-4.lr=1", "grid.depth6_lr1e-4: is the same arm as arms.depth6_lr1e-4"),
        ("arms.mine={frozen_depth: 8, lr: 3e-4}", "grid.depth8_lr3e-4: is the same arm as arms.mine"),
        (
            "grid.frozen_depth=[0,6];grid.lr=[1e-4];grid.gate=[true]",
            "grid.depth0_lr1e-4_gate.gate: a gate needs frozen",
        ),
        ("arms.parts.lr=1", "arms.parts: this name is reserved"),
    ],
)
def test_a_mistake_is_said_once_with_its_path(path: Path, change: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        recipe.load(path, change.split(";"))
    (found,) = str(raised.value).split("\n  - ")[1:]
    assert said in found
