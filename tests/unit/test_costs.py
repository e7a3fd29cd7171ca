"""What is said of a run before it begins, against runs that are really taken."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from support.marks import at_length

from scaleup.common.errors import UserError
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Arm, Recipe
from scaleup.model.build import fresh
from scaleup.model.tokenizer import natural_clip, normalise
from scaleup.model.tubevit import arm_inputs
from scaleup.sweeps import costs
from scaleup.sweeps.memory import by_part
from scaleup.sweeps.sketch import Sketch
from scaleup.sweeps.trace import counter
from scaleup.training import run_inputs as models_of_runs
from scaleup.training.run import Run

Tiny = Callable[..., Recipe]
MIB = 2**20
VIDEOS = "data.train.images=null"  # alone: half of the passes
DROPOUT = "model.backbone.kwargs.proj_drop_rate"  # with which the last block is computed for all tokens


def measured(recipe: Recipe, modality: str) -> tuple[dict[str, int], int]:
    """FLOPs by torch's own counter: of each arm's forward and backward for one batch, and of the trunk's pass."""
    run = Run(recipe, sweep_arms(recipe))
    model = run.models["full"]
    clip = normalise(natural_clip(8, (32, 32), recipe.data.batch), model.config.input)
    pixels = clip if modality == "video" else clip[:, :, 0]
    with counter() as trunk:
        inputs = arm_inputs(run.feed.trunk, pixels, run.models.values())  # type: ignore[union-attr]
    found = {}
    for name, trainer in run.trainers.items():
        with counter() as counted:
            logits = trainer.engine(inputs[run.models[name].frozen_depth], list(run.models[name].arm.heads))
            trainer.engine.step(torch.stack([each.sum() for each in logits.values()]).sum(), 1.0)
        found[name] = counted.get_total_flops()
    return found, trunk.get_total_flops()


@pytest.mark.parametrize(
    ("modality", "changes"),
    [
        ("image", ["train.kernels=library", "arms.gated.adapt=none", "arms.full.precision=bfloat16"]),
        ("video", ["train.kernels=lean", f"{DROPOUT}=0", "arms.low={frozen_depth: 1, gate: true, adapt: lora}"]),
        ("video", ["train.kernels=lean", "arms.gated.adapt=ia3", "arms.full.grad_checkpointing=true"]),
    ],
)
def test_flops_are_those_of_a_real_step(tiny: Tiny, modality: str, changes: list[str]) -> None:
    recipe = tiny(*changes, VIDEOS if modality == "video" else "data.train.videos=null")
    planned = costs.plan(recipe, sweep_arms(recipe), gflops=1)
    arms, trunk = measured(recipe, modality)
    batch = recipe.data.batch
    assert planned.flops[modality].trunk * batch == pytest.approx(trunk, rel=0.02)
    for name, flops in arms.items():
        assert planned.arms[name].flops[modality].step * batch == pytest.approx(flops, rel=0.02), name
    whole = trunk + sum(arms.values())
    assert planned.flops[modality].step * batch == pytest.approx(whole, rel=0.02)


def test_a_run_is_as_long_as_its_longest_arm(tiny: Tiny) -> None:
    recipe = tiny(VIDEOS, "arm.steps=2", "arms.last.steps=3")
    arms = {name: arm for name, arm in sweep_arms(recipe).items() if name != "full"}
    planned = costs.plan(recipe, arms, gflops=1)
    assert planned.steps == 3 and planned.time.run == pytest.approx(3 * planned.time.step)


def test_what_is_held_is_what_tensors_hold(tiny: Tiny) -> None:
    recipe = tiny("data.batch=8")
    arms = sweep_arms(recipe)
    run, held = Run(recipe, arms), costs.memory(recipe, arms)
    parameters = {id(p): p for model in run.models.values() for p in model.parameters()}
    frozen = {id(p): p for p in run.feed.trunk.parameters()}  # type: ignore[union-attr]
    assert held["trunk"] - sum(p.nbytes for p in frozen.values()) in range(200)  # buffers
    weights = sum(p.nbytes for key, p in parameters.items() if key not in frozen)
    assert weights <= held["arms"] <= weights + 200
    for fed in run.feed:
        run.step(0, fed)
        break
    states = [s for t in run.trainers.values() for s in t.engine.optimizer.state.values()]
    moments = sum(s[key].nbytes for s in states for key in ("exp_avg", "exp_avg_sq") if key in s)
    rests = sum(2 * p.nbytes for n, p in run.models["full"].arm.named_parameters() if "image_shape" in n)
    assert held["optimizer"] >= moments > held["optimizer"] - 20 * rests  # heads without a batch have none yet
    assert held["total"] == sum(size for part, size in held.items() if part != "total")


def test_what_autograd_keeps_is_counted(tiny: Tiny) -> None:
    """The bytes kept for backward, against the tensors that autograd is seen to save, each storage once."""
    recipe = tiny("train.kernels=library", "train.mixup=0")
    run, sketch = Run(recipe, sweep_arms(recipe)), Sketch(recipe, sweep_arms(recipe))
    model = run.models["gated"]
    taps = model.arm_inputs(normalise(natural_clip(8, (32, 32), 4), model.config.input))
    given = {p.untyped_storage().data_ptr() for p in [*model.parameters(), taps.h, taps.z0]}
    saved: dict[int, int] = {}
    keep = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        keep.append(tensor)
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run.trainers["gated"].engine(taps, list(model.arm.heads))
    wanted = sum(size for pointer, size in saved.items() if pointer not in given)
    assert sketch.arm("gated", "video", 4).kept == pytest.approx(wanted, rel=0.1)


def test_fast_products_take_the_same_operations_and_hold_scores_of_attention(tiny: Tiny) -> None:
    arms = {"pooled": Arm(frozen_depth=3, adapt="none")}  # the trunk is what takes most
    lean, fast = (costs.plan(tiny(f"train.kernels={each}", VIDEOS), arms, gflops=1) for each in ("lean", "fast"))
    assert fast.flops == lean.flops
    tokens, heads = fast.tokens.video, 2
    assert fast.memory["activations"] - lean.memory["activations"] == 2 * 4 * heads * tokens**2


def test_a_step_takes_less_the_more_is_frozen_whatever_trains_beside_it(tiny: Tiny) -> None:
    recipe = tiny(VIDEOS)
    arms = sweep_arms(recipe)
    flops = costs.step_flops(recipe, arms)
    assert 0 < flops["last"] < flops["gated"] < flops["full"]
    assert costs.step_flops(recipe, {"last": arms["last"]}) == {"last": flops["last"]}


def test_checkpointing_and_a_deeper_trunk_need_less(tiny: Tiny) -> None:
    def activations(**settings: object) -> int:
        recipe = tiny("data.batch=16", VIDEOS)
        return costs.memory(recipe, {"arm": Arm(**settings)})["activations"]  # type: ignore[arg-type]

    assert activations(grad_checkpointing=True) < 0.8 * activations()
    assert activations(frozen_depth=2) < 0.8 * activations()


def test_the_largest_batch_is_the_last_that_fits(tiny: Tiny) -> None:
    recipe = tiny(VIDEOS)
    arms = {"gated": sweep_arms(recipe)["gated"]}
    planned = costs.plan(recipe, arms, available=8 * MIB, gflops=1)
    sketch, largest = Sketch(recipe, arms), planned.largest_batch
    assert by_part(sketch, arms, largest)["total"] <= 8 * MIB < by_part(sketch, arms, largest + 1)["total"]
    assert planned.fits and not planned.warnings
    tight = costs.plan(tiny(VIDEOS, f"data.batch={largest + 1}"), arms, available=8 * MIB, gflops=1)
    assert not tight.fits and f"the largest batch that fits is {largest}" in tight.warnings[0]


def test_waves_fit_and_are_as_few_as_can_be(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(VIDEOS)
    arms = {f"arm{depth}{twin}": Arm(frozen_depth=depth) for depth in (0, 1, 3) for twin in "ab"}
    sketch = Sketch(recipe, arms)
    monkeypatch.setattr(costs, "Sketch", lambda *_: sketch)

    def total(names: Iterable[str]) -> int:
        return by_part(sketch, list(names), recipe.data.batch)["total"]

    assert costs.waves(recipe, arms, total(arms)) == [dict(sorted(arms.items(), key=lambda a: -a[1].frozen_depth))]
    available = max(total([name]) for name in arms) + 50_000
    made = costs.waves(recipe, arms, available)
    assert 1 < len(made) < len(arms) and {name for wave in made for name in wave} == set(arms)
    depths = [arm.frozen_depth for wave in made for arm in wave.values()]
    assert depths == sorted(depths, reverse=True)
    assert all(total(wave) <= available for wave in made)
    for wave, following in zip(made, made[1:], strict=False):
        assert total([*wave, next(iter(following))]) > available
    with pytest.raises(UserError, match=r"arm 'arm3a' alone needs .* MiB of a device and 0.5 MiB are available"):
        costs.waves(recipe, arms, MIB // 2)


def test_zero_shares_the_optimizer_among_ranks(tiny: Tiny) -> None:
    recipe = tiny("train.zero_stage=2", VIDEOS)
    trains = sum(p.nbytes for p in models_of_runs.build_models(recipe, {"arm": Arm()})["arm"].parameters())
    assert costs.memory(recipe, {"arm": Arm()}, ranks=4)["optimizer"] == 3 * trains // 4


@pytest.mark.parametrize(("depth", "frozen"), [(3, 2), *at_length((40, 38))])
def test_a_backbone_of_seven_billion_parameters_is_planned_without_memory(tiny: Tiny, depth: int, frozen: int) -> None:
    """Of 40 blocks, or the first few of them."""
    recipe, block = tiny(VIDEOS), 6.7e9 / 40
    recipe.model.backbone.name, recipe.model.backbone.kwargs = "timm:vit_7b_patch16_dinov3", {"depth": depth}
    recipe.model.input.size, recipe.model.positions.kind = [224, 224], "backbone"
    arms = {"arm": Arm(frozen_depth=frozen, gate=True)}
    assert all(tensor.is_meta for tensor in Sketch(recipe, arms).models["arm"].parameters())
    planned = costs.plan(recipe, arms, available=int(3 * depth * block), gflops=1000)
    counts = planned.arms["arm"]
    assert 0.98 * depth * block < counts.frozen_parameters + counts.trained_parameters < 1.03 * depth * block
    # A block's products take two operations a weight and token; attention comes on top of it.
    weights, count = frozen * block, planned.tokens.video
    assert 1 < planned.flops["video"].trunk / (2 * weights * count) < 1.1
    assert not planned.fits and planned.largest_batch == 0 and planned.waves == []


def test_a_cache_is_sized_by_its_views(tiny: Tiny) -> None:
    recipe = tiny()
    arms = {name: arm for name, arm in sweep_arms(recipe).items() if arm.frozen_depth}
    one, three = (Sketch(recipe, arms).cache_bytes(views).bytes for views in (1, 3))  # type: ignore[union-attr]
    videos, images, width, kinds = 12 * 41, 12 * 17, 24, 3  # z0, h1 and h3
    assert one["bfloat16"] > 2 * kinds * width * (videos + images) and one["int8"] < one["bfloat16"]
    assert three["bfloat16"] > one["bfloat16"]
    assert Sketch(recipe, sweep_arms(recipe)).cache_bytes(1) is None  # one arm trains everything


def test_a_plan_counts_tokens_and_parameters(tiny: Tiny) -> None:
    recipe = tiny()
    planned = costs.plan(recipe, sweep_arms(recipe), gflops=1)
    prefix, image, tube = 1, (32 // 8) ** 2, 2 * 2 * 2  # class token; 8x8 patches; kernel 4, stride (4, 16, 16)
    assert asdict(planned.tokens) == {
        "image": prefix + image,
        "video": prefix + 2 * image + tube,
        "prefix": prefix,
        "tubes": {"frames": 2 * image, "long": tube},
    }
    arms = planned.arms
    heads = sum((24 + 1) * classes for classes in (8, 6, 8))
    assert arms["last"].trained_parameters == heads + 2 * 24  # and the norm
    totals = {arm.frozen_parameters + arm.trained_parameters - (name == "gated") for name, arm in arms.items()}
    assert len(totals) == 1  # the same model three times; the gate is one parameter more


def test_arms_freeze_more_or_less_than_the_model_that_is_loaded(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny("data.train.videos=null")
    adapted = fresh(recipe.model, {}, 0).with_arm(2, True, {})
    recipe.model.load = str(adapted.save_pretrained(tmp_path / "adapted"))
    arms = costs.plan(recipe, sweep_arms(recipe), gflops=1).arms
    assert {name: arm.frozen_depth for name, arm in arms.items()} == {"full": 0, "last": 3, "gated": 1}
    assert arms["full"].frozen_parameters == 0 < arms["gated"].frozen_parameters
