"""What a step copies to the device: the batch, and nothing that the step before had copied."""

from collections.abc import Callable
from types import SimpleNamespace

import pretended
import pytest
import torch
from pretended import gpu, gpu_device, is_pinned, on_gpu
from support.small import SHAPES, small_model
from torch.utils.data import Dataset

from scaleup.common.errors import UserError
from scaleup.common.pinned import pinned
from scaleup.config.schema import Arm, Recipe
from scaleup.data import batches as made
from scaleup.data.batches import Batch
from scaleup.data.upload import Uploaded
from scaleup.model.tokenizer import KINDS
from scaleup.training.run import Run


@pytest.mark.parametrize("kind", KINDS)
def test_positions_places_and_means_are_copied_once(kind: str) -> None:
    model = small_model(kind)
    with gpu() as events, torch.no_grad():
        model.place(gpu_device())
        for shape in SHAPES:
            pixels = torch.zeros(shape, dtype=torch.uint8).to(gpu_device())
            for _ in range(2):
                events.take()
                model(model.preprocess(pixels))
            assert not events.take()


def batch_of(number: int) -> Batch:
    return Batch("videos", "video", torch.full((2, 3), number, dtype=torch.uint8), {"h": torch.zeros(2)}, [str(number)])


def test_a_batch_is_counted_when_it_is_handed_out_and_not_before() -> None:
    """So a run that ends, or is resumed, counts the bad samples of its own steps alone."""
    counted: list[str] = []
    with gpu():
        batches = Uploaded(map(batch_of, range(3)), gpu_device(), lambda batch: counted.extend(batch.keys))
        for number in range(3):
            batches.fetch()
            batches.fetch()
            assert len(counted) == number
            batch = next(batches)
            assert on_gpu(batch.pixels) and on_gpu(batch.labels["h"]) and batch.pixels.tolist() == [[number] * 3] * 2
        batches.fetch()
        assert not list(batches) and counted == ["0", "1", "2"]


def test_labels_stay_on_the_host_where_the_host_reads_them() -> None:
    with gpu():
        (batch,) = Uploaded([batch_of(0)], gpu_device(), labels=False)
        assert on_gpu(batch.pixels) and not on_gpu(batch.labels["h"])


def test_what_a_process_has_made_is_copied_once_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """To memory that the device reads."""
    monkeypatch.setattr(made, "in_workers", lambda dataset, numbers, workers: map(batch_of, numbers))
    with gpu():
        (batch,) = made.batches(Dataset(), range(1), 1, 6)
        assert is_pinned(batch.pixels) and pinned(batch.pixels) is batch.pixels


def test_one_batch_at_a_time_is_there_as_uint8(tiny: Callable[..., Recipe]) -> None:
    """While a step computes: the next one."""
    with gpu():
        run = Run(tiny("data.train.images=null", "arms.full=null"), {"gated": Arm(frozen_depth=1)})
        feed = iter(run.feed)
        fed = next(feed)
        run.step(0, fed)
        size = fed.size * 3 * 8 * 32 * 32
        assert [storage.nbytes() for storage in pretended.marks].count(size) == 1
        run.close()


def test_a_host_without_memory_is_named() -> None:
    def full() -> None:
        raise torch.AcceleratorError("CUDA error: out of memory")

    with pytest.raises(
        UserError, match=r"^the host has no memory left for 2 GB that the GPU reads .*--placement device"
    ):
        pinned(SimpleNamespace(nbytes=2e9, pin_memory=full))
