"""Everything that computes gives on a pretended GPU the bits that it gives on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from pretended import gpu, on_gpu
from support.marks import at_length
from support.runs import bits, files

from scaleup.config import recipe
from scaleup.config.schema import Arm, Recipe
from scaleup.data.shards import Shards
from scaleup.evaluation.accuracy import evaluate
from scaleup.evaluation.depth_profile import probe
from scaleup.evaluation.overlay import overlay
from scaleup.evaluation.predictor import predict
from scaleup.model.build import load, load_run
from scaleup.outputs.conversion import export
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
FROZEN = {name: arm for name, arm in ARMS.items() if arm.frozen_depth}


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
    def run(name: str) -> Any:
        result = train(tiny(*changes, f"out={tmp_path / name}"), ARMS)
        return {arm: each.loss for arm, each in result.arms.items()}

    here, there = twice(run)
    assert here == there and bits(tmp_path / "cpu") == bits(tmp_path / "gpu")


def test_a_run_goes_on_where_it_was_stopped(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(f"out={tmp_path / 'whole'}"), ARMS)
    read = tiny(f"out={tmp_path / 'pieces'}")
    with gpu():
        assert train(read, ARMS, stop_after=0).stopped
        train(read, ARMS)
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
        token_cache.make(tiny("train.mixup=0", "arms.full=null"), [1, 2, 3], tmp_path / name)
        train(
            tiny("train.mixup=0", "arms.full=null", f"trunk.cache={tmp_path / name}", f"out={tmp_path / name}-run"),
            FROZEN,
        )
        return {path: content for path, content in files(tmp_path / name).items() if path.suffix == ".tar"}

    here, there = twice(make)
    assert here == there and bits(tmp_path / "cpu-run") == bits(tmp_path / "gpu-run")


def test_accuracy_is_the_same(swept: Path, tiny: Tiny) -> None:
    shards = tiny().data.train["videos"].shards
    here, there = twice(lambda _: {name: each.heads for name, each in evaluate(load_run(swept), shards).items()})
    assert here == there


def test_a_depth_profile_is_the_same(swept: Path, tiny: Tiny) -> None:
    shards = tiny().data.train["videos"].shards
    here, there = twice(lambda _: probe(load(swept / "gated"), shards, shards, depths=[0, 1]).labels)
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
    assert max(written.differences.values()) == 0
