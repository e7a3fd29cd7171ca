import gc
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from support.marks import at_length
from support.runs import bytes_of, metrics
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scaleup.common.errors import UserError
from scaleup.config import recipe as recipes
from scaleup.config import schema
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Recipe
from scaleup.model.build import load_run
from scaleup.model.trunk import Taps
from scaleup.outputs import run_records
from scaleup.training import optimizer_state
from scaleup.training.run import Run, train
from scaleup.training.run_directory import StoppedRun, lock_run

Tiny = Callable[..., Recipe]


@pytest.fixture
def sweep(tiny: Tiny) -> Run:
    recipe = tiny()
    return Run(recipe, sweep_arms(recipe))


def count_graphs() -> int:
    """Tensors alive that hold on to an autograd graph."""
    gc.collect()
    return sum(type(each) is Tensor and each.grad_fn is not None for each in gc.get_objects())


def test_frozen_tensors_keep_their_bytes_and_stay_without_gradient(sweep: Run) -> None:
    trunks = [sweep.models[name].trunk for name in ("last", "gated")]
    before = [bytes_of(trunk.state_dict()) for trunk in trunks]
    arms = {name: bytes_of(model.arm.state_dict()) for name, model in sweep.models.items()}
    sweep.train()
    assert [bytes_of(trunk.state_dict()) for trunk in trunks] == before
    for trunk in trunks:
        assert all(each.grad is None and not each.requires_grad for each in trunk.parameters())
        assert not any(module.training for module in trunk.modules())
    for name, model in sweep.models.items():
        assert bytes_of(model.arm.state_dict()) != arms[name] and model.arm.training


def test_arms_share_the_frozen_tensors_and_nothing_else(sweep: Run) -> None:
    last, gated, full = (sweep.models[name] for name in ("last", "gated", "full"))
    shared = {each.data_ptr() for each in last.trunk.parameters()}
    assert {each.data_ptr() for each in gated.trunk.parameters()} < shared
    pointers = [each.data_ptr() for model in (last, gated, full) for each in model.arm.parameters()]
    assert len(pointers) == len(set(pointers)) and not shared & set(pointers)


def test_the_arm_of_a_loaded_model_trains_in_train_mode(tiny: Tiny, tmp_path: Path, sweep: Run) -> None:
    sweep.models["gated"].save_pretrained(tmp_path / "saved")  # loads in eval mode
    recipe = tiny()
    recipe.model = schema.Model(load=str(tmp_path / "saved"))
    model = Run(recipe, {"model": schema.Arm(frozen_depth=2)}).models["model"]
    assert all(module.training for module in model.arm.modules()) and not model.trunk.training


def test_no_graph_reaches_below_the_gate(sweep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Taps] = []
    gated = sweep.trainers["gated"]
    step = gated.step
    monkeypatch.setattr(gated, "step", lambda number, inputs, *rest: seen.append(inputs) or step(number, inputs, *rest))
    sweep.step(0, next(iter(sweep.feed)))
    (taps,) = seen
    for tensor in (taps.z0, taps.h):
        assert not tensor.requires_grad and tensor.grad_fn is None and tensor.grad is None


def test_taps_are_not_changed_by_the_arms_and_no_graph_outlives_a_step(sweep: Run) -> None:
    fed = next(fed for fed in sweep.feed if fed.dataset == "videos")
    inputs = fed.inputs(slice(0, None))
    copies = {depth: [each.clone() for each in inputs[depth][:2]] for depth in (1, 3)}
    before = count_graphs()
    for name, trainer in sweep.trainers.items():
        trainer.step(0, inputs[sweep.models[name].frozen_depth], fed.labels, None)
        assert count_graphs() == before
    for depth, (z0, h) in copies.items():
        assert torch.equal(inputs[depth].z0, z0) and torch.equal(inputs[depth].h, h)


def test_only_the_heads_of_the_batch_learn(sweep: Run) -> None:
    datasets = set()
    for step, fed in enumerate(sweep.feed):
        before = bytes_of(sweep.models["gated"].arm.heads.state_dict())
        sweep.step(step, fed)
        after = bytes_of(sweep.models["gated"].arm.heads.state_dict())
        moved = {name.split(".")[0] for name in after if after[name] != before[name]}
        assert moved == ({"image_shape"} if fed.dataset == "images" else {"shape", "motion"})
        datasets.add(fed.dataset)
    assert datasets == {"images", "videos"}


def test_tubes_rest_while_images_train(tiny: Tiny) -> None:
    recipe = tiny()
    training = Run(recipe, {"model": recipe.arm})
    tubes = training.models["model"].tokenizer.tubes
    for step, fed in enumerate(training.feed):
        before = bytes_of(tubes.state_dict())
        training.step(step, fed)
        assert (bytes_of(tubes.state_dict()) == before) == (fed.dataset == "images")


FILES = ("recipe.yaml", "metrics.jsonl", "tensorboard", "result.json")


def test_a_run_writes_what_it_promises(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny()
    result = train(recipe, sweep_arms(recipe))
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {*FILES, *recipe.arms}
    assert json.loads((out / "result.json").read_text()) == asdict(result)
    assert recipes.load(out / "recipe.yaml") == recipes.settle(recipe, {}, "cpu")[0]
    lines = metrics(out)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        assert set(line["arms"]) == set(recipe.arms)
        assert {"loss", "heads", "lr", "grad_norm", "alpha", "seconds"} == set(line["arms"]["gated"])
        assert set(line["arms"]["last"]["heads"]) == set(recipe.data.train[line["dataset"]].heads)
    alphas = [line["arms"]["gated"]["alpha"] for line in lines]
    assert len(set(alphas)) == 4 and result.arms["gated"].alpha == alphas[-1]
    assert result.arms["full"].alpha is None and result.steps == 4
    assert result.arms["last"].loss == lines[-1]["arms"]["last"]["loss"]


def test_an_output_is_not_overwritten_by_accident(tiny: Tiny, tmp_path: Path) -> None:
    recipe, out = tiny("train.steps=1"), tmp_path / "out"
    arms = {"model": recipe.arm}
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        train(recipe, arms)
    with pytest.raises(UserError, match="not the directory of a run"):
        train(recipe, arms, overwrite=True)
    assert (out / "thesis.tex").read_text() == "mine"
    (out / "thesis.tex").rename(out / "recipe.yaml")
    with pytest.raises(UserError, match="frozen_depth 7"):
        train(recipe, {"model": schema.Arm(frozen_depth=7)}, overwrite=True)
    assert (out / "recipe.yaml").read_text() == "mine"  # a run that cannot start replaces nothing
    train(recipe, arms, overwrite=True)
    assert recipes.load(out / "recipe.yaml") == recipes.settle(recipe, {}, "cpu")[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["arm.frozen_depth=4"], "arm 'model' has frozen_depth 4; the model has 3 blocks, allowed are 0 to 3"),
        (["out="], "set out"),
        (
            ["arm.lr=1e30", "arm.clip=0", "train.steps=20"],
            "arm 'model' diverged: its (loss|gradient's norm) is (nan|inf) at step",
        ),
    ],
)
def test_what_cannot_work_is_said(tiny: Tiny, changes: list[str], said: str) -> None:
    recipe = replace(tiny(), out="") if changes == ["out="] else tiny(*changes)
    with pytest.raises(UserError, match=said):
        train(recipe, {"model": recipe.arm})


KINDS = ("full", "dora", "ia3")
PLAIN = ["train.mixup=0", "train.label_smoothing=0", "arm.clip=0"]
PLAIN += [f"model.backbone.kwargs.{kind}=0" for kind in ("proj_drop_rate", "drop_path_rate")]


@pytest.mark.parametrize(
    "change",
    [
        {"adapt": "lora"},
        *at_length({"frozen_depth": 0, "gate": False}, *({"adapt": k} for k in ("full", "dora", "ia3"))),
    ],
)
def test_products_in_bfloat16_train_float32_parameters(tiny: Tiny, change: dict) -> None:
    recipe = tiny("train.steps=20", *PLAIN)
    arm = replace(recipe.arm, **{"frozen_depth": 1, "gate": True} | change)
    training = Run(recipe, {precision: replace(arm, precision=precision) for precision in ("float32", "bfloat16")})
    fed = next(fed for fed in training.feed if fed.dataset == "videos")
    inputs = fed.inputs(slice(0, None))[arm.frozen_depth]
    exact, low = (trainer.engine(inputs, ["motion"])["motion"] for trainer in training.trainers.values())
    assert exact.dtype == low.dtype == torch.float32
    assert 1e-4 < ((exact - low).norm() / exact.norm()).item() < 0.05
    losses = [training.step(step, fed)["arms"] for step in range(20)]
    for name in ("float32", "bfloat16"):
        assert losses[-1][name]["loss"] < 0.8 * losses[0][name]["loss"]
        model, optimizer = training.models[name], training.trainers[name].engine.engine.optimizer
        held = [*model.parameters(), *(v for state in optimizer.state.values() for v in state.values())]
        assert len(held) > 20 and all(tensor.dtype == torch.float32 for tensor in held)
        assert training.trainers[name].result("", training.recent[name]).precision == name


def tensors(out: Path, arms: Iterable[str]) -> dict[str, dict[str, bytes]]:
    return {arm: {file.name: file.read_bytes() for file in (out / arm).rglob("*.safetensors")} for arm in arms}


STAGES = [(0, False), (1, False), (2, False), (1, True), (2, True)]


def zero(*short: tuple[int, bool]) -> pytest.MarkDecorator:
    """Stages of ZeRO, with the optimizer offloaded or not: of all, those that ``make test`` tries."""
    cases = [*short, *at_length(*(each for each in STAGES if each not in short))]
    return pytest.mark.parametrize(("stage", "offload"), cases)


@zero((0, False))
def test_a_run_in_pieces_ends_with_the_same_bytes(tiny: Tiny, tmp_path: Path, stage: int, offload: bool) -> None:
    """Stopped after every step, with all kinds of arms, dropout and mixes; heads that rested have no momentum."""
    changes = [
        f"train.zero_stage={stage}",
        f"train.offload={offload}",
        "train.steps=3",
        "train.betas=[0.8,0.95]",
        "train.cutmix=1",
        "data.train.videos.sampling=full",
    ]
    whole, pieces = (tiny(*changes, f"out={tmp_path / name}") for name in ("whole", "pieces"))
    late = replace(whole.arm, frozen_depth=1, gate=True, lora_rank=2)
    arms = {kind: replace(late, adapt=kind) for kind in ("lora", "dora", "ia3", "none", "full")}
    arms |= {"all": whole.arm, "low": replace(late, precision="bfloat16")}
    expected = train(whole, arms)
    for step in range(1, 3):
        assert train(pieces, arms, stop_after=0) == StoppedRun(pieces.out, 3, stopped=step, exit=0)
    result = train(pieces, arms)
    assert tensors(tmp_path / "pieces", arms) == tensors(tmp_path / "whole", arms)
    for name in arms:
        assert result.arms[name].loss == expected.arms[name].loss
    lines = metrics(tmp_path / "pieces")
    assert [line["step"] for line in lines] == list(range(3))
    assert {line["dataset"] for line in lines} == {"videos", "images"}


def test_a_resumed_trunk_keeps_the_precision_that_was_measured(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured again, another could be the fastest."""
    recipe, seconds = tiny("trunk.precision=auto"), iter([{"bfloat16": 1.0, "float32": 2.0}, {"float32": 1.0}])
    monkeypatch.setattr("scaleup.model.build.measure_precisions", lambda *_: next(seconds))
    arms = {"model": replace(recipe.arm, frozen_depth=2)}
    train(recipe, arms, stop_after=0)
    assert train(recipe, arms).trunk["precision"] == "bfloat16"


def test_another_recipe_does_not_go_on(tiny: Tiny) -> None:
    recipe = tiny()
    arms = {"model": recipe.arm}
    train(recipe, arms, stop_after=0)
    with pytest.raises(UserError, match="another recipe: train.steps is 4 there and 5 here, arm.lr is 0.01 there and"):
        train(tiny("train.steps=5", "arm.lr=0.02"), arms)
    with pytest.raises(UserError, match="is of other arms"):
        train(recipe, {"model": replace(recipe.arm, lr=0.02)})
    harmless = tiny("data.workers=1", "train.save_every=1", "train.keep=1")
    assert train(harmless, arms, stop_after=0).stopped == 2
    assert train(tiny("train.steps=5"), arms, overwrite=True, stop_after=0).stopped == 1
    train(tiny("train.steps=5"), arms)
    with pytest.raises(UserError, match="exists, and its run is complete"):
        train(tiny("train.steps=5"), arms)


def test_a_run_goes_on_that_is_older_than_some_settings(tiny: Tiny, tmp_path: Path) -> None:
    recipe, path = tiny(), tmp_path / "out" / "recipe.yaml"
    arms = {"model": recipe.arm}
    train(recipe, arms, stop_after=0)
    younger = ("fresh_blocks: 0", "summed: false", "inflate: false")
    lines = path.read_text().splitlines(keepends=True)
    older = "".join(line for line in lines if not line.strip().startswith(younger))
    assert len(older.splitlines()) == len(lines) - len(younger)
    path.write_text(older)
    with pytest.raises(UserError, match="another recipe: .*, model.inflate is False there and True here; name"):
        train(tiny("model.inflate=true", "model.backbone.weights=meta"), arms)
    assert train(recipe, arms).steps == 4
    path.write_text(older + "unknown: 3\n")
    with pytest.raises(UserError, match="recipe.yaml' cannot be read .unknown: unknown key") as error:
        train(recipe, arms)
    assert "\n" not in str(error.value)


def test_a_run_goes_on_from_another_directory(
    tiny: Tiny, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_path.parent)
    places = {name: Path(each.shards) for name, each in tiny().data.train.items()}
    changes = [f"data.train.{name}.shards={place.relative_to(tiny_path.parent)}" for name, place in places.items()]
    recipe, path = tiny(*changes), tmp_path / "out" / "recipe.yaml"
    arms = {"model": recipe.arm}
    train(recipe, arms, stop_after=0)
    assert {name: Path(each.shards) for name, each in recipes.load_saved(path).data.train.items()} == places
    monkeypatch.chdir(tmp_path)
    assert train(tiny(), arms, stop_after=0).stopped == 2
    recipes.save(recipe, path)  # as older versions did
    monkeypatch.chdir(tiny_path.parent)
    assert train(tiny(), arms, stop_after=0).stopped == 3


def test_a_run_is_as_long_as_its_longest_arm(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny("arm.steps=2")
    assert train(recipe, {"model": recipe.arm}, stop_after=0) == StoppedRun(recipe.out, 2, stopped=1, exit=0)
    assert run_records.read(tmp_path / "out").state == "unfinished: 1 of 2 steps so far"


def test_a_run_is_read_without_its_data(tiny: Tiny, tiny_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_path.parent / "shapes", tmp_path / "shapes")
    places = {name: tmp_path / "shapes" / Path(each.shards).name for name, each in tiny().data.train.items()}
    recipe = tiny(*(f"data.train.{name}.shards={place}" for name, place in places.items()))
    train(recipe, {"model": recipe.arm})
    shutil.rmtree(tmp_path / "shapes")
    assert run_records.read(tmp_path / "out").state == "complete, 4 steps"
    assert load_run(tmp_path / "out").keys() == {"model"}


def test_training_goes_on_where_a_checkpoint_cannot_be_saved(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scaleup.training.run_directory.file_sha256", full)
    recipe = tiny("train.save_every=2")
    train(recipe, {"model": recipe.arm})
    assert (tmp_path / "out" / "model" / "config.json").exists()
    assert capsys.readouterr().err.count("cannot be written: No space left on device") == 2


def test_a_checkpoint_of_another_model_is_refused(tiny: Tiny) -> None:
    recipe = tiny()
    trainer = Run(recipe, {"model": recipe.arm}).trainers["model"]
    tensors = optimizer_state.gather(trainer.engine, trainer.world)
    with pytest.raises(UserError, match="the checkpoint is of another model: tail.norm.weight"):
        optimizer_state.restore(trainer.engine, {n: t for n, t in tensors.items() if n != "arm/tail.norm.weight"})


STILL = ["model.backbone.kwargs.proj_drop_rate=0", "model.backbone.kwargs.drop_path_rate=0"]


def lines_of(recipe: Recipe, arms: dict[str, schema.Arm]) -> list[dict]:
    train(recipe, arms, overwrite=True)
    return metrics(Path(recipe.out))


@zero((2, False))
@pytest.mark.parametrize("parts", [2, *at_length(4)])
def test_micro_batches_take_the_same_steps(tiny: Tiny, parts: int, stage: int, offload: bool) -> None:
    """Mixes cross the borders of micro-batches; without dropout nothing else tells them from the whole batch."""
    changes = [
        *STILL,
        f"train.zero_stage={stage}",
        f"train.offload={offload}",
        "train.steps=6",
        "train.mixup=0.4",
        "train.cutmix=1",
    ]
    recipe = tiny(*changes)
    arms = {"full": recipe.arm, "gated": replace(recipe.arm, frozen_depth=1, gate=True, clip=0.5)}
    whole, cut = lines_of(tiny(*changes), arms), lines_of(tiny(*changes, f"train.accumulate={parts}"), arms)
    assert len(cut) == len(whole) == 6
    for one, other in zip(whole, cut, strict=True):
        for name in arms:
            for key in ("loss", "grad_norm", "lr"):
                assert other["arms"][name][key] == pytest.approx(one["arms"][name][key], rel=1e-3), (key, one["step"])
            for head, measured in one["arms"][name]["heads"].items():
                assert other["arms"][name]["heads"][head] == pytest.approx(measured, rel=1e-3)


def test_micro_batches_draw_their_own_dropout(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alike in all arms."""
    recipe, seeds, real = tiny("train.accumulate=2"), list[int](), torch.manual_seed
    training = Run(recipe, {"one": recipe.arm, "other": recipe.arm})
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or real(seed))
    training.train()
    assert seeds[::2] == seeds[1::2] and len(set(seeds)) == len(seeds) / 2 == 4 * 2


def test_a_batch_that_cannot_be_divided_is_refused(tiny: Tiny) -> None:
    recipe = tiny("train.accumulate=3")
    with pytest.raises(UserError, match="batch 4 cannot be divided evenly by 1 ranks times train.accumulate 3"):
        train(recipe, {"model": recipe.arm})


@zero((1, True))
def test_checkpointed_activations_change_no_bit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, offload: bool
) -> None:
    """Dropout draws the same when a block is computed again."""
    calls: list[object] = []
    monkeypatch.setattr("scaleup.model.arm.checkpoint", lambda *a, **k: calls.append(a) or checkpoint(*a, **k))
    changes = [f"train.zero_stage={stage}", f"train.offload={offload}"]
    late = replace(tiny().arm, frozen_depth=1, gate=True)
    arms = {"full": tiny().arm, "lora": replace(late, adapt="lora"), "low": replace(late, precision="bfloat16")}
    again = {name: replace(arm, grad_checkpointing=True) for name, arm in arms.items()}
    train(tiny(*changes, f"out={tmp_path / 'kept'}"), arms)
    assert not calls
    train(tiny(*changes, f"out={tmp_path / 'again'}"), again)
    assert len(calls) == 4 * (3 + 2 + 2)
    assert tensors(tmp_path / "kept", arms) == tensors(tmp_path / "again", arms)


def test_two_processes_do_not_write_one_run(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny()
    train(recipe, {"model": recipe.arm}, stop_after=0)
    with (
        lock_run(tmp_path / "out"),
        pytest.raises(UserError, match="another process is at work on the run in"),
        lock_run(tmp_path / "out", patience=0.2),
    ):
        raise AssertionError
    assert train(recipe, {"model": recipe.arm}, stop_after=0).stopped == 2  # the lock went with the run
