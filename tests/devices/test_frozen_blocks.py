"""Frozen blocks on a pretended GPU: how they get there, what waits for them, and what is there in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pretended
import pytest
import torch
from pretended import gpu, gpu_device
from support.small import SHAPES, small_model
from torch import nn

from scaleup.common.distributed import World
from scaleup.config.schema import Arm, Recipe
from scaleup.config.schema import Trunk as Settings
from scaleup.evaluation.accuracy import evaluate
from scaleup.evaluation.depth_profile import probe
from scaleup.model import build, kernel_choice, slots
from scaleup.model.build import fresh, prepare_trunks
from scaleup.model.kernel_choice import sample_of
from scaleup.model.slots import Slots
from scaleup.model.tubevit import TubeViT
from scaleup.training.run_inputs import build_models

DEPTH = 8
CPU = torch.device("cpu")


def deep_model() -> TubeViT:
    return small_model("cosine", frozen_depth=DEPTH, depth=DEPTH, embed_dim=96)


def world(device: torch.device) -> World:
    return World(0, 1, device)


def size(*modules: nn.Module) -> int:
    return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())


@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_blocks_give_the_same_wherever_they_wait(precision: str, placement: str) -> None:
    pixels = torch.rand(SHAPES[0])

    def tokens(device: torch.device) -> Any:
        torch.manual_seed(0)
        model = small_model("cosine", frozen_depth=2)
        prepare_trunks([model], Settings(precision, placement), world(device))
        model.place(device, placement)
        return model.arm_inputs(pixels.to(device)).h.cpu()

    here = tokens(CPU)
    with gpu():
        assert torch.equal(tokens(gpu_device()), here)


@pytest.mark.parametrize(("placement", "blocks"), [("device", DEPTH), ("host", 0)])
def test_nothing_of_the_trunk_is_on_the_device_in_float32(placement: str, blocks: int) -> None:
    """While it is prepared, two blocks at a time are."""
    model = deep_model()
    block, tokenizer = size(model.trunk.blocks[0]), size(model.tokenizer)
    with gpu():
        before = pretended.MEMORY.held + tokenizer
        torch.cuda.reset_peak_memory_stats()
        prepare_trunks([model], Settings("bfloat16", placement), world(gpu_device()))
        assert (blocks / 2 - 0.1) * block < pretended.MEMORY.held - before < (blocks / 2 + 0.1) * block
        assert pretended.MEMORY.peak - before < max(2, blocks / 2) * block + 1.5 * block  # and a clip
    assert all(tensor.device.type == "cpu" for tensor in model.trunk.originals.values())


def test_blocks_on_the_host_need_two_places_and_no_wait() -> None:
    model = deep_model()
    with gpu() as events:
        prepare_trunks([model], Settings("int8", "host"), world(gpu_device()))
        pixels = torch.zeros(SHAPES[0]).to(gpu_device())
        model.trunk(pixels, [DEPTH])
        events.take()
        before = pretended.MEMORY.held
        torch.cuda.reset_peak_memory_stats()
        model.trunk(pixels, [DEPTH])
        assert pretended.MEMORY.peak - before < 2 * size(model.trunk.blocks[0]) + 1.5 * size(deep_model().blocks[0])
        assert events.total("upload") and not events.total("wait"), events.take()


@pytest.fixture
def streams() -> Iterator[list[str]]:
    """What two streams of a pretended GPU are told."""
    log: list[str] = []

    class Stream(pretended.Stream):
        def __init__(self, name: str) -> None:
            self.name = name

        def record_event(self, _: Any = None) -> Any:
            log.append(f"{self.name} {len(log)}")
            return log[-1]

        def wait_event(self, event: Any) -> None:
            log.append(f"{self.name} waits for {event}")

    with gpu(), pytest.MonkeyPatch.context() as patched:
        copying, computing = Stream("copying"), Stream("computing")
        patched.setattr(slots, "copy_stream", lambda _: copying)
        patched.setattr(torch.accelerator, "current_stream", lambda _: computing)
        yield log


def test_a_place_is_filled_after_the_block_in_it_has_computed(streams: list[str]) -> None:
    places = Slots(gpu_device())
    for _ in range(3):
        with places.filled({"weight": torch.ones(3).pin_memory()}):
            streams.append("a block")
    third = streams[[i for i, line in enumerate(streams) if line == "a block"][1] :]
    first_is_done = streams[streams.index("a block") + 1]
    assert third[2] == f"copying waits for {first_is_done}"
    assert third[3].startswith("copying") and third[4] == f"computing waits for {third[3]}" and third[5] == "a block"


def test_the_second_place_waits_for_no_block(streams: list[str]) -> None:
    """Both are there before the first block computes: so the second is copied meanwhile."""
    places = Slots(gpu_device())
    for _ in range(2):
        with places.filled({"weight": torch.ones(3).pin_memory()}):
            streams.append("a block")
    first = streams.index("a block")
    (waited,) = (line for line in streams[first:] if line.startswith("copying waits for"))
    assert waited.removeprefix("copying waits for ") in streams[:first]


def test_a_precision_that_overflows_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep_model()
    with torch.no_grad():
        model.trunk.blocks[-1].mlp.fc2.bias += 1e5  # float16 has numbers up to 65,504
    before = {name: tensor.clone() for name, tensor in model.trunk.state_dict().items()}
    monkeypatch.setattr(build, "measure_precisions", lambda *_: {"float32": 3.0, "bfloat16": 2.0, "float16": 1.0})
    prepared = prepare_trunks([model], Settings("auto"), world(CPU))
    assert prepared.precision == model.trunk.precision == "bfloat16" and 0 < prepared.drift[DEPTH] < 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.trunk.originals.items())


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each block of which a precision is measured, how many clips it gets."""
    counted: list[int] = []

    def measured(block: nn.Module, h: torch.Tensor, context: Any) -> dict[str, float]:
        counted.append(len(h))
        return {"float32": 1.0, "bfloat16": 2.0, "float16": 3.0}

    monkeypatch.setattr(build, "measure_precisions", measured)
    return counted


def test_a_precision_is_measured_with_the_batch_of_a_step(clips: list[int]) -> None:
    with gpu():
        prepared = prepare_trunks([deep_model()], Settings("auto"), world(gpu_device()), batch=5)
    assert clips == [5] and prepared.precision == "float32"


def test_blocks_of_arms_are_measured_with_the_batch_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with fewer clips, which take long enough."""
    monkeypatch.setattr(kernel_choice, "LARGEST_BATCH", 1)
    model = deep_model()
    assert len(sample_of(model, torch.device("cpu"), 5).h) == 1
    with gpu():
        assert len(sample_of(model.place(gpu_device(), None), gpu_device(), 5).h) == 5


def test_a_precision_is_measured_with_all_views_of_a_pass(clips: list[int], tiny: Callable[..., Recipe]) -> None:
    read, how = tiny(), {"views": "2x3", "batch": 4, "workers": 0, "trunk": Settings("auto")}
    videos, images = (read.data.train[name].shards for name in ("videos", "images"))
    with gpu():
        evaluate(build_models(read, {"gated": Arm(1, gate=True)}), videos, **how)  # type: ignore[arg-type]
        evaluate(build_models(read, {"gated": Arm(1, gate=True)}), images, **how)  # type: ignore[arg-type]
        probe(fresh(read.model, {}, 0).eval(), videos, videos, **how)  # type: ignore[arg-type]
    assert clips == [4 * 2 * 3, 4 * 3, 4 * 2 * 3]
