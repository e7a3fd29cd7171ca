from collections import Counter

import pytest

from scaleup.data.order import batch_at, dataset_at, sample_at, share


@pytest.mark.parametrize(
    "weights", [{"a": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 0.1, "b": 0.9}, {"a": 1, "b": 5, "c": 0.5}]
)
def test_ratio_is_exact_and_every_dataset_counts_its_batches(weights):
    counts, total = Counter(), sum(weights.values())
    for step in range(1300):
        name, nth = dataset_at(weights, step)
        assert nth == counts[name]
        counts[name] += 1
        for each, weight in weights.items():
            assert abs(counts[each] - (step + 1) * weight / total) < len(weights)
    assert {name: round(1300 * weight / total) for name, weight in weights.items()} == counts


def test_two_equal_datasets_alternate():
    assert [dataset_at({"a": 1, "b": 1}, step)[0] for step in range(6)] == list("ababab")


@pytest.mark.parametrize("n, batch", [(10, 4), (7, 7), (5, 12), (64, 8)])
def test_each_epoch_visits_every_sample_once_in_another_order(n, batch):
    stream = [pair for nth in range(60) for pair in batch_at(n, batch, nth, seed=3)]
    orders = [[index for index, at in stream if at == epoch] for epoch in range(60 * batch // n)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert [epoch for _, epoch in stream] == [position // n for position in range(60 * batch)]


def test_order_is_a_function_of_the_seed():
    assert batch_at(50, 8, 3, seed=1) == batch_at(50, 8, 3, seed=1) != batch_at(50, 8, 3, seed=2)
    assert batch_at(50, 8, 3, seed=1)[2] == sample_at(50, 26, seed=1)


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_the_global_batch(world):
    assert [place for rank in range(world) for place in share(12, rank, world)] == list(range(12))
