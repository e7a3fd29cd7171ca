"""A sweep in parts ends as one run of all its arms would, however often it is cut off."""

import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from support.killed import killed
from support.marks import at_length
from support.runs import bits

from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Arm, Recipe
from scaleup.model.build import load_run
from scaleup.sweeps import costs
from scaleup.sweeps.parts import sweep
from scaleup.training.run import Run, train
from scaleup.training.run_directory import StoppedRun

Tiny = Callable[..., Recipe]
GRID = ["grid.frozen_depth=[2]", "grid.lr=[1e-3,3e-3]"]
NAMES = ["full", "last", "gated", "depth2_lr1e-3", "depth2_lr3e-3"]


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for two arms at a time."""

    def waves(recipe: Recipe, arms: dict[str, Arm], available: int, ranks: int = 1) -> list[dict[str, Arm]]:
        names = list(arms)
        return [{name: arms[name] for name in names[at : at + 2]} for at in range(0, len(names), 2)]

    monkeypatch.setattr(costs, "waves", waves)


@pytest.fixture(scope="module")
def whole(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of all arms, trained in one run of two steps."""
    out = tmp_path_factory.mktemp("whole") / "out"
    read = recipe.load(tiny_path, [*GRID, "train.steps=2", f"out={out}"])
    train(read, sweep_arms(read))
    return bits(out)


def test_parts_are_runs_whose_models_stand_side_by_side(
    tiny: Tiny, tmp_path: Path, pairs: None, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref] = []
    begins = Run.__init__

    def alone(self: Run, *args: object) -> None:
        assert not any(reference() for reference in held), "an earlier part is still in memory"
        begins(self, *args)  # type: ignore[arg-type]
        held.extend(weakref.ref(part) for arm in self.trainers.values() for part in (arm.model, arm.engine.engine))

    monkeypatch.setattr(Run, "__init__", alone)
    read, out = tiny(*GRID, "train.steps=2"), tmp_path / "out"
    gc.disable()  # else chance decides when
    try:
        result = sweep(read, sweep_arms(read))
    finally:
        gc.enable()
    assert bits(out) == whole and len(held) == 10
    assert {path.name for path in out.iterdir()} == {"recipe.yaml", "result.json", "parts", *NAMES}
    assert load_run(out).keys() == set(NAMES)
    assert result.parts == [["full", "last"], ["gated", "depth2_lr1e-3"], ["depth2_lr3e-3"]]
    assert list(result.arms) == NAMES and json.loads((out / "result.json").read_text()) == asdict(result)
    assert all((Path(arm.directory) / "config.json").is_file() for arm in result.arms.values())
    each = [json.loads((out / "parts" / part / "result.json").read_text()) for part in ("01", "02", "03")]
    assert result.trunk_seconds == sum(part["trunk_seconds"] for part in each)
    assert recipe.load(out / "recipe.yaml") == read
    part = recipe.load(out / "parts" / "02" / "recipe.yaml")
    own = {name: sweep_arms(read)[name] for name in result.parts[1]}
    assert sweep_arms(part) == recipe.settle(read, own, "cpu")[1]
    with pytest.raises(UserError, match="its run is complete"):
        sweep(read, sweep_arms(read))


@pytest.mark.parametrize("stage", [0, 2, *at_length(1)])
def test_a_run_that_is_over_lets_its_memory_go(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    held: list[weakref.ref] = []
    takes = Run.train

    def watched(self: Run, *args: object) -> int:
        engines = [arm.engine.engine for arm in self.trainers.values()]
        held.extend(weakref.ref(each) for engine in engines for each in (engine, engine.module, engine.optimizer))
        return takes(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "train", watched)
    read = tiny("train.steps=2", f"train.zero_stage={stage}")
    train(read, sweep_arms(read))
    gc.collect()
    assert len(held) == 9 and not any(reference() for reference in held)


def test_what_fits_is_one_run(tiny: Tiny, tmp_path: Path, pairs: None) -> None:
    read = tiny("train.steps=1")
    arms = {name: arm for name, arm in sweep_arms(read).items() if name != "full"}
    result = sweep(read, arms)
    assert result.parts is None and result.arms.keys() == arms.keys()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("recipe.yaml", "result.json", "metrics.jsonl", "tensorboard", "last", "gated")
    }


def test_a_sweep_that_is_cut_off_while_models_move_goes_on(
    tiny: Tiny, tmp_path: Path, pairs: None, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves, rename = [], Path.rename

    def cut(self: Path, target: Path) -> Path:
        """Ends the sweep before a model of a part is moved, and next time just after."""
        if self.parent.parent.name != "parts" or self.name not in NAMES:
            return rename(self, target)
        moves.append(self.name)
        if moves.count(self.name) == 2:
            rename(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", cut)
    read = tiny(*GRID, "train.steps=2")
    for _ in range(2 * len(NAMES)):
        with pytest.raises(KeyboardInterrupt):
            sweep(read, sweep_arms(read))
    assert sweep(read, sweep_arms(read)).arms.keys() == set(NAMES)
    assert len(moves) == 2 * len(NAMES) and bits(tmp_path / "out") == whole


def test_a_sweep_stops_and_goes_on_in_any_part(
    tiny: Tiny, tmp_path: Path, pairs: None, whole: dict[str, bytes]
) -> None:
    read = tiny(*GRID, "train.steps=2")
    for number in (1, 2, 3):
        result = sweep(read, sweep_arms(read), stop_after=0)
        assert result == StoppedRun(read.out, 2, stopped=1, exit=0, part=f"{number} of 3")
    assert sweep(read, sweep_arms(read), stop_after=0).arms.keys() == set(NAMES)
    assert bits(tmp_path / "out") == whole


def test_where_nothing_is_saved_parts_are_planned_anew(
    tiny: Tiny, tmp_path: Path, pairs: None, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that turns out too large is divided once more."""
    read = tiny(*GRID, "train.steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "train", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            sweep(read, sweep_arms(read))
    monkeypatch.setattr(costs, "waves", lambda recipe, arms, *_: [{name: arm} for name, arm in arms.items()])
    result = sweep(read, sweep_arms(read))
    assert bits(tmp_path / "out") == whole and result.parts[0] == ["full", "last"]
    assert (tmp_path / "out" / "parts" / "01" / "parts" / "02" / "metrics.jsonl").is_file()


def test_an_arm_that_diverges_in_a_part_of_its_own_is_lost_alone(tiny: Tiny, tmp_path: Path, pairs: None) -> None:
    read = tiny(*GRID[:1], "grid.lr=[1e-3,1e30]", "arm.clip=0", "train.steps=8")
    result = sweep(read, sweep_arms(read))
    assert result.exit == 1 and result.arms["depth2_lr1e30"].directory is None
    assert load_run(tmp_path / "out").keys() == {"full", "last", "gated", "depth2_lr1e-3"}


def test_another_sweep_is_not_gone_on_with(tiny: Tiny, tmp_path: Path, pairs: None) -> None:
    read = tiny(*GRID, "train.steps=2")
    assert isinstance(sweep(read, sweep_arms(read), stop_after=0), StoppedRun)
    other = tiny(GRID[0], "grid.lr=[1e-3,4e-3]", "train.steps=2")
    with pytest.raises(UserError, match=r"another recipe: grid.lr is \[0.001, 0.003\] there and \[0.001, 0.004\] here"):
        sweep(other, sweep_arms(other))
    assert isinstance(sweep(other, sweep_arms(other), overwrite=True, stop_after=0), StoppedRun)


@pytest.mark.all
def test_a_sweep_in_parts_killed_eight_times_ends_with_the_same_bytes(tiny_path: Path, tmp_path: Path) -> None:
    """By the tool, with memory for some of the arms at a time."""
    changes = [*GRID, "train.steps=24", "train.save_every=2"]
    read = recipe.load(tiny_path, [*changes, f"out={tmp_path / 'whole'}"])
    arms, out = sweep_arms(read), tmp_path / "cut"
    memory = costs.memory(read, {name: arms[name] for name in ("full", "last")})["total"]
    train(read, arms)
    resumed = killed([None] * 8, 1, out, "sweep", tiny_path, *changes, f"--memory={memory}", before="")
    assert len(resumed) >= 4
    assert len(list((out / "parts").iterdir())) > 1 and bits(out) == bits(tmp_path / "whole")


def test_two_ranks_train_the_same_parts_also_when_one_is_killed(tiny_path: Path, tmp_path: Path) -> None:
    """By the tool, with memory for one of two arms at a time; in the second part a rank is killed."""
    changes = ["train.steps=12", "train.save_every=2", "data.train.images=null", "arms.gated=null"]
    read, out = recipe.load(tiny_path, changes), tmp_path / "cut"
    memory = costs.memory(read, {"full": sweep_arms(read)["full"]}, ranks=2)["total"]
    resumed = killed([15], 2, out, "sweep", tiny_path, *changes, f"--memory={memory}", before="")
    assert resumed in ([2], [4], [6], [8], [10])
    assert killed([], 2, tmp_path / "whole", "sweep", tiny_path, *changes) == []
    assert len(list((out / "parts").iterdir())) == 2 and not (tmp_path / "whole" / "parts").exists()
    assert bits(out) == bits(tmp_path / "whole")
