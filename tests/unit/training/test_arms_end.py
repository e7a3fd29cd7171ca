"""Arms of one run that end at different steps and for different reasons, and what is left of each."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.marks import at_length
from support.runs import bytes_of, metrics

from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Recipe
from scaleup.data.pack import write_shards
from scaleup.data.shapes import CLASSES, make_sample
from scaleup.evaluation.accuracy import evaluate
from scaleup.model.build import load, load_run
from scaleup.training import arm_trainer
from scaleup.training.arm_trainer import ArmState
from scaleup.training.optimizer_state import weights
from scaleup.training.run import Run, train
from scaleup.training.run_directory import RunResult
from scaleup.training.validation import Validation

Tiny = Callable[..., Recipe]
WILD = {"lr": 1e30, "clip": 0.0}


@pytest.fixture
def valid(tiny: Tiny) -> str:
    return f"data.valid.shards={tiny().data.train['videos'].shards}"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[int, dict[str, bytes]]]:
    """``scripted(0.1, 0.4)``: what the next validations of an arm say; returns its weights at each of them."""

    def script(*accuracies: float) -> dict[int, dict[str, bytes]]:
        left, seen, real = iter(accuracies), dict[int, dict[str, bytes]](), Validation.measured

        def measured(self: Validation, models: dict[str, Any]) -> dict[str, Any]:
            (name,) = models
            seen[len(seen) + 1] = bits(models[name])
            return {name: real(self, models)[name] | {"accuracy": next(left)}}

        monkeypatch.setattr(Validation, "measured", measured)
        return seen

    return script


def bits(model: Any) -> dict[str, bytes]:
    return bytes_of(weights(model.arm))


def written(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.rglob("*.safetensors"))}


def mixed(arm: Arm) -> dict[str, Arm]:
    """Depths, gates, adapters, rates, decays, schedules and ends of all kinds; ``idle`` does not rise, so it ends."""
    late = replace(arm, frozen_depth=1, gate=True, lora_rank=2)
    return {
        "full": replace(arm, steps=3, warmup=2, patience=9),
        "short": replace(arm, frozen_depth=3, steps=1, warmup=0, weight_decay=0.0),
        "gated": replace(late, lr=0.003, clip=0.1),
        "lora": replace(late, adapt="lora", lr=0.02, steps=2, warmup=0),
        "ia3": replace(late, adapt="ia3", frozen_depth=2, weight_decay=0.3),
        "idle": replace(late, adapt="dora", lr=1e-12, gate_lr=1e-12, patience=2),
    }


MIXED = ("train.steps=4", "train.valid_every=1", "train.cutmix=1")
END = {"full": 3, "short": 1, "gated": 4, "lora": 2, "ia3": 4, "idle": 3}


@pytest.mark.parametrize("stage", [0, *at_length(2)])
def test_an_arm_of_a_mixed_sweep_ends_as_the_same_arm_alone(tiny: Tiny, valid: str, tmp_path: Path, stage: int) -> None:
    changes = [*MIXED, valid, f"train.zero_stage={stage}"]
    recipe = tiny(*changes, f"out={tmp_path / 'together'}")
    arms = mixed(recipe.arm)
    together = train(recipe, arms | {"wild": replace(recipe.arm, **WILD)}).arms
    for name, arm in arms.items():
        alone = train(tiny(*changes, f"out={tmp_path / name}"), {"alone": arm}).arms["alone"]
        assert written(tmp_path / name / "alone") == written(tmp_path / "together" / name), name
        for key in ("steps", "ended", "best_step", "valid_accuracy", "loss"):
            assert getattr(together[name], key) == getattr(alone, key), (name, key)
    assert {name: together[name].steps for name in arms} == END
    assert together["idle"].ended == "early" and together["wild"].ended == "diverged"


@pytest.mark.parametrize(
    ("stage", "offload"),
    [*(pytest.param(*each, marks=pytest.mark.all) for each in ((0, False), (1, True))), (2, False)],
)
def test_a_mixed_run_in_pieces_ends_with_the_same_bytes(
    tiny: Tiny, valid: str, tmp_path: Path, stage: int, offload: bool
) -> None:
    """An arm that has ended, for whatever reason, is not begun again; the best weights and the patience are kept."""
    changes = [*MIXED, valid, f"train.zero_stage={stage}", f"train.offload={offload}"]
    whole, pieces = (tiny(*changes, f"out={tmp_path / name}") for name in ("whole", "pieces"))
    arms = mixed(whole.arm) | {"wild": replace(whole.arm, **WILD)}
    expected = train(whole, arms)
    for number in range(1, 4):
        assert train(pieces, arms, stop_after=0).stopped == number
    result = train(pieces, arms)
    assert result.exit == expected.exit == 1
    for name in arms:
        assert written(tmp_path / "pieces" / name) == written(tmp_path / "whole" / name), name
        for key in ("loss", "steps", "ended", "diverged", "best_step", "valid_accuracy", "alpha"):
            assert getattr(result.arms[name], key) == getattr(expected.arms[name], key), (name, key)
    for one, other in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "pieces"), strict=True):
        assert {name: arm.get("valid") for name, arm in one["arms"].items()} == {
            name: arm.get("valid") for name, arm in other["arms"].items()
        }


def test_a_run_that_was_killed_while_it_wrote_its_models_writes_them_all(
    tiny: Tiny, valid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny("train.steps=3", "train.valid_every=1", valid)
    arms = {"one": replace(recipe.arm, lr=1e-12, patience=1), "wild": replace(recipe.arm, **WILD)}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("scaleup.training.run_directory.write", killed)
        train(recipe, arms)
    taken = metrics(tmp_path / "out")
    result = train(recipe, arms)
    assert metrics(tmp_path / "out") == taken and len(taken) == 2  # all had ended early: no step was left
    assert result.arms["one"].directory and result.exit == 1 and (tmp_path / "out/one/config.json").exists()


def test_a_run_that_is_stopped_at_its_last_step_is_complete(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny()
    assert isinstance(train(recipe, {"one": replace(recipe.arm, steps=1)}, stop_after=0), RunResult)
    assert (tmp_path / "out/one/config.json").exists() and (tmp_path / "out/result.json").exists()


def test_what_has_ended_costs_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pass of the arm, no line, no state of the optimizer; the trunk goes as deep as the others need."""
    recipe = tiny("train.steps=4")
    arms = {
        "deep": replace(recipe.arm, frozen_depth=3, steps=1),
        "shallow": replace(recipe.arm, frozen_depth=1, steps=3),
        "full": recipe.arm,
    }
    training, passed = Run(recipe, arms), list[tuple[str, int]]()
    for name, trainer in training.trainers.items():
        trainer.engine.engine.module.register_forward_hook(lambda *_, name=name: passed.append((name, training.done)))
    for index, block in enumerate(training.models["deep"].trunk.blocks):
        block.mlp.register_forward_hook(lambda *_, index=index: passed.append((f"block {index}", training.done)))
    training.train()
    assert {name: [step for each, step in passed if each == name] for name, _ in passed} == {
        "block 0": [0, 1, 2],
        "block 1": [0],
        "block 2": [0],
        "deep": [0],
        "shallow": [0, 1, 2],
        "full": [0, 1, 2, 3],
    }
    assert not any(trainer.engine.optimizer.state for trainer in training.trainers.values())


def test_the_cosine_of_an_arm_runs_over_its_own_steps(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny("train.steps=6", "train.warmup=0")
    train(recipe, {"short": replace(recipe.arm, steps=4, warmup=2), "long": recipe.arm})
    taken = [line["arms"] for line in metrics(tmp_path / "out")]
    assert [arms["short"]["lr"] for arms in taken[:4]] == pytest.approx([0.005, 0.01, 0.01, 0.005])
    assert [arms["long"]["lr"] for arms in taken] == pytest.approx(
        [0.005 * (1 + math.cos(math.pi * number / 6)) for number in range(6)]
    )
    assert [set(arms) for arms in taken[4:]] == [{"long"}] * 2


def test_the_best_weights_are_what_is_written(
    tiny: Tiny, valid: str, tmp_path: Path, scripted: Callable[..., dict[int, dict[str, bytes]]]
) -> None:
    """The first of equal ones; the gate that is reported is the one that is written."""
    recipe = tiny("train.steps=5", "train.valid_every=1", valid)
    seen = scripted(0.1, 0.6, 0.3, 0.6, 0.2)
    arm = train(recipe, {"model": replace(recipe.arm, frozen_depth=1, gate=True)}).arms["model"]
    model = load(tmp_path / "out" / "model")
    assert bits(model) == seen[2] != seen[5]
    assert (arm.best_step, arm.valid_accuracy, arm.steps, arm.ended) == (2, 0.6, 5, "complete")
    assert arm.alpha == model.arm.gate.alpha.item() == model.report["training"]["alpha"]
    assert model.report["training"]["best_step"] == 2


@pytest.mark.parametrize(
    ("accuracies", "steps", "ended"),
    [
        ((0.1, 0.2, 0.2, 0.1), 4, "early"),
        ((0.5, 0.4, 0.6, 0.6, 0.5), 5, "early"),
        ((0.5, 0.4, 0.6, 0.5, 0.7, 0.3), 6, "complete"),
        ((0.9, 0.9, 0.9), 3, "early"),
    ],
)
def test_an_arm_ends_where_its_patience_does(
    tiny: Tiny,
    valid: str,
    scripted: Callable,
    accuracies: tuple[float, ...],
    steps: int,
    ended: str,
    capsys: pytest.CaptureFixture,
) -> None:
    scripted(*accuracies)
    recipe = tiny("train.steps=6", "train.valid_every=1", valid)
    result = train(recipe, {"model": replace(recipe.arm, patience=2)})
    assert (result.arms["model"].steps, result.arms["model"].ended) == (steps, ended)
    best = accuracies.index(max(accuracies))
    why = f"early after step {steps}: the last 2 validations were not better than {accuracies[best]:.2%}"
    why = f"{why} after step {best + 1}"
    assert (f"arm 'model' ends {why}" in capsys.readouterr().err) == (ended == "early")
    assert result.exit == 0


def test_validation_changes_no_bit(tiny: Tiny, valid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run with dropout, whose last weights are taken for its best."""
    monkeypatch.setattr(ArmState, "validated", lambda *_: True)
    plain, watched = tiny(f"out={tmp_path / 'plain'}"), tiny("train.valid_every=1", valid)
    arms = {"gated": replace(plain.arm, frozen_depth=1, gate=True, steps=3), "full": plain.arm}
    train(plain, arms)
    train(watched, arms)
    for name in arms:
        assert written(tmp_path / "out" / name) == written(tmp_path / "plain" / name)


def test_validation_is_an_evaluation(tiny: Tiny, valid: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """At every second step, and where an arm ends."""
    recipe = tiny("train.steps=5", "train.valid_every=2", "data.valid.heads={motion: motion}", valid)
    arms = {"gated": replace(recipe.arm, frozen_depth=1, gate=True, steps=3), "full": recipe.arm}
    result = train(recipe, arms).arms
    found = {line["step"] + 1: line["arms"] for line in metrics(tmp_path / "out")}
    validated = {name: [number for number in found if "valid" in found[number].get(name, {})] for name in arms}
    assert validated == {"gated": [2, 3], "full": [2, 4, 5]}
    said = capsys.readouterr().err
    assert [f"top-1 after step {number}: " in said for number in found] == [False, True, True, True, True]
    for name in arms:
        told = found[result[name].best_step][name]["valid"]
        scores = evaluate({name: load(tmp_path / "out" / name)}, recipe.data.valid.shards, "1x1", batch=4)[name]
        motion = {key: getattr(scores.heads["motion"], key) for key in ("top1", "top5", "loss")}
        assert told["heads"] == {"motion": pytest.approx(motion)} and told["samples"] == scores.samples == 12
        assert told["accuracy"] == result[name].valid_accuracy == motion["top1"]


def test_unreadable_samples_of_validation_are_counted(tiny: Tiny, tmp_path: Path) -> None:
    samples = [make_sample("video", seed=0, split="test", number=number, size=32, frames=12) for number in range(4)]
    samples[1] = replace(samples[1], media=b"no video")
    shards = write_shards(samples, tmp_path / "valid", "video", CLASSES["video"])
    recipe = tiny("train.valid_every=2", f"data.valid.shards={shards.path}", "data.max_bad=0.2")
    with pytest.raises(UserError, match="1 of the 4 samples of data.valid cannot be read, more than data.max_bad 0.2"):
        train(recipe, {"model": recipe.arm})
    train(
        tiny("train.valid_every=4", f"data.valid.shards={shards.path}", "data.max_bad=0.25"),
        {"model": recipe.arm},
        True,
    )
    assert metrics(tmp_path / "out")[-1]["arms"]["model"]["valid"]["samples"] == 3


def test_a_set_that_does_not_fit_is_refused_before_training(tiny: Tiny, valid: str, tmp_path: Path) -> None:
    recipe = tiny("train.valid_every=2", valid)
    recipe.data.valid.heads = {"motoin": "motion"}
    with pytest.raises(UserError, match="no head 'motoin'.*nearest: 'motion'"):
        train(recipe, {"model": recipe.arm})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("stage", "accumulate"), [(0, 1), (2, 2), *at_length((0, 2), (1, 1), (1, 2), (2, 1))])
def test_an_arm_that_diverges_is_lost_alone(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture, stage: int, accumulate: int
) -> None:
    recipe = tiny(f"train.zero_stage={stage}", f"train.accumulate={accumulate}")
    kept = replace(recipe.arm, frozen_depth=1, gate=True)
    result = train(recipe, {"wild": replace(kept, **WILD), "kept": kept})
    at = result.arms["wild"].diverged
    assert result.exit == 1 and at in (0, 1, 2) and result.arms["kept"].diverged is None
    said = capsys.readouterr().err
    assert said.count("arm 'wild' diverged: its ") == 1 and f"at step {at}; try a learning rate below 1e+30" in said
    assert result.arms["wild"].directory is None and not (tmp_path / "out" / "wild").exists()
    assert [("wild" in line["arms"], "kept" in line["arms"]) for line in metrics(tmp_path / "out")] == [
        (number < at, True) for number in range(4)
    ]
    assert load_run(tmp_path / "out").keys() == {"kept"}
    with pytest.raises(UserError, match="its run is complete"):
        train(recipe, {"wild": replace(kept, **WILD), "kept": kept})


def test_arms_that_all_diverge_leave_a_result(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first step already: a gradient that is no number is seen before it becomes a model."""
    monkeypatch.setattr(arm_trainer.Engine, "step", lambda *_: float("nan"))
    recipe = tiny()
    result = train(recipe, {"one": recipe.arm, "other": recipe.arm})
    assert [arm.diverged for arm in result.arms.values()] == [0, 0] and result.exit == 1
    assert result.arms["one"].loss is None and len(metrics(tmp_path / "out")) == 1
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == asdict(result)
