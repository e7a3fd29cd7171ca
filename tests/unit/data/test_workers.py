import time

import pytest
import torch
from torch.utils.data import Dataset

from scaleup.data import workers
from scaleup.data.workers import in_workers, stacked


class Numbers(Dataset):
    """Batches filled with their number; ``varied`` ones are of two shapes and several lengths."""

    def __init__(self, varied):
        self.varied = varied

    def __getitem__(self, number):
        shape = (4, 3, 2) if self.varied and number % 3 == 0 else (5, 7)
        return stacked([torch.full(shape, number)] * (1 + self.varied * number % 4))


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_result_is_there_until_the_next_is_asked_for(count, varied):
    """However far ahead the processes are by then."""
    for number, batch in enumerate(in_workers(Numbers(varied), range(30), count)):
        time.sleep(0.02)
        assert torch.equal(batch, torch.full_like(batch, number))
        assert len(batch) == 1 + varied * number % 4 and batch.shape[1:] in ((4, 3, 2), (5, 7))


def test_memory_is_used_by_turns():
    kept = {}  # keeps it mapped
    for batch in in_workers(Numbers(False), range(40), 2):
        kept[batch.data_ptr()] = batch
    assert len(kept) == 2 * (workers.PREFETCH + 1)
