"""What a GPU does by default: bfloat16, TF32, plans with a margin, and a sentence where its memory is full."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pretended
import pytest
import torch
from pretended import gpu
from test_placed import EXACT

import scaleup
from scaleup.common import distributed
from scaleup.common.distributed import device_type, join
from scaleup.common.errors import UserError
from scaleup.config import recipe as recipes
from scaleup.config.schema import Arm, Recipe, Trunk
from scaleup.data.shards import Shards
from scaleup.evaluation.accuracy import evaluate
from scaleup.evaluation.depth_profile import probe
from scaleup.evaluation.predictor import predict
from scaleup.model import build, trunk
from scaleup.model.build import fresh, prepare_trunks
from scaleup.model.kernel_choice import kept_choices
from scaleup.sweeps import costs
from scaleup.sweeps.parts import sweep
from scaleup.training import run_directory, token_cache
from scaleup.training.arm_trainer import ArmTrainer, Classifier
from scaleup.training.run import Run
from scaleup.training.run_directory import Checkpoints
from scaleup.training.run_inputs import build_models

Tiny = Callable[..., Recipe]
GATED = {"gated": Arm(frozen_depth=1, gate=True, lr=0.01)}
LAST = {"last": Arm(frozen_depth=3)}
ROTARY = "model.backbone.name=timm:eva02_tiny_patch14_224"


@pytest.fixture(autouse=True)
def products() -> Iterator[None]:
    """How this process computes: at first as a new one, and then as it was."""
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    backends.cuda.matmul.allow_tf32 = False
    yield
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)
    backends.cuda.enable_mem_efficient_sdp(True)
    backends.cuda.enable_cudnn_sdp(True)


def test_a_gpu_computes_in_bfloat16_and_keeps_float32(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    types: dict[str, Any] = {}
    forward = Classifier.forward

    def spied(self: Classifier, inputs: Any, heads: list[str]) -> Any:
        logits = forward(self, inputs, heads)
        types["logits"] = {each.dtype for each in logits.values()}
        types["products"] = torch.is_autocast_enabled("cpu") or self.low
        types["rounded"] = all(torch.equal(each, each.bfloat16().float()) for each in logits.values())
        return logits

    monkeypatch.setattr(Classifier, "forward", spied)
    with gpu():
        run = Run(tiny(), GATED)
        entry = run.step(0, next(iter(run.feed)))
        trainer = run.trainers["gated"]
        moments = [each for state in trainer.engine.optimizer.state.values() for each in state.values()]
        run.close()
    assert run.recipe.trunk.precision == run.about_trunk["precision"] == trainer.settings.precision == "bfloat16"
    assert {each.dtype for each in run.models["gated"].trunk.blocks.parameters()} == {torch.bfloat16}
    assert types == {"logits": {torch.float32}, "products": True, "rounded": False}
    tensors = [*run.models["gated"].arm.parameters(), *moments]
    assert {tensor.dtype for tensor in tensors} == {torch.float32} and entry["arms"]["gated"]["grad_norm"] > 0
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("change", [ROTARY, "model.positions.kind=relative"])
def test_a_precision_is_measured_there(
    change: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of blocks that are told of positions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with gpu():
        run = Run(tiny(change), {"gated": Arm(frozen_depth=1, gate=True, precision="auto")})
        run.close()
    assert run.trainers["gated"].settings.precision in ("float32", "bfloat16") and kept_choices().is_file()


def test_a_cpu_computes_in_float32(tiny: Tiny) -> None:
    run = Run(tiny(), GATED)
    assert run.recipe.trunk.precision == run.trainers["gated"].settings.precision == "float32"
    assert not torch.backends.cuda.matmul.allow_tf32
    run.close()


def test_a_run_of_a_stated_precision_goes_on_where_the_device_has_it(tiny: Tiny) -> None:
    """Runs hold the precision that they began with."""
    read = tiny()
    run_directory.begin(recipes.settle(read, {}, "cpu")[0], overwrite=False)
    assert run_directory.check_resumable(read, overwrite=False)
    with gpu(), pytest.raises(UserError, match="trunk.precision is 'float32' there and 'bfloat16' here"):
        run_directory.check_resumable(read, overwrite=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("trunk.precision=bfloat16", "trunk.precision is bfloat16, but .* allowed are float32, float16 and auto"),
        ("trunk.precision=int8", "trunk.precision is int8, but"),
        ("arm.precision=bfloat16", "arm.precision is bfloat16, but .* allowed are float32 and auto"),
        ("arms.gated.precision=bfloat16", "arm.precision is bfloat16"),
    ],
)
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(tiny: Tiny, change: str, said: str) -> None:
    with gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        settled, arms = recipes.settle(tiny(), GATED, "cuda")
        assert settled.trunk.precision == arms["gated"].precision == "float32"
        with pytest.raises(UserError, match=said):
            changed = tiny(change)
            recipes.settle(changed, recipes.sweep_arms(changed), "cuda")


def test_frozen_blocks_are_not_cast_to_what_the_gpu_only_emulates(tiny: Tiny) -> None:
    with gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
        model = build_models(tiny(), GATED)["gated"]
        with pytest.raises(UserError, match="trunk.precision is int8, but this GPU"):
            prepare_trunks([model], Trunk("int8"), join())


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("The NVIDIA driver on your system is too old (found version 11040). Please update.\nhttps://x", True),
        ("Found no NVIDIA driver on your system.", False),
        ("No CUDA GPUs are available", False),
    ],
)
def test_a_driver_that_does_not_fit_is_told(said: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "init", init)
    distributed._refuse_driver.cache_clear()
    if refused:
        with pytest.raises(UserError, match=r"cannot use the GPU: .*too old \(found version 11040\). Please update"):
            device_type()
    else:
        assert device_type() == "cpu"
    distributed._refuse_driver.cache_clear()


def test_caches_and_evaluation_say_how_a_gpu_computes(tiny: Tiny, tmp_path: Path) -> None:
    def tf32() -> set[bool]:
        return {torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32}

    with gpu():
        token_cache.make(tiny("train.tf32=false", "arms.full=null"), [1], tmp_path / "cache")
        assert tf32() == {False}
        run = scaleup.sweep(tiny("train.steps=1"), GATED)
        torch.backends.cuda.matmul.allow_tf32 = False
        scaleup.evaluate(scaleup.load_run(run.out), tiny().data.train["videos"].shards)
        assert tf32() == {True}


def test_deterministic_is_what_torch_is_told(tiny: Tiny) -> None:
    with gpu():
        for on in (True, False):
            Run(tiny(f"train.deterministic={on}", "train.tf32=false"), GATED).close()
            cuda = torch.backends.cuda
            assert torch.are_deterministic_algorithms_enabled() == on
            assert cuda.mem_efficient_sdp_enabled() == cuda.cudnn_sdp_enabled() == (not on)
            assert not cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_plans_are_made_in_the_precision_of_a_gpu_and_leave_a_margin(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions: list[str] = []
    monkeypatch.setattr(costs, "measured", lambda precision: precisions.append(precision) or 1000.0)
    with gpu():
        planned = costs.plan(tiny(), LAST)
    assert precisions == ["bfloat16"] and planned.available == int(0.9 * pretended.SIZE)
    exact = costs.memory(tiny(*EXACT), LAST)["trunk"]
    assert planned.memory["trunk"] < 0.7 * exact  # blocks in bfloat16; their originals are on the host


FULL = [  # how memory of a device ends: in torch's allocator, in CUDA, in its libraries
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize(("train", "error"), [(sweep, FULL[0]), *((scaleup.train, error) for error in FULL[1:])])
def test_a_full_device_is_a_sentence_and_the_checkpoint_stays(
    train: Callable[..., Any], error: Exception, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ArmTrainer.step

    def full(self: ArmTrainer, number: int, *args: Any) -> Any:
        if number == 2:
            raise error
        return step(self, number, *args)

    monkeypatch.setattr(ArmTrainer, "step", full)
    monkeypatch.setattr(costs, "waves", lambda recipe, arms, *_: [arms])  # a plan takes seconds
    read = tiny("train.save_every=1", "train.steps=4")
    with gpu(), pytest.raises(UserError, match=r"^the device has no memory left; .*last checkpoint stays") as raised:
        train(read, GATED)
    words = ("try data.batch=2;", "arm.grad_checkpointing=true and train.cuda_graphs=off need less")
    for part in ("trunk", "arms", "optimizer", "activations", *words):
        assert part in str(raised.value)
    with gpu(), pytest.raises(UserError, match="so other processes may use the device; train.accumulate"):
        train(tiny("data.batch=1", f"out={read.out}-single"), GATED)  # a smaller batch cannot be advised
    saved = Checkpoints(Path(read.out) / "checkpoints", 2).newest()
    assert saved is not None and saved.step == 2
    monkeypatch.setattr(ArmTrainer, "step", step)
    with gpu():
        result = train(tiny("train.save_every=1", "train.steps=4", "trunk.placement=host"), GATED)
    assert result.arms["gated"].steps == 4


def evaluated(read: Recipe) -> None:
    evaluate(build_models(read, GATED), read.data.train["videos"].shards, "2x1", batch=4, workers=0)


def probed(read: Recipe) -> None:
    shards = read.data.train["videos"].shards
    probe(fresh(read.model, {}, 0).eval(), shards, shards, batch=4, workers=0)


def cached(read: Recipe) -> None:
    token_cache.make(read, [1], f"{read.out}-cache")


def predicted(read: Recipe) -> None:
    clip = Path(f"{read.out}.mp4")
    clip.write_bytes(Shards.open(read.data.train["videos"].shards).read(0).media)
    predict(build_models(read, GATED)["gated"], [str(clip)], head="motion", batch=1)


@pytest.mark.parametrize(
    ("call", "clips", "advice"),
    [
        (evaluated, 8, r"a smaller batch than 4 \(--batch\) or fewer views \(--views\) or --placement host"),
        (probed, 4, r"a smaller batch than 4 \(--batch\) or --placement host"),
        (cached, 4, r"a smaller batch than 4 \(data.batch\) or trunk.placement=host"),
        (predicted, 1, r"the CPU \(CUDA_VISIBLE_DEVICES=\)"),
    ],
)
def test_a_device_that_is_full_without_training_is_a_sentence(
    call: Callable[[Recipe], None], clips: int, advice: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names no setting of training."""

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trunk.Trunk, "forward", full)
    monkeypatch.setattr(build, "_cast", lambda *_: ("float32", {}))  # which computes a clip
    parts = rf"trunk \d.* [KM]iB, arms \d.* [KM]iB, pixels of {clips} clips \d.* [KM]iB"
    said = rf"^the device has no memory left; of 80.00 GiB it holds {parts}, and .*; use {advice}$"
    with gpu(), pytest.raises(UserError, match=said):
        call(tiny())
