"""Blocks that torch compiles: one program for all that are alike, and every promise as without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import bits, metrics
from support.small import SHAPES, small_model
from torch._dynamo import lookup_backend

from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Recipe
from scaleup.model import compiled, kernel_choice, trunk
from scaleup.model.kernel_choice import set_compile
from scaleup.model.kernels import computed, every_token
from scaleup.training.run import Run, train

Tiny = Callable[..., Recipe]
NO_DROP = (
    "model.backbone.kwargs={patch_size: 8, embed_dim: 24, depth: 4, num_heads: 2, drop_path_rate: 0, proj_drop_rate: 0}"
)
GATED = Arm(frozen_depth=2, gate=True, lr=0.01)
READ = Arm(frozen_depth=4, pool="attentive", pool_depth=2, pool_heads=4, lr=0.01)
ARMS = {"gated": GATED, "lora": Arm(frozen_depth=3, adapt="lora", lora_rank=2, lr=0.01), "read": READ}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was compiled: the programs, which compute as torch does without."""
    made: list[Any] = []

    def counted(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", counted)
    compiled.program.cache_clear()
    return made


def losses(run: Path) -> list[float]:
    return [arm["loss"] for line in metrics(run) for arm in line["arms"].values()]


def test_blocks_that_are_alike_share_a_program(tiny: Tiny, programs: list[Any]) -> None:
    """Frozen blocks and trained ones; and frozen bytes stay."""
    counts = []
    for depth in (4, 6):
        torch._dynamo.reset()
        programs.clear()
        run = Run(tiny(NO_DROP.replace("depth: 4", f"depth: {depth}"), "train.compile=blocks"), {"gated": GATED})
        frozen = run.models["gated"].trunk.state_dict()
        before = copy.deepcopy(frozen)
        run.step(0, next(iter(run.feed)))
        assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.items())
        counts.append(len(programs))
        run.close()
    assert counts == [3, 3]  # frozen, trained, the last one for the class token


def test_runs_are_as_without(
    tiny: Tiny, tmp_path: Path, programs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of images and of videos; and the seconds are said."""
    for how in ("off", "blocks"):
        changes = [NO_DROP, f"train.compile={how}", "train.steps=2", "seed=2"]
        result = train(tiny(*changes, f"out={tmp_path / how}"), {"gated": GATED, "read": READ})
        assert result.compile == how
    assert programs and losses(tmp_path / "blocks") == pytest.approx(losses(tmp_path / "off"), rel=1e-4)
    assert capsys.readouterr().err.count("step 0: blocks were compiled in ") == 1


def test_an_arm_is_the_arm_alone_and_a_run_goes_on(tiny: Tiny, tmp_path: Path, programs: list[Any]) -> None:
    def recipe(name: str) -> Recipe:
        return tiny("train.compile=blocks", "train.steps=2", f"out={tmp_path / name}")  # with dropout and drop path

    arms = {"gated": Arm(frozen_depth=1, gate=True, lr=0.01, grad_checkpointing=True), "last": Arm(frozen_depth=3)}
    train(recipe("all"), arms)
    assert train(recipe("one"), {"gated": arms["gated"]}, stop_after=0).stopped
    torch._dynamo.reset()  # as in another process
    train(recipe("one"), {"gated": arms["gated"]})
    assert programs and bits(tmp_path / "one", "gated") == bits(tmp_path / "all", "gated")


@torch.no_grad()
def test_a_closed_gate_is_no_gate(programs: list[Any]) -> None:
    model = small_model("cosine")
    set_compile([model], "blocks", World(0, 1, torch.device("cpu")))
    x = torch.rand(SHAPES[1])
    gated = model.forward_features(x)
    model.arm.gate = None
    assert programs and torch.equal(model.forward_features(x), gated)


@torch.no_grad()
def test_blocks_that_are_fetched_are_compiled_too(programs: list[Any]) -> None:
    """As from the host to a GPU: called with tensors that are not their own."""
    block, other = (small_model("cosine").trunk.blocks[0] for _ in range(2))
    for parameter in other.parameters():
        parameter.add_(0.1)
    h, call = torch.randn(2, 9, 24), computed(every_token, "compiled")
    for source in (block, other, block):
        fetched = {name: tensor.detach().clone() for name, tensor in source.named_parameters()}
        assert torch.allclose(trunk._call(block, fetched, h, call), source(h), atol=1e-5)
    assert len(programs) == 1


def test_what_cannot_be_compiled_is_computed_without(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no such instruction\nand more")

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", fails)
    train(tiny("train.compile=off", "train.kernels=lean", f"out={tmp_path / 'off'}"), {"last": Arm(frozen_depth=2)})
    capsys.readouterr()
    train(tiny("train.compile=blocks", f"out={tmp_path / 'blocks'}"), {"last": Arm(frozen_depth=2)})
    said = [line for line in capsys.readouterr().err.splitlines() if "compiled" in line]
    why = "Block cannot be compiled here (no such instruction)"
    assert said == [f"{why}; blocks are computed without, which takes longer"]
    assert bits(tmp_path / "blocks") == bits(tmp_path / "off")


@pytest.mark.parametrize(
    ("compile", "device", "kernels", "compiler", "choice"),
    [
        ("auto", "cpu", "auto", True, "off"),
        ("auto", "cuda", "lean", True, "blocks"),
        ("auto", "cuda", "library", True, "off"),
        ("auto", "cuda", "lean", False, "off"),
        ("off", "cuda", "lean", True, "off"),
        ("blocks", "cpu", "lean", False, "blocks"),
    ],
)
def test_the_choice(
    compile: str, device: str, kernels: str, compiler: bool, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "find_spec", lambda _: compiler or None)
    monkeypatch.setattr(compiled.shutil, "which", lambda _: "/usr/bin/cc")
    model = small_model("cosine")
    kernel_choice._set([model], kernel_choice.Kernels(kernels, kernels))
    assert set_compile([model], compile, World(0, 1, torch.device(device))) == choice
    assert {model.trunk.kernels, model.arm.kernels} == {"compiled" if choice == "blocks" else kernels}


@pytest.mark.parametrize("kernels", ["library", "products", "fast"])
def test_kernels_that_contradict_are_refused(tiny: Tiny, kernels: str) -> None:
    with pytest.raises(UserError, match=f"train.compile: blocks computes otherwise than train.kernels {kernels}"):
        tiny("train.compile=blocks", f"train.kernels={kernels}")


@pytest.mark.all
def test_by_the_compiler_itself(tiny: Tiny, tmp_path: Path) -> None:
    torch._dynamo.reset()
    for how in ("off", "blocks"):
        train(tiny(NO_DROP, f"train.compile={how}", f"out={tmp_path / how}"), ARMS)
    assert losses(tmp_path / "blocks") == pytest.approx(losses(tmp_path / "off"), rel=1e-3)


def test_deterministic_programs_are_not_chosen_by_their_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    for on in (True, False):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda on=on: on)
        compiled.begin_compiling()
        assert torch._inductor.config.deterministic == on
