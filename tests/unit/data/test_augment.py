import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from videos import moving, numbered, numbers

from scaleup.common.errors import UserError
from scaleup.config.schema import Augment, Input
from scaleup.data.augment import TrainTransform, _random_box, eval_views, parse_views, spatial_views

SMALL = Input(frames=4, size=[24, 24], fps=10)


def png(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def still(frames=4, height=40, width=50):
    """(T, 3, H, W): the same random picture in every frame."""
    picture = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0))
    return picture.to(torch.uint8).expand(frames, -1, -1, -1)


@pytest.mark.parametrize("layers", [0, 2])
def test_every_frame_is_changed_alike(layers):
    transform = TrainTransform(SMALL, Augment(randaugment_layers=layers))
    for seed in range(30):
        frames = transform.crop_image(still(), random.Random(seed))
        assert frames.shape == (4, 3, 24, 24) and frames.dtype == torch.uint8
        assert torch.equal(frames, frames[:1].expand_as(frames))


@pytest.mark.parametrize("modality, media", [("video", numbered(12)), ("image", png(40, 50))])
def test_a_result_is_a_function_of_the_source(modality, media):
    transform = TrainTransform(SMALL, Augment(randaugment_layers=2))
    torch.manual_seed(1)
    one = transform(media, modality, random.Random(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(one, transform(media, modality, random.Random(5)))
    assert torch.equal(state, torch.get_rng_state())  # nobody else's numbers change
    others = [transform(media, modality, random.Random(seed)) for seed in range(8)]
    assert len({other.numpy().tobytes() for other in others}) > 4


def test_whole_picture_without_flip_is_the_decoded_one():
    transform = TrainTransform(SMALL, Augment(crop_scale=[1, 1], crop_ratio=[1, 1], flip=False))
    pixels = still(1, 24, 24)
    assert torch.equal(transform.crop_image(pixels, random.Random(0)), pixels)


def test_flips_half_of_the_time_and_only_if_asked():
    pixels = still(1, 24, 24)
    for flip, expected in ((True, range(70, 131)), (False, [0])):
        transform = TrainTransform(SMALL, Augment(crop_scale=[1, 1], crop_ratio=[1, 1], flip=flip))
        results = [transform.crop_image(pixels, random.Random(seed)) for seed in range(200)]
        assert sum(torch.equal(result, pixels.flip(-1)) for result in results) in expected


def test_videos_are_mirrored_half_of_the_time_and_only_if_asked():
    video = moving(4, height=24, width=24, pix_fmt="yuv444p")
    straight = TrainTransform(SMALL, Augment(crop_scale=[1, 1], crop_ratio=[1, 1], flip=False))
    plain = straight(video, "video", random.Random(0))
    mirrored = TrainTransform(SMALL, Augment(crop_scale=[1, 1], crop_ratio=[1, 1]))
    results = [mirrored(video, "video", random.Random(seed)) for seed in range(40)]
    assert all(torch.equal(result, plain) or torch.equal(result, plain.flip(-1)) for result in results)
    assert sum(torch.equal(result, plain.flip(-1)) for result in results) in range(10, 31)


@pytest.mark.parametrize("height, width", [(40, 50), (10, 200), (200, 10)])
def test_crops_lie_inside_and_have_the_area_and_ratio_asked_for(height, width):
    augment, source = Augment(crop_scale=[0.25, 0.5]), random.Random(0)
    boxes = [_random_box(height, width, augment, source) for _ in range(300)]
    for top, left, h, w in boxes:
        assert 0 <= top <= height - h and 0 <= left <= width - w
        assert 0.7 <= w / h <= 1.45
    if (height, width) == (40, 50):
        assert all(0.23 < h * w / 2000 < 0.53 for *_, h, w in boxes)
        assert len({box[:2] for box in boxes}) > 100


def test_temporal_start_is_random_over_the_whole_video():
    transform = TrainTransform(SMALL, Augment())
    clips = [transform(numbered(12), "video", random.Random(seed)) for seed in range(60)]
    assert {numbers(clip)[0] for clip in clips} == set(range(8))  # 8 is only at 1 itself


@pytest.mark.parametrize("text, views", [("1x1", (1, 1)), ("4x3", (4, 3)), ("10x10", (10, 10))])
def test_views_are_parsed(text, views):
    assert parse_views(text) == views


@pytest.mark.parametrize("text", ["", "4", "4x", "0x3", "4x3x2", "-1x3", "4 x 3", "100x1"])
def test_other_views_are_refused(text):
    with pytest.raises(UserError, match=f"views '{text}' is not"):
        parse_views(text)


def ramp(height, width):
    """(3, H, W): row number, column number and 0."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)


def corners(views):
    return [(view[0, 0, 0].item(), view[1, 0, 0].item()) for view in views]


@pytest.mark.parametrize(
    "height, width, crops, expected",
    [
        (24, 44, 1, [(0, 10)]),
        (24, 44, 3, [(0, 0), (0, 10), (0, 20)]),
        (44, 24, 3, [(0, 0), (10, 0), (20, 0)]),
        (24, 44, 5, [(0, 0), (0, 5), (0, 10), (0, 15), (0, 20)]),
        (24, 24, 1, [(0, 0)]),
    ],
)
def test_crops_are_evenly_spaced_along_the_longer_side(height, width, crops, expected):
    views = spatial_views(ramp(height, width), [24, 24], crops)
    assert views.shape == (crops, 3, 24, 24)
    assert corners(views) == expected


@pytest.mark.parametrize("height, width, crops", [(24, 24, 3), (24, 24, 10), (32, 32, 3), (24, 25, 3), (13, 13, 5)])
def test_a_square_picture_is_enlarged_so_that_its_crops_differ(height, width, crops):
    views = spatial_views(ramp(height, width), [24, 24], crops)
    assert len({view.numpy().tobytes() for view in views}) == crops
    assert views[0, 1].double().mean() < views[-1, 1].double().mean()  # along the width


def test_short_side_is_resized_and_a_model_need_not_be_square():
    assert spatial_views(ramp(100, 60), [24, 24], 3).shape == (3, 3, 24, 24)
    wide = spatial_views(ramp(48, 64), [24, 32], 1)
    assert wide.shape == (1, 3, 24, 32) and wide[0, 1].max() > 60  # nothing cut off
    assert spatial_views(ramp(48, 48), [16, 32], 3)[-1, 0].min() > 10  # slides down: the height is the longer side


def test_views_of_a_video_are_clips_times_crops():
    views = eval_views(numbered(16, height=24, width=44), "video", SMALL, 4, 3)
    assert views.shape == (12, 3, 4, 24, 24)
    assert [numbers(view) for view in views[::3]] == [[first + k for k in range(4)] for first in (0, 4, 8, 12)]
    assert numbers(eval_views(numbered(12), "video", SMALL, 1, 1)[0]) == [4, 5, 6, 7]


def test_an_image_has_crops_alone():
    assert eval_views(png(40, 60), "image", SMALL, 4, 3).shape == (3, 3, 24, 24)
