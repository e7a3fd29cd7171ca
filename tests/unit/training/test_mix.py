import pytest
import torch
from torch import Tensor

from scaleup.config.schema import Train
from scaleup.model.objective import Objective
from scaleup.training.feed import Mix, draw_mix, head_loss

CLIPS, IMAGES = torch.Size([6, 3, 2, 20, 30]), torch.Size([6, 3, 20, 30])


def drawn(train: Train, step: int, shape: torch.Size = CLIPS, seed: int = 0) -> Mix:
    mix = draw_mix(train, shape, seed, step)
    assert mix is not None
    return mix


@pytest.mark.parametrize("train", [Train(mixup=0.3), Train(cutmix=0.3), Train(mixup=0.3, cutmix=0.3)])
def test_a_mix_depends_on_seed_and_step_alone(train: Train) -> None:
    torch.manual_seed(0)
    first = drawn(train, 5, seed=1)
    torch.manual_seed(1)
    again, later, other = drawn(train, 5, seed=1), drawn(train, 6, seed=1), drawn(train, 5, seed=2)
    assert first.order.tolist() == again.order.tolist() and (first.share, first.box) == (again.share, again.box)
    assert len({first.share, later.share, other.share}) == 3
    assert sorted(first.order.tolist()) == list(range(6))


def test_in_mixup_the_sample_itself_outweighs_what_is_mixed_in() -> None:
    shares = [drawn(Train(mixup=1.0), step).share for step in range(200)]
    assert min(shares) >= 0.5 and max(shares) <= 1
    assert sum(shares) / len(shares) == pytest.approx(0.75, abs=0.03)  # max(u, 1 - u) of a uniform u


def test_nothing_set_draws_nothing() -> None:
    assert draw_mix(Train(), CLIPS, 0, 0) is None


def test_of_both_each_step_draws_one_half_and_half() -> None:
    cuts = [drawn(Train(mixup=0.5, cutmix=1.0), step).box is not None for step in range(400)]
    assert sum(cuts) / len(cuts) == pytest.approx(0.5, abs=0.06)
    assert any(cuts[i] == cuts[i + 1] for i in range(10)), "not in turns, which batches of two datasets may be too"


def test_pixels_are_mixed_sample_by_sample() -> None:
    x = torch.randn(3, 3, 2, 4, 4)
    mixed = Mix(torch.tensor([2, 0, 1]), 0.8).pixels(x)
    for sample, other in enumerate([2, 0, 1]):
        torch.testing.assert_close(mixed[sample], 0.8 * x[sample] + 0.2 * x[other])


def pasted(x: Tensor, mix: Mix) -> tuple[Tensor, int]:
    """Pixel by pixel; and how many places of a frame are another sample's."""
    assert mix.box is not None
    rows, columns = (range(span.start, span.stop) for span in mix.box)
    frames, mixed = x.flatten(1, -3), x.flatten(1, -3).clone()  # (B, all frames' colours, H, W)
    for sample in range(len(x)):
        for frame in range(frames.shape[1]):
            for row in rows:
                for column in columns:
                    mixed[sample, frame, row, column] = frames[mix.order[sample], frame, row, column]
    return mixed.view_as(x), len(rows) * len(columns)


@pytest.mark.parametrize("shape", [torch.Size([3, 3, 2, 7, 10]), torch.Size([3, 3, 7, 10])])
def test_a_cut_is_one_box_in_all_frames_and_its_share_what_is_left_of_the_sample(shape: torch.Size) -> None:
    x = torch.randn(shape)
    before = x.clone()
    for step in range(12):
        mix = drawn(Train(cutmix=1.0), step, shape)
        expected, places = pasted(x, mix)
        assert torch.equal(mix.pixels(x), expected) and torch.equal(x, before)
        assert mix.share == pytest.approx(1 - places / 70)


def test_boxes_lie_anywhere_within_the_frame_with_its_proportions() -> None:
    boxes = [box for step in range(500) if (box := drawn(Train(cutmix=1.0), step).box) is not None]
    covered = torch.zeros(20, 30)
    for rows, columns in boxes:
        assert 0 <= rows.start <= rows.stop <= 20 and 0 <= columns.start <= columns.stop <= 30
        covered[rows, columns] += 1
    assert covered.min() > 50, "corners too"
    inner = [(rows, columns) for rows, columns in boxes if rows.start and columns.start]
    inner = [(rows, columns) for rows, columns in inner if rows.stop < 20 and columns.stop < 30]
    assert len(inner) > 50
    for rows, columns in inner:  # none of these was cut off at a border
        assert (columns.stop - columns.start) / 30 == pytest.approx((rows.stop - rows.start) / 20, abs=0.05)


def test_an_uncut_box_has_the_area_that_beta_draws() -> None:
    """With large alpha shares are all near a half; boxes that no border cuts show it."""
    mixes = [drawn(Train(cutmix=1e6), step, torch.Size([2, 3, 200, 300])) for step in range(300)]
    largest = min(mix.share for mix in mixes)
    assert largest == pytest.approx(0.5, abs=0.02)


def test_clips_and_images_of_a_step_are_cut_alike() -> None:
    clips, images = drawn(Train(cutmix=1.0), 3, CLIPS), drawn(Train(cutmix=1.0), 3, IMAGES)
    assert clips.box == images.box and clips.share == images.share


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("mix", [None, Mix(torch.tensor([1, 2, 3, 0]), 0.7)])
def test_loss_is_the_cross_entropy_with_the_mixed_and_smoothed_labels(smoothing: float, mix: Mix | None) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5), torch.tensor([0, 3, 3, 1])
    expected = 0.0
    for sample in range(4):
        target = torch.zeros(5)
        target[labels[sample]] += mix.share if mix else 1.0
        if mix:
            target[labels[mix.order[sample]]] += 1 - mix.share
        target = (1 - smoothing) * target + smoothing / 5
        probabilities = logits[sample].exp() / logits[sample].exp().sum()
        expected -= float((target * probabilities.log()).sum()) / 4
    assert float(head_loss(logits, labels, mix, Objective(smoothing=smoothing))) == pytest.approx(expected, rel=1e-5)
