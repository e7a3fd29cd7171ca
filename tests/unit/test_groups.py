import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scaleup.common.errors import UserError
from scaleup.common.files import locked
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Arm, Recipe, Train
from scaleup.sweeps import machines
from scaleup.sweeps.parts import PARTS, Part, balance, split_arms, sweep
from scaleup.training import run_directory

Tiny = Callable[..., Recipe]
VIDEOS = "data.train.images=null"  # alone: half of the passes


def dearest(trunk: list[int], arms: list[int], ends: tuple[int, ...]) -> int:
    return max(trunk[end - 1] + sum(arms[begin:end]) for begin, end in zip((0, *ends), ends, strict=False))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_no_other_groups_of_neighbours_are_better(count: int) -> None:
    """Against all of them."""
    source = np.random.default_rng(count)
    for _ in range(20):
        trunk, arms = sorted(source.integers(0, 50, 7).tolist()), source.integers(1, 30, 7).tolist()
        every = [(*cuts, 7) for cuts in combinations(range(1, 7), count - 1)]
        ends = balance(trunk, arms, count)
        assert ends in every
        assert dearest(trunk, arms, ends) == min(dearest(trunk, arms, each) for each in every)


def test_the_deep_trunk_is_one_machine_s() -> None:
    assert balance([0, 0, 8, 8], [9, 9, 4, 4], 2) == (2, 4)


def test_a_second_call_leaves_the_jobs_of_the_first(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that wait in a queue need their pickles when they start."""
    recipe, out, waiting = tiny(), tmp_path / "out", tmp_path / "out.jobs" / "7_submitted.pkl"
    arms = sweep_arms(recipe)
    split_arms(recipe, arms, False, lambda: [arms], least=1)
    waiting.parent.mkdir()
    waiting.touch()
    monkeypatch.setattr(run_directory, "locked", lambda file, _: locked(file, patience=0))
    with run_directory.lock_run(out), pytest.raises(UserError, match="another process is at work"):
        machines.spread(recipe, arms, "local", 2)
    assert waiting.exists()
    monkeypatch.setattr(machines.Fleet, "train", lambda *_: 143)  # ended before a job is
    assert machines.spread(recipe, arms, "local", 2).exit == 143
    assert not waiting.exists()


def test_no_memory_is_none(tiny: Tiny) -> None:
    """And not all memory."""
    recipe = tiny(VIDEOS)
    with pytest.raises(UserError, match=r"arm 'last' alone needs .* of a device and 0.0 MiB are available"):
        sweep(recipe, {"last": sweep_arms(recipe)["last"]}, memory=0)
    assert machines.Fleet(SimpleNamespace(where="local"), recipe, 2, None, 0).memory == 0  # type: ignore[arg-type]


def test_steps_are_counted_of_arms_of_any_length(tmp_path: Path) -> None:
    """In a part that trains in two runs: one of a short and a long arm, one that has just begun."""
    arms = {"short": Arm(steps=2), "long": Arm(), "other": Arm(steps=3)}
    part = Part(tmp_path, arms)
    for name, trained in {"01": ["short long", "short long", "long", "long"], "02": ["other", "other"]}.items():
        place = tmp_path / PARTS / name
        place.mkdir(parents=True)
        entries = [{"step": step, "arms": dict.fromkeys(names.split())} for step, names in enumerate(trained)]
        (place / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"step": ')
    assert machines._count_steps(part, Train(steps=5)) == 2 + 4 + 2
