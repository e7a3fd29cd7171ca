from dataclasses import replace

import pytest
import torch

from scaleup.common.errors import UserError
from scaleup.model.tubes import TubeSpec
from scaleup.transplants.donor import Kernel
from scaleup.transplants.transplant_plan import plan_channels, preferred_folds

SPEC = TubeSpec("long", (8, 8, 8), (16, 32, 32))
SIZE = (32, 224, 224)


def kernel(channels: int, spec: TubeSpec = SPEC) -> Kernel:
    return Kernel(spec, torch.zeros(channels, 3, 1, 1, 1), torch.zeros(channels), ())


@pytest.mark.parametrize(
    ("places", "first"),
    [
        (1, (1, 1, 1)),
        (2, (2, 1, 1)),
        (3, (3, 1, 1)),
        (4, (1, 2, 2)),
        (5, (5, 1, 1)),
        (6, (6, 1, 1)),
        (8, (2, 2, 2)),
        (12, (3, 2, 2)),
        (16, (4, 2, 2)),
    ],
)
def test_two_in_time_four_in_space_and_beyond_that_time_takes_the_rest(places: int, first: tuple) -> None:
    folds = preferred_folds(places)
    assert folds[0] == first
    assert len(folds) == len(set(folds)) and all(t * h * w == places for t, h, w in folds)


@pytest.mark.parametrize(
    ("channels", "width", "fold"),
    [(192, 768, (1, 2, 2)), (256, 1280, (5, 1, 1)), (384, 768, (2, 1, 1)), (768, 768, (1, 1, 1))],
)
def test_channels_that_divide_the_width_are_exact(channels: int, width: int, fold: tuple) -> None:
    plan = plan_channels(kernel(channels), width, SIZE, exact=True)
    assert plan.reported.exact and plan.reported.dropped_channels == 0 and plan.reported.tokens == 98
    assert plan.spec == replace(SPEC, fold=fold, channels=channels)


@pytest.mark.parametrize(
    ("channels", "width", "places", "dropped"),
    [(768, 1024, 2, 512), (768, 1280, 2, 256), (192, 1280, 7, 64), (1024, 768, 1, 256)],
)
def test_channels_that_do_not_fit_are_folded_once_more_and_cut(
    channels: int, width: int, places: int, dropped: int
) -> None:
    plan = plan_channels(kernel(channels), width, SIZE, exact=False)
    assert not plan.reported.exact and plan.reported.dropped_channels == dropped
    assert plan.spec.places_per_token == places
    assert plan.spec.channels_of(width) == channels and plan.reported.tokens == 98


def test_exact_refuses_and_names_what_fits() -> None:
    with pytest.raises(
        UserError, match="'long' emits 192 channels, .* width 1280; tubes of 64, 128, 256, 640 channels would fit"
    ):
        plan_channels(kernel(192), 1280, SIZE, exact=True)


def test_a_fold_that_does_not_fit_the_clip_gives_way_to_the_next() -> None:
    short = TubeSpec("long", (8, 8, 8), (16, 32, 32))
    assert plan_channels(kernel(256, short), 1280, (8, 224, 224), True).spec.fold == (1, 5, 1)
    with pytest.raises(UserError, match="'long' folds"):
        plan_channels(kernel(1, short), 1280, (8, 8, 8), True)


def test_a_fold_of_the_small_model_counts_as_channels_of_a_place() -> None:
    folded = replace(SPEC, fold=(2, 1, 1), channels=96)
    assert plan_channels(kernel(96, folded), 384, SIZE, True).spec == replace(SPEC, fold=(1, 2, 2), channels=96)


def test_the_order_of_folds_that_are_left() -> None:
    assert preferred_folds(4) == [(1, 2, 2), (4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 4, 1), (1, 1, 4)]
