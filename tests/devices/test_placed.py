"""Everything that computes gives on a pretended GPU the bits that it gives on the CPU."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from pretended import gpu, gpu_device, on_gpu
from support.marks import at_length
from support.runs import bits, files

from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.config.schema import Arm, Recipe, Trunk
from scaleup.data.shards import Shards
from scaleup.evaluation.accuracy import evaluate
from scaleup.evaluation.depth_profile import probe
from scaleup.evaluation.overlay import overlay
from scaleup.evaluation.predictor import predict
from scaleup.model.build import load, load_run
from scaleup.outputs import programs
from scaleup.outputs.conversion import export, parity
from scaleup.training import token_cache
from scaleup.training.run import Run, train

T = TypeVar("T")
Tiny = Callable[..., Recipe]
POOL: dict[str, Any] = {"pool": "attentive", "pool_queries": 3, "pool_heads": 4}
ARMS = {
    "full": Arm(lr=0.01),
    "gated": Arm(frozen_depth=1, gate=True, lr=0.01),
    "lora": Arm(frozen_depth=2, adapt="lora", lora_rank=2, lr=0.01),
    "read": Arm(frozen_depth=3, taps=[1], lr=0.01, **POOL),
}
EXACT = ["trunk.precision=float32", "arm.precision=float32"]  # as the CPU computes
EXACT_ARMS = {name: replace(arm, precision="float32") for name, arm in ARMS.items()}
FROZEN = {name: arm for name, arm in EXACT_ARMS.items() if arm.frozen_depth}
NOT_BIT_FOR_BIT = "; train.deterministic is false, so within rounding, not bit for bit"


def twice(call: Callable[[str], T]) -> tuple[T, T]:
    """What ``call(name)`` returns on the CPU, and on a pretended GPU."""
    here = call("cpu")
    with gpu():
        return here, call("gpu")


@pytest.fixture(scope="module")
def swept(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swept") / "run"
    train(recipe.load(tiny_path, ["train.steps=2", f"out={out}"]), ARMS)
    return out


@pytest.mark.parametrize(
    "changes", [[], *at_length(["train.zero_stage=1", "train.offload=true"], ["train.accumulate=2"])]
)
def test_arms_train_to_the_same_bits(tiny: Tiny, tmp_path: Path, changes: list[str]) -> None:
    arms = EXACT_ARMS | {"short": replace(EXACT_ARMS["gated"], clip=1e3)}  # whose gradients are shorter

    def run(name: str) -> Any:
        result = train(tiny(*EXACT, *changes, f"out={tmp_path / name}"), arms)
        return {arm: each.loss for arm, each in result.arms.items()}

    here, there = twice(run)
    assert here == there and bits(tmp_path / "cpu") == bits(tmp_path / "gpu")


@pytest.mark.parametrize(("deterministic", "words"), [("true", ""), *at_length(("false", NOT_BIT_FOR_BIT))])
def test_a_run_goes_on_where_it_was_stopped(
    deterministic: str, words: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(*EXACT, f"out={tmp_path / 'whole'}"), EXACT_ARMS)
    read = tiny(*EXACT, f"train.deterministic={deterministic}", f"out={tmp_path / 'pieces'}")
    with gpu():
        assert train(read, EXACT_ARMS, stop_after=0).stopped
        train(read, EXACT_ARMS)
    assert f"resuming at step 1 of 4{words}\n" in capsys.readouterr().err
    assert bits(tmp_path / "whole") == bits(tmp_path / "pieces")


@pytest.mark.parametrize("placement", ["device", "host"])
def test_frozen_blocks_are_where_the_recipe_says(tiny: Tiny, placement: str, tmp_path: Path) -> None:
    with gpu():
        run = Run(tiny(f"trunk.placement={placement}", "trunk.precision=bfloat16"), FROZEN)
        trunk = max((model.trunk for model in run.models.values()), key=lambda trunk: len(trunk.blocks))
        tensors = list(trunk.blocks.parameters())
        assert all(on_gpu(each) == (placement == "device") for each in tensors)
        assert all(each.dtype == torch.bfloat16 for each in tensors)
        run.close()


def test_a_cache_has_the_same_bytes_and_arms_train_from_it(tiny: Tiny, tmp_path: Path) -> None:
    def make(name: str) -> dict[Path, bytes]:
        changes = [*EXACT, "train.mixup=0", "arms.full=null"]
        token_cache.make(tiny(*changes), [1, 2, 3], tmp_path / name)
        train(tiny(*changes, f"trunk.cache={tmp_path / name}", f"out={tmp_path / name}-run"), FROZEN)
        return {path: content for path, content in files(tmp_path / name).items() if path.suffix == ".tar"}

    here, there = twice(make)
    assert here == there and bits(tmp_path / "cpu-run") == bits(tmp_path / "gpu-run")


def test_accuracy_is_the_same(swept: Path, tiny: Tiny) -> None:
    shards = tiny().data.train["videos"].shards
    trunk = Trunk("float32")
    here, there = twice(
        lambda _: {name: each.heads for name, each in evaluate(load_run(swept), shards, trunk=trunk).items()}
    )
    assert here == there


def test_a_depth_profile_is_the_same(swept: Path, tiny: Tiny) -> None:
    trunk = Trunk("float32")
    shards = tiny().data.train["videos"].shards
    here, there = twice(lambda _: probe(load(swept / "gated"), shards, shards, depths=[0, 1], trunk=trunk).labels)
    assert here == there


@pytest.mark.parametrize("arm", ["gated", "read"])
def test_predictions_are_made_on_the_gpu(swept: Path, tiny: Tiny, arm: str, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(Shards.open(tiny().data.train["videos"].shards).read(0).media)

    here = predict(load(swept / arm), [str(clip)], head="motion")
    with gpu() as events:
        assert predict(load(swept / arm), [str(clip)], head="motion") == here
        assert events.total("upload")


@pytest.mark.parametrize("arm", ["gated", "read"])
def test_an_overlay_is_the_same(swept: Path, arm: str) -> None:
    clip = torch.randint(0, 256, (3, 8, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def draw(name: str) -> Any:
        model = load(swept / arm)
        return overlay(model.to("cuda") if name == "gpu" else model, clip, "motion").tolist()

    here, there = twice(draw)
    assert here == there


def test_a_model_on_the_gpu_is_exported(swept: Path, tmp_path: Path) -> None:
    with gpu():
        written = export(swept / "gated", "full", tmp_path / "full")
        placed, other = load(swept / "gated").place(gpu_device()), load(tmp_path / "full")
        assert max(written.differences.values()) == max(parity(placed, other).values()) == 0


@pytest.mark.parametrize(("ending", "device"), [(".pt2", "cuda"), (".onnx", "cpu")])
def test_a_program_runs_on_the_device_of_the_model(
    ending: str, device: str, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of ONNX runs on any; its model moves to the CPU."""
    devices, models = set(), []

    def traced(whole: Any, pixels: torch.Tensor, ends: Any) -> Any:
        devices.add(pixels.device.type)
        models.append(whole)
        return whole

    monkeypatch.setattr(programs, "traced", traced)
    form = programs.Form(ending, lambda traced, path, names: path.touch(), lambda path, names: models[-1])
    with gpu():
        differences, _ = programs.write(load(swept / "gated").place(gpu_device()), form, tmp_path)
    assert devices == {device} and max(differences.values()) == 0
    assert json.loads((tmp_path / "labels.json").read_text())["device"] == device


def test_a_device_that_is_not_there_or_not_built_in_is_refused(swept: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no device 'cuda' here"):
        export(swept / "gated", "torch", tmp_path / "out", device="cuda")
    with gpu(), pytest.raises(UserError, match="--device is for programs that run on one device"):
        export(swept / "gated", "onnx", tmp_path / "out", device="cuda")
