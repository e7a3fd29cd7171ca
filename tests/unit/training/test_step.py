import pytest
import torch

from scaleup.training.step import Mix, draw_mix, head_loss, settled_mean


def test_a_mix_depends_on_seed_and_step_alone() -> None:
    torch.manual_seed(0)
    first = draw_mix(0.3, batch=8, seed=1, step=5)
    torch.manual_seed(1)
    again, later, other = (draw_mix(0.3, 8, seed, step) for seed, step in ((1, 5), (1, 6), (2, 5)))
    assert first is not None and again is not None and later is not None and other is not None
    assert first.order.tolist() == again.order.tolist() and first.share == again.share
    assert len({first.share, later.share, other.share}) == 3
    assert sorted(first.order.tolist()) == list(range(8))


def test_the_sample_itself_outweighs_what_is_mixed_in() -> None:
    shares = [mix.share for step in range(200) if (mix := draw_mix(1.0, 2, 0, step)) is not None]
    assert min(shares) >= 0.5 and max(shares) <= 1
    assert sum(shares) / len(shares) == pytest.approx(0.75, abs=0.03)  # max(u, 1 - u) of a uniform u


def test_no_mixup_draws_nothing() -> None:
    assert draw_mix(0.0, 8, 0, 0) is None


def test_pixels_are_mixed_sample_by_sample() -> None:
    x = torch.randn(3, 3, 2, 4, 4)
    mixed = Mix(torch.tensor([2, 0, 1]), 0.8).pixels(x)
    for sample, other in enumerate([2, 0, 1]):
        torch.testing.assert_close(mixed[sample], 0.8 * x[sample] + 0.2 * x[other])


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
    assert float(head_loss(logits, labels, mix, smoothing)) == pytest.approx(expected, rel=1e-5)


def test_the_first_steps_do_not_count_as_the_cost_of_a_step() -> None:
    assert settled_mean([9.0] * 5 + [1.0, 2.0, 3.0, 1.0, 3.0]) == 2.0
    assert settled_mean([9.0, 1.0]) == 1.0
    assert settled_mean([4.0]) == 4.0
