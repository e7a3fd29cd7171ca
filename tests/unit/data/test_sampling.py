"""Rare classes are drawn more often: how often, and the same for every rank and after a resume."""

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.config.schema import Recipe
from scaleup.data import loader
from scaleup.data.batches import Samples
from scaleup.data.labels import as_array
from scaleup.data.loader import TrainSteps
from scaleup.data.order import REPEAT, Order
from scaleup.data.repeats import Repeats, draw_repeats
from scaleup.training import run_inputs

SIZES = [40, 0, 70, 30]
ONE = [0] * 100 + [1] * 30 + [2] * 10
SEVERAL: list[Any] = [[0]] * 100 + [[0, 1]] * 20 + [[2, 1]] * 10 + [[]] * 10


class Fake:
    """Samples that are nothing but their labels."""

    modality, path = "video", "data/train"

    def __init__(self, labels: list[Any], kind: str = "one", sizes: Sequence[int] = SIZES) -> None:
        self.kinds, self.sizes = {} if kind == "one" else {"action": kind}, sizes
        self.classes, self.labels = {"action": ["a", "b", "c", "none"]}, {"action": as_array(labels, kind)}
        self.keys = [str(number) for number in range(len(labels))]

    def __len__(self) -> int:
        return len(self.keys)

    def kind(self, label: str) -> str:
        return self.kinds.get(label, "one")


def repeats(labels: list[Any], kind: str, **settings: Any) -> Repeats | None:
    dataset = schema.Dataset("data/train", {"head": "action"}, **settings)
    return draw_repeats("clips", dataset, cast(Samples, Fake(labels, kind)))


def factors(labels: list[Any], kind: str, **settings: Any) -> np.ndarray:
    drawn = repeats(labels, kind, **settings)
    assert drawn is not None
    return np.concatenate([drawn.of(begin, begin + 70) for begin in (0, 70)])


def given(sizes: Sequence[int], factors: Sequence[float]) -> Repeats:
    """Samples of as many classes as there are factors, in turn."""
    labels = [number % len(factors) for number in range(sum(sizes))]
    return Repeats(cast(Samples, Fake(labels, sizes=sizes)), "action", np.array(factors))


@pytest.mark.parametrize("sampling, power", [("sqrt", 0.5), ("full", 1)])
@pytest.mark.parametrize("labels, kind", [(ONE, "one"), (SEVERAL, "several")])
def test_a_factor_is_that_of_the_rarest_class(labels: list[Any], kind: str, sampling: str, power: float) -> None:
    lists = labels if kind == "several" else [[label] for label in labels]
    counts = Counter(number for each in lists for number in each)
    slow = [max([1.0] + [(max(counts.values()) / counts[n]) ** power for n in each]) for each in lists]
    drawn = factors(labels, kind, sampling=sampling)
    assert drawn.tolist() == pytest.approx(slow) and max(slow) > 3
    assert repeats(labels, kind) is None


@pytest.mark.parametrize("window", [9, 10_000])
def test_epochs_draw_by_the_factors_and_no_sample_is_left_out(window: int) -> None:
    each = factors(ONE, "one", sampling="sqrt")
    order, total = Order(SIZES, 5, window, repeats(ONE, "one", sampling="sqrt")), Counter[int]()
    assert order.count == round(each.sum())
    for epoch in range(200):
        pairs = [order.at(epoch * order.count + place) for place in range(order.count)]
        drawn = Counter(index for index, _ in pairs)
        assert all(np.floor(each[i] * 0.99) <= drawn[i] <= np.ceil(each[i] * 1.01) for i in range(140))
        assert len(set(pairs)) == len(pairs) and {view % REPEAT for _, view in pairs} == {epoch}  # repeats differ
        total.update(drawn)
    means = np.array([total[i] for i in range(140)]) / 200
    assert means == pytest.approx(each * order.count / each.sum(), abs=0.15)


def test_shards_are_still_read_almost_in_sequence() -> None:
    """Draws are read in blocks as long as a shard has draws, so a shard is read in two visits at most."""
    order = Order([50] * 40, 0, 60, given([50] * 40, [1.0, 1.5]))
    shards = np.array([order.at(place)[0] // 50 for place in range(order.count)])
    for begin in range(0, order.count, 60):
        assert len(set(shards[begin : begin + 60])) <= 2 * (120 // 62 + 2)
    for shard in range(40):
        places = np.flatnonzero(shards == shard)
        assert (np.diff(places) > 2 * 60).sum() <= 1


def test_the_order_is_a_function_of_seed_and_position_and_ranks_share_it() -> None:
    each = repeats(ONE, "one", sampling="full")
    order = Order(SIZES, 1, 20, each)
    whole = [order.at(position) for position in range(900)]
    late = pickle.loads(pickle.dumps(Order(SIZES, 1, 20, each)))
    assert [late.at(position) for position in range(700, 900)] == whole[700:]
    assert [Order(SIZES, 2, 20, each).at(position) for position in range(50)] != whole[:50]
    data = schema.Data({"clips": schema.Dataset("d", {"head": "action"}, sampling="full")}, batch=6, window=20)
    ranks = [TrainSteps(data, {"clips": cast(Samples, Fake(ONE))}, cast(Any, None), 1, rank, 2) for rank in range(2)]
    shared = [
        each.orders["clips"].at(6 * step + place) for step in range(150) for each in ranks for place in each.places
    ]
    assert shared == whole


@pytest.mark.parametrize(
    "sizes, window, sha256", [([40, 0, 70, 30] * 20, 9, "c1b76b76a14e20f9"), (SIZES, 8192, "28ed68a493421f22")]
)
def test_the_draws_of_runs_that_began_are_kept(sizes: list[int], window: int, sha256: str) -> None:
    order = Order(sizes, 5, window, given(sizes, (1 + np.arange(7) / 3).tolist()))
    far = np.random.default_rng(0).integers(20 * order.count, size=300).tolist()
    positions = sorted({*range(300), *range(order.count - 40, order.count + 300), *far})
    drawn = json.dumps([order.at(position) for position in positions])
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == sha256


def test_of_the_labels_only_those_that_are_drawn_are_read() -> None:
    """In parts, none of them larger than a shard once the classes are counted."""
    samples = Fake(ONE)

    class Column(list):
        dtype, read = np.dtype(int), list[slice]()

        def __getitem__(self, rows: Any) -> Any:
            self.read.append(rows)
            return np.array(ONE)[rows]

    samples.labels = {"action": cast(Any, Column(ONE))}
    dataset = schema.Dataset("data/train", {"head": "action"}, sampling="full")
    order = Order(SIZES, 1, 20, draw_repeats("clips", dataset, cast(Samples, samples)))
    assert [rows.stop - rows.start for rows in Column.read] == [140, *SIZES]
    Column.read.clear()
    order.at(0)
    assert 0 < sum(rows.stop - rows.start for rows in Column.read) <= 140


def test_epochs_and_seeds_draw_other_samples() -> None:
    def drawn(seed: int, epoch: int) -> tuple[int, ...]:
        order = Order([140], seed, 1000, given([140], [1.5]))
        return tuple(sorted(order.at(epoch * 210 + place)[0] for place in range(210)))

    assert len({drawn(seed, 0) for seed in range(8)}) > 1 and len({drawn(1, epoch) for epoch in range(8)}) > 1


def test_the_share_of_a_guess_is_that_of_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_inputs, "open_datasets", lambda _: {"clips": Fake(SEVERAL, "several")})
    data = schema.Data({"clips": schema.Dataset("d", {"head": "action"}, sampling="full")})
    drawn = factors(SEVERAL, "several", sampling="full")
    slow = max(sum(f for f, own in zip(drawn, SEVERAL, strict=True) if number in own) for number in range(4))
    assert run_inputs.guesses(Recipe(data=data)) == {"clips": {"head": pytest.approx(slow / drawn.sum())}}


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """A recipe whose only head learns these labels."""

    def recipe(labels: list[Any], kind: str, loss: schema.Loss) -> Recipe:
        monkeypatch.setattr(run_inputs, "open_datasets", lambda _: {"clips": Fake(labels, kind)})
        data = schema.Data({"clips": schema.Dataset("data/train", {"head": "action"})})
        return Recipe(data=data, heads={"head": schema.Head(loss)})

    return recipe


def test_numbers_that_are_the_same_in_float32_are_refused(learning: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="differs by 40.4 around 1.60000007.*; subtract 1.60000007"):
        run_inputs.losses_of(learning([1.6e9 + number for number in range(140)], "number", "l2"))


def test_the_mean_of_numbers_is_known_to_a_share_of_their_deviation(learning: Callable[..., Recipe]) -> None:
    loss = run_inputs.losses_of(learning([1_234_567 + number for number in range(140)], "number", "l1"))["head"]
    assert loss.mean == pytest.approx(1_234_636.5, abs=2e-3) and loss.std == pytest.approx(40.412, abs=2e-3)


def test_a_label_without_classes_is_refused(monkeypatch: pytest.MonkeyPatch, learning: Callable[..., Recipe]) -> None:
    recipe, fake = learning([], "several", "sigmoid"), Fake([()] * 140, "several")
    fake.classes["action"] = []
    monkeypatch.setattr(loader, "open_datasets", lambda _: {"clips": fake})
    with pytest.raises(
        UserError, match="head 'head' has nothing to learn: label 'action' of 'data/train' has no classes"
    ):
        run_inputs.heads_of(recipe)


def test_a_sampling_label_without_sampling_is_named(tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="sampling_label: 'motion' says which classes to balance, but .* is uniform"):
        tiny("data.train.videos.sampling_label=motion")


def test_what_cannot_be_balanced_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"sampling_label: 'acton' is no label of 'data/train', which has: action; nearest: .action"
    ):
        repeats(ONE, "one", sampling="full", sampling_label="acton")
    with pytest.raises(UserError, match="is a number, which has no classes"):
        repeats([0.5] * 140, "number", sampling="full")
