import itertools
from dataclasses import replace

import pytest
import torch

from scaleup.common.errors import UserError
from scaleup.model.tubes import TubeSpec, TubeTokenizer, resize_kernel

PAPER = [  # the paper's main tubes, and its image tokenizer
    TubeSpec("a", (8, 8, 8), (16, 32, 32)),
    TubeSpec("b", (16, 4, 4), (6, 32, 32), (4, 8, 8)),
    TubeSpec("c", (4, 12, 12), (16, 32, 32), (0, 16, 16)),
    TubeSpec("frames", (1, 16, 16), (32, 16, 16)),
]


@pytest.mark.parametrize(
    ("frames", "counts"), [(32, [98, 147, 98, 196]), (64, [196, 392, 196, 392]), (128, [392, 931, 392, 784])]
)
def test_the_papers_tubes_give_its_token_counts(frames: int, counts: list[int]) -> None:
    assert [spec.tokens((frames, 224, 224)) for spec in PAPER] == counts
    assert sum(counts) == {32: 539, 64: 1176, 128: 2499}[frames]


FOLDS = [(2, 1, 1), (1, 2, 2), (4, 1, 1), (2, 2, 2), (1, 1, 2), (2, 3, 1), (1, 5, 1)]


@pytest.mark.parametrize(
    ("spec", "fold"),
    [
        *itertools.product(PAPER[:3], FOLDS),
        (PAPER[0], (5, 1, 1)),
        (PAPER[0], (8, 1, 1)),
        (PAPER[1], (5, 1, 1)),
        (PAPER[2], (5, 1, 1)),
    ],
)
def test_a_fold_keeps_the_number_of_tokens_and_stays_inside_the_clip(
    spec: TubeSpec, fold: tuple[int, int, int]
) -> None:
    size = (32, 224, 224)
    folded = replace(spec, fold=fold)
    assert folded.tokens(size) == spec.tokens(size)
    for axis, starts in enumerate(folded.places(size)):
        assert starts.shape == (spec.grid(size)[axis], fold[axis])
        assert starts.min() >= spec.offset[axis] and starts.max() + spec.kernel[axis] <= size[axis]
        assert (starts.diff(dim=1) > 0).all()  # no place twice in a token
        assert (starts.diff(dim=0) >= 0).all()


def test_neighbours_are_a_part_of_the_stride_apart_where_that_fits() -> None:
    t, h, w = TubeSpec("tube", (4, 4, 4), (8, 8, 8), (1, 0, 2), (2, 1, 4)).places((25, 16, 37))
    assert t.tolist() == [[1, 5], [9, 13], [17, 21]]
    assert h.tolist() == [[0], [8]]
    assert w.tolist() == [[2, 4, 6, 8], [10, 12, 14, 16], [18, 20, 22, 24], [26, 28, 30, 32]]


def test_a_token_that_would_leave_the_clip_is_moved_back_inside() -> None:
    past_the_end = TubeSpec("tube", (8, 1, 1), (16, 1, 1), (0, 0, 0), (2, 1, 1)).places((24, 1, 1))[0]
    assert past_the_end.tolist() == [[0, 8], [8, 16]]
    assert replace(PAPER[1], fold=(2, 1, 1)).places((32, 224, 224))[0].tolist() == [
        [4, 7],
        [10, 13],
        [13, 16],
    ]


def test_places_are_spread_evenly_where_the_fold_does_not_divide_the_stride_or_the_clip_is_small() -> None:
    no_divisor = TubeSpec("tube", (4, 1, 1), (8, 1, 1), (2, 0, 0), (5, 1, 1)).places((21, 1, 1))[0]
    assert no_divisor.tolist() == [[2, 4, 5, 7, 8], [10, 12, 13, 15, 16]]
    small_clip = TubeSpec("tube", (8, 1, 1), (16, 1, 1), (0, 0, 0), (4, 1, 1)).places((14, 1, 1))[0]
    assert small_clip.tolist() == [[0, 2, 4, 6]]


def test_a_token_is_at_the_centre_of_all_it_covers() -> None:
    spec = TubeSpec("tube", (4, 2, 3), (8, 4, 6), (1, 0, 2), (2, 1, 1))
    centres = spec.centres((17, 6, 11))
    t = [(1 + 1 + 4 + 4 - 1) / 2, (9 + 9 + 4 + 4 - 1) / 2]  # frames 1..8 and 9..16
    assert centres.tolist() == [list(c) for c in itertools.product(t, [0.5, 4.5], [3.0, 9.0])]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((15, 64, 64), "tube 'long' needs at least 16 along t (offset 4 + kernel 12); the input has 15"),
        ((32, 11, 64), "tube 'long' needs at least 12 along h (offset 8 + kernel 4); the input has 11"),
        ((32, 64, 3), "tube 'long' needs at least 4 along w"),
    ],
)
def test_an_input_too_small_for_a_tube_is_refused(size: tuple[int, int, int], words: str) -> None:
    with pytest.raises(UserError) as error:
        TubeSpec("long", (12, 4, 4), (6, 32, 32), (4, 8, 0)).tokens(size)
    assert words in str(error.value)


def test_a_fold_without_room_for_its_places_is_refused() -> None:
    with pytest.raises(UserError, match=r"'tube' folds 5 places along t, .* at least 9 along t; the input has 8"):
        TubeSpec("tube", (4, 1, 1), (4, 1, 1), (1, 0, 0), (5, 1, 1)).places((8, 4, 4))
    assert TubeSpec("tube", (4, 1, 1), (5, 1, 1), fold=(5, 1, 1)).places((8, 4, 4))[0].tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("fold", "channels"), [((5, 1, 1), None), ((2, 1, 1), 20), ((3, 1, 1), 24), ((1, 1, 1), 23)])
def test_channels_that_do_not_give_the_width_are_refused(fold: tuple[int, int, int], channels: int | None) -> None:
    with pytest.raises(UserError, match="'tube' folds .* does not give the width 48"):
        TubeTokenizer([TubeSpec("tube", (2, 2, 2), (2, 2, 2), fold=fold, channels=channels)], 48)


def test_smaller_strides_give_more_tokens_from_the_same_weights() -> None:
    coarse = TubeTokenizer([TubeSpec("tube", (4, 8, 8), (8, 16, 16))], 12)
    fine = TubeTokenizer([TubeSpec("tube", (4, 8, 8), (4, 8, 16))], 12)
    fine.load_state_dict(coarse.state_dict())
    x = torch.randn(1, 3, 16, 32, 48)
    few, many = (made(x)[0].unflatten(0, made.specs[0].grid(x.shape[2:])) for made in (coarse, fine))
    assert few.shape[:3] == (2, 2, 3) and many.shape[:3] == (4, 4, 3)
    torch.testing.assert_close(many[::2, ::2], few)


def test_one_frame_and_oblong_inputs() -> None:
    tokenizer = TubeTokenizer([TubeSpec("tube", (1, 4, 6), (3, 4, 6), (0, 0, 1))], 8)
    assert tokenizer(torch.randn(2, 3, 1, 8, 20)).shape == (2, 2 * 3, 8)


@pytest.mark.parametrize(
    "name", ["a-b", "a.b", "", "forward", "shared", "specs", "training", "frames", "get", "_modules"]
)
def test_names_that_a_tube_cannot_have(name: str) -> None:
    with pytest.raises(UserError, match="a tube cannot be named"):
        TubeTokenizer([TubeSpec(name, (2, 2, 2), (2, 2, 2))], 8)


KERNELS = [(1, 16, 16), (16, 16, 16), (32, 8, 8), (4, 32, 32), (8, 8, 8), (3, 5, 1)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_interpolated_kernel_keeps_its_response_to_a_constant(kernel: tuple[int, int, int]) -> None:
    resized = resize_kernel(torch.full((2, 3, 8, 8, 8), 0.25), kernel)
    assert resized.shape == (2, 3, *kernel)
    torch.testing.assert_close(resized.sum((1, 2, 3, 4)), torch.full((2,), 0.25 * 3 * 512))


def test_every_tube_teaches_the_kernel_they_share() -> None:
    tokenizer = TubeTokenizer([TubeSpec("a", (2, 8, 8), (2, 8, 8)), TubeSpec("b", (8, 2, 4), (8, 8, 8))], 6, (4, 4, 4))
    assert {name for name, _ in tokenizer.named_parameters()} == {"shared", "a.bias", "b.bias"}
    tokens = tokenizer(torch.randn(1, 3, 8, 16, 16))
    for part in tokens.split([16, 4], dim=1):
        (gradient,) = torch.autograd.grad(part.square().sum(), tokenizer.shared, retain_graph=True)
        assert gradient.abs().min() > 0


def test_tubes_that_emit_different_channels_share_no_kernel() -> None:
    specs = [TubeSpec("a", (2, 8, 8), (2, 8, 8)), TubeSpec("b", (8, 2, 4), (8, 8, 8), fold=(2, 1, 1))]
    with pytest.raises(UserError, match=r"must emit equally many channels; these emit \[3, 6\]"):
        TubeTokenizer(specs, 6, (4, 4, 4))
