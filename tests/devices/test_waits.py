"""In a step the host waits once for the device, however many arms train, and copies nothing to it but the batch.
What it can do before it waits, it does before."""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pretended import gpu
from support.tools import Running
from test_placed import ARMS, FROZEN
from test_ranks import GPU

from scaleup.config.schema import Arm, Recipe
from scaleup.data import upload
from scaleup.evaluation.accuracy import evaluate
from scaleup.evaluation.depth_profile import probe
from scaleup.model.build import fresh
from scaleup.training import run, token_cache
from scaleup.training.arm_trainer import ArmTrainer
from scaleup.training.run import Run
from scaleup.training.run_inputs import build_models

CLIPPED = {"clipped": Arm(frozen_depth=2, gate=True, clip=0.01, lr=0.01)}
STEPS = """
import sys
from pretended import EVENTS
from test_waits import check
from scaleup.config import recipe
from scaleup.training import run

reason, counts = run.Stop.reason, []
def counted(self):
    found = reason(self)
    counts.append(EVENTS.take())
    return found
run.Stop.reason = counted

path, out = sys.argv[1:]
run.train(recipe.load(path, ["train.steps=6", "arm.frozen_depth=1", f"out={out}"]))
check(counts[4])
"""


def check(counts: Counter[tuple[str, str]]) -> None:
    assert sum(count for (kind, _), count in counts.items() if kind == "wait") == 1, counts
    assert all("/upload.py:" in line for kind, line in counts if kind == "upload"), counts


def check_a_step(recipe: Recipe, arms: dict[str, Arm]) -> None:
    """Check the fifth step; the steps before it build what stays."""
    gc.collect()
    with gpu() as events:
        run = Run(recipe, arms)
        feed = iter(run.feed)
        for step in range(4):
            run.step(step, next(feed))
        events.take()
        run.step(4, next(feed))
        counts = events.take()
        run.close()
    if recipe.train.zero_stage:  # DeepSpeed looks at the norm
        counts = Counter({each: count for each, count in counts.items() if not each[1].startswith("deepspeed/")})
    check(counts)


@pytest.mark.parametrize("changes", [[], ["train.mixup=0.4"], ["train.accumulate=2"], ["train.cuda_graphs=trunk"]])
def test_a_step_of_many_arms_waits_once(tiny: Callable[..., Recipe], changes: list[str]) -> None:
    check_a_step(tiny("train.steps=8", *changes), ARMS | CLIPPED)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_in_micro_batches_waits_as_deepspeed_does(tiny: Callable[..., Recipe], stage: int) -> None:
    changes = ["train.steps=8", f"train.zero_stage={stage}", "train.accumulate=2", "arms={}", "arm.frozen_depth=1"]
    check_a_step(tiny(*changes), {"gated": ARMS["gated"]} | CLIPPED)


def test_a_step_of_two_ranks_waits_once(tiny_path: Path, tmp_path: Path) -> None:
    """From the end of one to the end of the next, with all that ranks tell each other."""
    done = Running(["-c", STEPS, str(tiny_path), str(tmp_path / "out")], ranks=2, before=GPU).wait()
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_step_from_a_cache_waits_once(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    read = tiny("train.steps=8", "train.mixup=0", "arms.full=null")
    token_cache.make(read, [1, 2, 3], tmp_path / "cache")
    check_a_step(replace(read, trunk=replace(read.trunk, cache=str(tmp_path / "cache"))), FROZEN | CLIPPED)


def test_the_next_batch_is_received_after_the_work_of_a_step_was_asked_for(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And before the host waits for it: the device computes meanwhile."""
    log: list[str] = []

    def noted(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: log.append(name) or real(*args))

    for owner, name in ((upload.Uploaded, "_uploaded"), (ArmTrainer, "step"), (run, "read_numbers")):
        noted(owner, name)
    with gpu():
        training = Run(tiny("train.steps=3", "train.mixup=0"), FROZEN)
        for step, fed in enumerate(training.feed):
            training.step(step, fed)
        training.close()
    work = ["step"] * len(FROZEN)
    whole = [*work, "_uploaded", "read_numbers"]
    assert log == ["_uploaded", *whole, *whole, *work, "read_numbers"]


def waits(call: Callable[[int], Any]) -> int:
    """How often the host waits more with three batches of four samples than with one of twelve."""
    counts = []
    gc.collect()  # DeepSpeed's engines of earlier tests wait at their end
    for batch in (12, 4, 12):  # the first call makes what stays
        with gpu() as events:
            call(batch)
            counts.append(events.total("wait"))
    return counts[1] - counts[2]


def test_an_evaluation_waits_once_a_batch(tiny: Callable[..., Recipe]) -> None:
    read = tiny()
    shards = read.data.train["videos"].shards
    assert waits(lambda batch: evaluate(build_models(read, ARMS), shards, "1x2", batch=batch, workers=0)) == 2


def test_a_depth_profile_does_not_wait_for_batches(tiny: Callable[..., Recipe]) -> None:
    read = tiny()
    shards = read.data.train["videos"].shards
    assert waits(lambda batch: probe(fresh(read.model, {}, 0).eval(), shards, shards, batch=batch, workers=0)) == 0


def test_a_cache_waits_once_a_batch_and_once_for_each_tensor(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    def make(batch: int) -> None:
        changes = [f"data.batch={batch}", "arms.full=null", "data.train.images=null"]
        token_cache.make(tiny(*changes), [1, 2], tmp_path / "cache", overwrite=True)

    assert waits(make) == 2 * (1 + len(("z0", "h1", "h2")))
