"""Whole runs on a GPU: frozen bytes, resumed runs, caches, waits of the host, ZeRO, two GPUs, memory, predictions,
programs."""

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import bits, metrics
from support.tools import Running
from test_defaults import ROTARY
from test_placed import ARMS, FROZEN
from test_ranks import RESUMED

from scaleup.config.schema import Arm, Recipe
from scaleup.data.shards import Shards
from scaleup.evaluation.predictor import predict
from scaleup.model.build import load
from scaleup.model.tokenizer import Tokenizer
from scaleup.outputs.conversion import export
from scaleup.sweeps import costs
from scaleup.training import run as running
from scaleup.training import token_cache
from scaleup.training.run import Run, train

Tiny = Callable[..., Recipe]
GATED = {"gated": ARMS["gated"]}


def test_frozen_weights_do_not_change(tiny: Tiny) -> None:
    run = Run(tiny(), ARMS)
    trunk = max((model.trunk for model in run.models.values() if model.trunk), key=lambda trunk: len(trunk.blocks))
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    feed = iter(run.feed)
    for step in range(3):
        run.step(step, next(feed))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())
    assert all(tensor.device.type == "cuda" for tensor in trunk.state_dict().values())
    run.close()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_deterministic_run_goes_on_bit_for_bit(precision: str, tiny: Tiny, tmp_path: Path) -> None:
    changes = ["train.deterministic=true", f"trunk.precision={precision}", f"arm.precision={precision}"]
    for name in ("whole", "pieces"):
        read = tiny(*changes, f"out={tmp_path / name}")
        if name == "pieces":
            assert train(read, ARMS, stop_after=0).stopped
        train(read, ARMS)
    assert bits(tmp_path / "whole") == bits(tmp_path / "pieces")


def test_an_arm_of_a_sweep_is_the_arm_alone(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny("train.deterministic=true", f"out={tmp_path / 'all'}"), ARMS)
    train(tiny("train.deterministic=true", f"out={tmp_path / 'one'}"), GATED)
    assert bits(tmp_path / "all", "gated") == bits(tmp_path / "one", "gated")


def test_a_cache_gives_the_losses_of_a_live_trunk(tiny: Tiny, tmp_path: Path) -> None:
    changes = ["train.mixup=0", "arms.full=null", "trunk.precision=float32", "train.tf32=false"]
    token_cache.make(tiny(*changes), [1, 2, 3], tmp_path / "cache", precision="float32")
    train(tiny(*changes, f"out={tmp_path / 'live'}"), FROZEN)
    train(tiny(*changes, f"trunk.cache={tmp_path / 'cache'}", f"out={tmp_path / 'cached'}"), FROZEN)
    for live, cached in zip(metrics(tmp_path / "live"), metrics(tmp_path / "cached"), strict=True):
        for arm in FROZEN:
            assert cached["arms"][arm]["loss"] == pytest.approx(live["arms"][arm]["loss"], rel=1e-2)


@pytest.mark.parametrize("changes", [[], ["trunk.placement=host"], ["train.accumulate=2"], ["train.cuda_graphs=trunk"]])
def test_the_host_waits_for_nothing_but_numbers(
    changes: list[str], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_numbers = running.read_numbers

    def waited(entries: list[Any]) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        numbers = read_numbers(entries)
        torch.cuda.set_sync_debug_mode("error")
        return numbers

    run = Run(tiny("train.steps=8", *changes), ARMS)
    feed = iter(run.feed)
    for step in range(4):
        run.step(step, next(feed))
    monkeypatch.setattr(running, "read_numbers", waited)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.step(4, next(feed))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run.close()


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_in_micro_batches(stage: int, tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(f"train.zero_stage={stage}", "train.accumulate=2", "arms={}", "arm.frozen_depth=1"), GATED)
    norms = [line["arms"]["gated"]["grad_norm"] for line in metrics(tmp_path / "out")]
    assert len(norms) == 4 and all(0 < norm < math.inf for norm in norms)


def test_a_precision_is_measured_with_rotary_positions(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = train(tiny(ROTARY, "train.steps=2"), {"gated": Arm(frozen_depth=1, gate=True, precision="auto")})
    assert result.arms["gated"].precision in ("float32", "bfloat16")


@pytest.mark.real
@pytest.mark.parametrize("changes", [[], ["train.zero_stage=2", "train.accumulate=2"], ["train.zero_stage=3"]])
def test_two_gpus_go_on_where_they_were_stopped(changes: list[str], tiny_path: Path, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    changes = ["train.deterministic=true", *changes]
    done = Running(["-c", RESUMED, str(tiny_path), str(tmp_path), *changes], ranks=2).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    assert bits(tmp_path / "whole") == bits(tmp_path / "pieces")


@pytest.mark.real
def test_a_run_needs_the_memory_that_is_planned(tiny: Tiny) -> None:
    arms = {"last": Arm(frozen_depth=9, gate=True)}
    kwargs = "{patch_size: 8, embed_dim: 768, depth: 12, num_heads: 12}"
    plain = ["train.compile=off", "train.cuda_graphs=off"]  # as is planned
    read = tiny(f"model.backbone.kwargs={kwargs}", "data.batch=64", "arms=null", *plain)
    planned = costs.memory(read, arms)["total"]
    gc.collect()
    held = torch.cuda.memory_allocated()  # by earlier tests, and by libraries
    run = Run(read, arms)
    feed = iter(run.feed)
    run.step(0, next(feed))
    torch.cuda.reset_peak_memory_stats()  # without what preparing takes
    for step in (1, 2):
        run.step(step, next(feed))
    assert torch.cuda.max_memory_allocated() - held == pytest.approx(planned, rel=0.15)
    run.close()


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("compile", ["off", pytest.param("blocks", marks=pytest.mark.real)])
def test_cuda_graphs_give_the_bits_of_what_the_host_starts(
    compile: str, precision: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["train.deterministic=true", f"trunk.precision={precision}", f"train.compile={compile}"]
    for graphs in ("off", "trunk"):
        read = tiny(*changes, f"train.cuda_graphs={graphs}", f"out={tmp_path / graphs}")
        assert train(read, ARMS).cuda_graphs == graphs
    assert "no CUDA graph" not in capsys.readouterr().err
    assert bits(tmp_path / "off") == bits(tmp_path / "trunk")


def test_a_pass_that_waits_is_not_recorded(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = Tokenizer.forward
    monkeypatch.setattr(Tokenizer, "forward", lambda self, x: forward(self, x) + 0 * x.max().item())
    for graphs in ("off", "trunk"):
        changes = ["train.deterministic=true", f"train.cuda_graphs={graphs}", f"out={tmp_path / graphs}"]
        train(tiny(*changes), ARMS)
    assert "no CUDA graph of the trunk" in capsys.readouterr().err
    assert bits(tmp_path / "off") == bits(tmp_path / "trunk")


@pytest.mark.real
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_compiled_blocks_wait_on_the_host(precision: str, tiny: Tiny) -> None:
    """They give the losses of blocks that are not compiled, within the rounding of bfloat16."""

    def losses(compile: str) -> list[float]:
        changes = [f"trunk.precision={precision}", "trunk.placement=host", f"train.compile={compile}"]
        run = Run(tiny("train.mixup=0", *changes), FROZEN)
        entries = [run.step(step, fed)["arms"] for step, fed in enumerate(run.feed)]
        run.close()
        return [arm["loss"] for entry in entries for arm in entry.values()]

    assert losses("blocks") == pytest.approx(losses("off"), rel=0.02)


def test_predictions_are_made_there(tiny: Tiny, tmp_path: Path) -> None:
    run = train(tiny("train.steps=2"), GATED)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(Shards.open(tiny().data.train["videos"].shards).read(0).media)
    model = load(run.arms["gated"].directory)
    assert predict(model, [str(clip)], head="motion").files[0].top
    assert next(model.parameters()).device.type == "cuda"


@pytest.mark.real
@pytest.mark.parametrize("to", ["torch", "aoti"])
def test_a_program_for_the_gpu(to: str, tiny: Tiny, tmp_path: Path) -> None:
    run = train(tiny("train.steps=2"), GATED)
    written = export(run.arms["gated"].directory, to, tmp_path / to, device="cuda")
    assert max(written.differences.values()) < 1e-3
