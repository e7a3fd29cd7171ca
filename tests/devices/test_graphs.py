"""CUDA graphs of the trunk: what a GPU replays gives the bits of what the host starts."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended import Graph, gpu
from support.runs import bits
from support.small import SHAPES, small_model
from test_placed import ARMS, EXACT, EXACT_ARMS, FROZEN, POOL

from scaleup.common.distributed import World
from scaleup.common.errors import UserError
from scaleup.config.schema import Arm, Recipe
from scaleup.config.schema import Trunk as Settings
from scaleup.model import cuda_graphs, kernel_choice
from scaleup.model.build import prepare_trunks
from scaleup.model.cuda_graphs import CudaGraphs
from scaleup.model.kernel_choice import is_slow_to_start, set_graphs
from scaleup.model.tokenizer import Tokenizer
from scaleup.model.tubevit import TubeViT, arm_inputs
from scaleup.training import token_cache
from scaleup.training.run import Run, train

Tiny = Callable[..., Recipe]
CUDA = World(0, 1, torch.device("cuda", 0))
GRAPHS = "train.cuda_graphs=trunk"
GATED = {"gated": ARMS["gated"]}


@pytest.fixture
def device() -> Iterator[None]:
    with gpu():
        yield


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs, each time they are replayed."""
    replayed, replay = [], Graph.replay
    monkeypatch.setattr(Graph, "replay", lambda graph: replayed.append(graph) or replay(graph))
    return replayed


def placed() -> TubeViT:
    model = small_model("cosine", frozen_depth=2)
    prepare_trunks([model], Settings("bfloat16"), CUDA)
    set_graphs([model], "trunk", CUDA, 1)
    return model.place(CUDA.device)


def pixels(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(CUDA.device)


def test_a_run_ends_with_the_bits_of_one_without(tiny: Tiny, tmp_path: Path, replays: list[Graph]) -> None:
    """With images and videos, arms at several depths, and one that ends before the others."""
    arms = EXACT_ARMS | {"read": replace(EXACT_ARMS["read"], steps=3, warmup=0)}
    train(tiny(*EXACT, "train.steps=6", f"out={tmp_path / 'cpu'}"), arms)
    with gpu():
        result = train(tiny(*EXACT, GRAPHS, "train.steps=6", f"out={tmp_path / 'gpu'}"), arms)
    assert result.cuda_graphs == "trunk" and len(replays) == 6 and 2 < len({*map(id, replays)}) < 6
    assert bits(tmp_path / "cpu") == bits(tmp_path / "gpu")


def test_a_run_goes_on_with_other_graphs(tiny: Tiny, tmp_path: Path, device: None, replays: list[Graph]) -> None:
    train(tiny(f"out={tmp_path / 'whole'}"), GATED)
    assert train(tiny(f"out={tmp_path / 'pieces'}"), GATED, stop_after=0).stopped and not replays
    train(tiny(GRAPHS, f"out={tmp_path / 'pieces'}"), GATED)
    assert replays and bits(tmp_path / "whole") == bits(tmp_path / "pieces")


def test_what_was_replayed_belongs_to_the_caller(device: None, replays: list[Graph]) -> None:
    model = placed()
    trunk, graphs = model.trunk, model.trunk.graphs
    for shape in SHAPES * 2:  # the second time, each between others
        first, second = (trunk(pixels(shape, seed), [1, 2], [2]) for seed in (0, 1))
        trunk.graphs = None
        plain = trunk(pixels(shape, 0), [1, 2], [2])
        trunk.graphs = graphs
        for depth, taps in plain.items():
            assert torch.equal(first[depth].h, taps.h) and not torch.equal(second[depth].h, taps.h)
            assert torch.equal(first[depth].z0, taps.z0) and first[depth].lower.keys() == taps.lower.keys()
        assert torch.equal(first[2].first, plain[2].first) and first[1].first is None
    assert len({*map(id, replays)}) == len(SHAPES)


def test_a_recording_of_a_validation_serves_training_too(device: None) -> None:
    model = placed()
    with torch.inference_mode():
        seen = model.trunk(pixels(SHAPES[0], 0), [2])[2].h
    taps = model.trunk(pixels(SHAPES[0], 0), [2])[2]
    model.arm(taps, "motion").sum().backward()
    assert torch.equal(taps.h, seen) and model.arm.gate.alpha.grad is not None
    assert len(model.trunk.graphs.recordings) == 1


def test_a_pass_that_waits_is_computed_without(
    tiny: Tiny, tmp_path: Path, device: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(f"out={tmp_path / 'off'}"), GATED)
    forward = Tokenizer.forward
    monkeypatch.setattr(Tokenizer, "forward", lambda self, x: forward(self, x) + 0 * x.max().item())
    train(tiny(GRAPHS, f"out={tmp_path / 'on'}"), GATED)
    said = "no CUDA graph of the trunk, which waits for the GPU: called a synchronizing CUDA operation\n"
    assert capsys.readouterr().err.count(said) == 2  # images and videos
    assert bits(tmp_path / "off") == bits(tmp_path / "on")


def test_a_recording_that_fails_ends_the_run(device: None) -> None:
    """What is copied to the device once would be copied at each replay, from memory that is no longer there."""
    with pytest.raises(
        UserError, match=r"cannot record the trunk \(operation not .*\(upload\)\); use train.cuda_graphs=o"
    ):
        CudaGraphs()(lambda x: x + torch.zeros(1).pin_memory().to(x.device, non_blocking=True), pixels((1,), 0))


def test_the_recording_that_was_not_used_for_longest_is_dropped(
    device: None, monkeypatch: pytest.MonkeyPatch, replays: list[Graph]
) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST", 2)
    graphs = CudaGraphs()
    for count in (1, 2, 1, 3, 1, 2):
        assert graphs(torch.sin, pixels((count,), 0)).equal(torch.sin(pixels((count,), 0)))
    first, second, *others = replays
    assert [others.index(graph) for graph in others] == [0, 1, 0, 3] and others[0] is first
    assert len(graphs.recordings) == 2 and second is not others[3]


def test_a_cache_is_made_with_them(tiny: Tiny, tmp_path: Path, device: None, replays: list[Graph]) -> None:
    changes = ["arms.full=null", "train.mixup=0"]
    for name, more in (("off", []), ("on", [GRAPHS])):
        token_cache.make(tiny(*changes, *more), [1, 2], tmp_path / name)
    written = [{path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.tar")} for name in ("off", "on")]
    assert replays and written[0] == written[1]


@pytest.mark.parametrize(("slow", "choice"), [(True, "trunk"), (False, "off")])
def test_auto_records_where_the_host_is_slow(
    slow: bool, choice: str, tiny: Tiny, device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(kernel_choice, "is_slow_to_start", lambda *args: asked.append(args) or slow)
    run = Run(tiny("train.steps=2"), FROZEN)
    run.step(0, next(iter(run.feed)))
    run.close()
    ((model, batch),) = asked
    assert run.graphs == choice and model.frozen_depth == 3 and batch == 4
    host = Run(tiny("train.steps=2", "trunk.placement=host"), FROZEN)
    host.close()
    assert host.graphs == "off" and len(asked) == 1


@pytest.mark.parametrize("fault", [RuntimeError("driver"), None])
def test_auto_records_nothing_where_the_gpu_cannot(
    fault: Exception | None, tiny: Tiny, device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses, or gives what it gave before."""

    def replay(_: Graph) -> None:
        if fault:
            raise fault

    monkeypatch.setattr(kernel_choice, "is_slow_to_start", lambda *_: True)
    monkeypatch.setattr(Graph, "replay", replay)
    run = Run(tiny(), GATED)
    run.close()
    assert run.graphs == "off"


@pytest.mark.parametrize(("computing", "slow"), [(0.0, True), (1.0, False)])
def test_a_block_is_slow_to_start_where_the_device_is_faster(
    computing: float, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``computing``: the seconds for which the host waits at the end."""
    clock = kernel_choice.now
    waited = iter([0.0, computing])
    monkeypatch.setattr(kernel_choice, "now", lambda device: clock(device) + next(waited))
    assert is_slow_to_start(small_model("cosine", frozen_depth=2), batch=2) is slow


def test_a_gpu_is_needed(tiny: Tiny) -> None:
    with pytest.raises(
        UserError, match=r"train.cuda_graphs is trunk, but this machine has no GPU that records them; a"
    ):
        Run(tiny(GRAPHS), {"gated": Arm(frozen_depth=1, gate=True)})
    run = Run(tiny(), {"read": Arm(frozen_depth=3, **POOL)})
    run.close()
    assert run.graphs == "off"


def test_blocks_must_stay_on_it(device: None) -> None:
    model = small_model("cosine", frozen_depth=2)
    prepare_trunks([model], Settings("bfloat16", "host"), CUDA)
    with pytest.raises(UserError, match=r"but frozen blocks wait elsewhere \(trunk.placement, trunk.cache\); allowed"):
        set_graphs([model], "trunk", CUDA, 1)


def test_inputs_of_arms_are_replayed(device: None, replays: list[Graph]) -> None:
    """Also of one that reads the class token alone."""
    model = placed()
    for _ in range(2):
        arm_inputs(model.trunk, pixels(SHAPES[0], 0), [model])
    assert len(replays) == 2 and len({*map(id, replays)}) == 1


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_without_memory_for_a_recording_the_host_starts_the_work(
    device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(x: torch.Tensor) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            raise FULL
        return x + 1

    graphs = CudaGraphs()
    assert all(graphs(work, pixels((1,), seed)).equal(pixels((1,), seed) + 1) for seed in (0, 1))
    assert capsys.readouterr().err == "no CUDA graph of the trunk: no memory is left for it\n"


def test_without_memory_for_the_work_nothing_is_said_of_graphs(device: None) -> None:
    """Who trains says what takes the memory."""

    def work(x: torch.Tensor) -> torch.Tensor:
        if torch.cuda.get_sync_debug_mode() == "error":
            raise FULL
        return x

    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphs()(work, pixels((1,), 0))
