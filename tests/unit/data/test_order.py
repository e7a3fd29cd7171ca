import hashlib
import json
import pickle
from collections import Counter

import numpy as np
import pytest

from scaleup.data.loader import dataset_at, rank_slice
from scaleup.data.order import RUN, WHOLE, Order
from scaleup.data.permutation import ROUNDS, permute


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


def batch_of(order, size, nth):
    """The ``nth`` global batch of ``size``: (sample number, epoch) pairs."""
    return [order.at(position) for position in range(nth * size, (nth + 1) * size)]


@pytest.mark.parametrize("window", [1, 3, 1000])
@pytest.mark.parametrize("sizes, batch", [([10], 4), ([3, 0, 4], 7), ([5], 12), ([30, 30, 4], 8)])
def test_each_epoch_visits_every_sample_once_in_another_order(sizes, batch, window):
    n, order = sum(sizes), Order(sizes, 3, window)
    stream = [pair for nth in range(60) for pair in batch_of(order, batch, nth)]
    orders = [[index for index, at in stream if at == epoch] for epoch in range(60 * batch // n)]
    assert all(sorted(each) == list(range(n)) for each in orders)
    assert len({tuple(each) for each in orders}) > 1 or (window == 1 and len(sizes) == 1)
    assert [epoch for _, epoch in stream] == [position // n for position in range(60 * batch)]


def test_order_is_a_function_of_the_seed():
    sizes = [20, 30]
    one, again, other = (batch_of(Order(sizes, seed, 9), 8, 3) for seed in (1, 1, 2))
    assert one == again != other and one[2] == Order(sizes, 1, 9).at(26)
    used = Order(sizes, 1, 9)
    used.at(120)
    assert batch_of(pickle.loads(pickle.dumps(used)), 8, 3) == one


def epochs(sizes, window, count):
    order = Order(sizes, 0, window)
    return [[order.at(epoch * order.count + i)[0] for i in range(order.count)] for epoch in range(count)]


def test_reading_stays_within_a_window():
    """Of 50 shards of 40 few are being read at a time, and each is gone through once from front to back."""
    sizes, window = [40] * 50, 100
    for order in epochs(sizes, window, 3):
        shards = np.array(order) // 40
        for begin in range(0, 2000, 50):
            assert len(set(shards[begin : begin + 50])) <= 2 * window // 40 + 3
        spans = [np.flatnonzero(shards == shard) for shard in range(50)]
        assert max(span[-1] - span[0] for span in spans) < 40 + 2 * window
        firsts = [span[0] for span in spans]
        assert np.argsort(firsts).tolist() != list(range(50))  # shards come in an order of their own
        places = np.array([np.array(order)[span] % 40 for span in spans])  # (50, 40)
        assert places[:, :10].mean() < places[:, -10:].mean()


def test_a_window_mixes_what_lies_in_it():
    one, other = epochs([100] * 10, 300, 2)
    assert one != other
    moved = np.abs(np.diff(one))
    assert np.median(moved) > 30  # neighbours of a batch were not neighbours in a shard


def test_a_dataset_within_the_window_is_permuted_freely():
    firsts = Counter(order[0] // 10 for order in epochs([40], 40, 400))
    assert all(60 < firsts[quarter] < 140 for quarter in range(4))


def test_a_window_larger_than_memory_costs_none():
    order = Order([10**12], 0, 10**12)
    assert len({order.at(place)[0] for place in range(3000)}) == 3000 and 10**11 < order.at(5)[0] < 10**12


@pytest.mark.parametrize("sizes", [[WHOLE, 1], [1000] * 70])
def test_a_large_set_is_shuffled_place_by_place(sizes):
    """Every sample once, whatever is asked for first; the mean distance of neighbours is that of a shuffle."""
    whole, count = epochs(sizes, 10**9, 1)[0], sum(sizes)
    assert sorted(whole) == list(range(count))
    assert np.abs(np.diff(whole)).mean() == pytest.approx(count / 3, rel=0.02)
    assert [Order(sizes, 0, 10**9).at(place)[0] for place in (5, 4 * RUN)] == [whole[5], whole[4 * RUN]]


def places_of(samples):
    """The place of each sample."""
    places = np.empty(len(samples), dtype=int)
    places[samples] = np.arange(len(samples))
    return places


def test_epochs_and_neighbours_do_not_correlate():
    """Within a window places are uniform, from epoch to epoch independent, and neighbours part."""
    count, window = 20_000, 500
    first, second, third = (places_of(each) for each in epochs([100] * 200, window, 3))
    for one, other in ((first, second), (second, third), (first, third)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.15  # of 200 shards: 0.07 is one deviation
        assert abs(np.corrcoef(one % window, other % window)[0, 1]) < 4 / count**0.5
        near = np.abs(np.diff(one)) <= 2
        assert (np.abs(np.diff(other))[near] <= 2).mean() < 0.05
    in_shard = np.arange(count) % 100
    assert abs(np.corrcoef(first % window, in_shard)[0, 1]) < 4 / count**0.5
    assert np.histogram(first[:100] % window, 5, (0, window))[0].min() > 5  # a shard is spread over its window


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 90, 1000])
def test_a_permutation_is_computed_at_a_place(count):
    keys, places = np.arange(ROUNDS, dtype=np.uint64), np.arange(count)
    one, other = (permute(places, count, count, keys, tweak) for tweak in (0, 1))
    assert sorted(one) == sorted(other) == list(range(count)) and (count < 5 or one.tolist() != other.tolist())
    assert [permute(places[[i]], count, count, keys, np.array([1]))[0] for i in places] == other.tolist()


def test_all_permutations_are_as_likely():
    keys = np.random.default_rng(0).integers(2**64, size=(2400, ROUNDS), dtype=np.uint64)
    drawn = Counter(tuple(permute(np.arange(4), 4, 4, each).tolist()) for each in keys)
    assert len(drawn) == 24 and min(drawn.values()) > 60 and max(drawn.values()) < 145  # 100, +- 4 deviations


@pytest.mark.parametrize("sizes, window", [([905], 91), ([181] * 20, 91), ([1000] * 3, 91)])
def test_windows_of_two_lengths_take_no_place_twice(sizes, window):
    """Windows of 90 and of 91 places, which meet within a run."""
    assert all(sorted(order) == list(range(sum(sizes))) for order in epochs(sizes, window, 2))
    assert [Order(each, 0, window).version for each in (sizes, [910], [91])] == ["3", "2", ""]


@pytest.mark.parametrize(
    "sizes, seed, window, sha256",
    [
        ([40] * 50, 1, 8192, "d07e4895857fd46b"),
        ([40] * 50, 1, 100, "3d7e12619feba685"),
        ([100] * 9 + [40], 3, 10, "ab7562c5a3d5962d"),
        ([30, 0, 70, 9, 41] * 30, 5, 64, "a6799858cf0b50df"),
        ([1000] * 1000, 7, 8192, "e9de3ec726f39534"),
        ([10000] * 10000, 1, 8192, "639a4b598880466c"),
        ([10**12], 0, 10**12, "a9a6877cd5978a7a"),
    ],
)
def test_the_order_of_runs_that_began_is_kept(sizes, seed, window, sha256):
    order, random = Order(sizes, seed, window), np.random.default_rng(0)
    far = random.integers(20 * order.count, size=300).tolist()
    positions = sorted({*range(300), *range(order.count - 40, order.count + 300), *far})
    drawn = json.dumps([order.at(position) for position in positions])
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == sha256


def test_a_shorter_block_is_read_at_any_time():
    """The last shard, which is not full, has no place of its own."""
    lasts = [np.mean(places_of(each)[900:]) for each in epochs([100] * 9 + [40], 10, 60)]
    assert min(lasts) < 250 and max(lasts) > 700


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_the_global_batch(world):
    assert [place for rank in range(world) for place in rank_slice(12, rank, world)] == list(range(12))
