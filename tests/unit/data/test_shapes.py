import numpy as np
import pytest
import torch

from scaleup.common.errors import UserError
from scaleup.config.schema import Backbone, Frames, Input, Model, Positions, Tube
from scaleup.data import shapes
from scaleup.data.decode import decode_clip, decode_image
from scaleup.data.generated import FPS
from scaleup.data.shapes import (
    DOT,
    MOTIONS,
    PLACE_MOTIONS,
    PLACES,
    SHAPES,
    Scene,
    make_sample,
    make_shapes,
    render,
    sample_places,
    sample_scene,
)
from scaleup.data.shards import Shards
from scaleup.model.build import fresh


def scenes(count, frames=16):
    rng = np.random.default_rng(0)
    return [sample_scene(rng, frames) for _ in range(count)]


def distance(a, b):
    """Kolmogorov-Smirnov distance of two sets of numbers."""
    grid = np.concatenate([a, b])
    return max(abs((a <= x).mean() - (b <= x).mean()) for x in grid)


def test_no_single_frame_tells_motions_apart():
    """At every frame row, column, size and shape have one distribution whatever the motion: the uniform one."""
    drawn = scenes(6000)
    uniform = np.linspace(0, 1, 500)
    for motion in range(len(MOTIONS)):
        these = [scene for scene in drawn if scene.motion == motion]
        limit = 1.9 / len(these) ** 0.5 + 0.01  # a true match is farther away once in a thousand times
        for frame in (0, 5, 15):
            values = np.array([(scene.row[frame], scene.column[frame], scene.size[frame]) for scene in these])
            assert all(distance(values[:, axis], uniform) < limit for axis in range(3))
            assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 4 / len(these) ** 0.5
        assert abs(np.mean([scene.shape for scene in these]) - 3.5) < 4 * 2.3 / len(these) ** 0.5


def test_several_frames_do_tell_them_apart():
    for scene in scenes(300):
        steps = [(np.diff(values) + 0.5) % 1 - 0.5 for values in (scene.row, scene.column, scene.size)]
        assert np.allclose(steps, np.array(steps)[:, :1])  # steady
        moving = np.abs(np.array(steps)[:, 0]) > 1e-9
        name = MOTIONS[scene.motion]
        assert moving.tolist() == [name in ("up", "down"), name in ("left", "right"), name in ("grow", "shrink")]
        forward = name in ("down", "right", "grow")
        rate = np.array(steps)[moving, 0].item() * (1 if forward else -1)
        low, high = shapes.CYCLE if name in ("grow", "shrink") else shapes.SPEED
        assert low <= rate <= high


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_shapes_lie_on_a_torus_where_the_scene_says(shape, monkeypatch):
    """Moving the centre by whole pixels rolls the picture, also over the border."""
    monkeypatch.setattr(shapes, "_texture", lambda rng, x, y, amplitude: np.zeros((*np.broadcast(x, y).shape, 3)))
    noise = np.zeros((1, 32, 32, 1))

    class Quiet(np.random.Generator):
        def normal(self, *args, **kwargs):
            return noise

    def drawn(row, column, size=0.6):
        place = [np.array([value]) for value in (row, column, size)]
        return render(Scene(shape, 0, *place), 32, Quiet(np.random.PCG64(3)))[0].astype(int)

    middle = drawn(0.5, 0.5)
    assert np.abs(drawn(29 / 32, 3 / 32) - np.roll(middle, (13, -13), (0, 1))).max() <= 1
    inside = np.abs(middle - middle[0, 0]).sum(-1) > 20
    rows, columns = np.nonzero(inside)
    radius = (shapes.RADIUS[0] + 0.6 * (shapes.RADIUS[1] - shapes.RADIUS[0])) * 32
    reach = np.hypot(rows + 0.5 - 16, columns + 0.5 - 16).max()
    assert 0.75 * radius < reach < 1.1 * radius
    assert inside.sum() < (np.abs(drawn(0.5, 0.5, 0.99) - middle[0, 0]).sum(-1) > 20).sum()


def test_shapes_differ_from_one_another(monkeypatch):
    y, x = np.meshgrid(np.linspace(-1.2, 1.2, 64), np.linspace(-1.2, 1.2, 64), indexing="ij")
    inside = [shapes._distance(shape, x, y) < 0 for shape in SHAPES]
    for one in range(len(SHAPES)):
        assert (inside[one] & (np.hypot(x, y) > 1.07)).sum() == 0
        for other in range(one):
            union = (inside[one] | inside[other]).sum()
            assert (inside[one] & inside[other]).sum() < 0.85 * union


def test_figure_and_ground_contrast():
    middle, size = np.array([0.5]), np.array([1.0])
    for seed in range(200):
        gray = render(Scene(0, 0, middle, middle, size), 32, np.random.default_rng(seed))[0].mean(-1)
        border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
        assert abs(gray[12:20, 12:20].mean() - border.mean()) > 0.2 * 255


def test_a_sample_is_a_function_of_its_arguments():
    for modality in ("video", "image"):
        one = make_sample(modality, 0, "train", 5, 32, 4)
        assert one == make_sample(modality, 0, "train", 5, 32, 4)
        for other in [(1, "train", 5), (0, "val", 5), (0, "train", 6)]:
            changed = make_sample(modality, *other, 32, 4)
            assert changed.media != one.media and changed.key != one.key


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    for processes in (1, 2):
        make_shapes(tmp_path / str(processes), {"val": 103}, {"val": 103}, frames=2, processes=processes)
    for name in ("videos-val/000000.tar", "videos-val/index.json", "images-val/000000.tar", "images-val/index.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_files_hold_what_was_rendered():
    rng = np.random.default_rng([0, 0, True, 2])
    scene = sample_scene(rng, 16)
    pixels = render(scene, 32, rng)
    sample = make_sample("video", 0, "train", 2, 32, 16)
    assert sample.labels == {"shape": scene.shape, "motion": scene.motion}
    clip = decode_clip(sample.media, 16, FPS).permute(1, 2, 3, 0)
    assert (clip.double() - torch.from_numpy(pixels)).abs().mean() < 8  # of 255; half of the colour is given up
    rng = np.random.default_rng([0, 0, False, 2])
    scene = sample_scene(rng, 1)
    sample = make_sample("image", 0, "train", 2, 32, 16)
    assert np.array_equal(decode_image(sample.media).permute(1, 2, 0), render(scene, 32, rng)[0])
    assert sample.labels["position"] == int(scene.row[0] * 4) * 4 + int(scene.column[0] * 4)


@pytest.mark.parametrize("size, frames", [(31, 16), (8, 16), (32, 0)])
def test_sizes_that_cannot_be_made_are_refused(tmp_path, size, frames):
    with pytest.raises(UserError, match="size must be an even number"):
        make_shapes(tmp_path / "out", {"val": 1}, {}, size=size, frames=frames)
    assert not list(tmp_path.iterdir())


def test_no_single_frame_tells_the_motion_in_a_place():
    """One quarter has a shape, all places and motions are as likely, and at every frame the shape is anywhere in it,
    whatever the motion; dots are too."""
    rng = np.random.default_rng(0)
    drawn = [sample_places(rng, 16) for _ in range(6000)]
    counts = np.zeros((len(PLACES), len(MOTIONS)))
    for scenes, place in drawn:
        assert [scene.shape != DOT for scene in scenes] == [index == place for index in range(len(PLACES))]
        counts[place, scenes[place].motion] += 1
    assert np.abs(counts - 250).max() < 4.5 * 250**0.5
    uniform = np.linspace(0, 1, 500)
    for motion in range(len(MOTIONS)):
        for these in (
            [scenes[place] for scenes, place in drawn if scenes[place].motion == motion],
            [scenes[place - 1] for scenes, place in drawn if scenes[place - 1].motion == motion],
        ):
            values = np.array([(scene.row[9], scene.column[9], scene.size[9]) for scene in these])
            limit = 1.9 / len(these) ** 0.5 + 0.01
            assert all(distance(values[:, axis], uniform) < limit for axis in range(3))


def test_a_place_is_a_quarter_of_the_picture():
    """The quarter of the label holds what the label says; the picture is put together from four scenes as they are."""
    scenes, place = sample_places(np.random.default_rng([4, 0, True, 7]), 6)
    rng = np.random.default_rng([4, 0, True, 7])
    sample_places(rng, 6)
    quarters = [render(scene, 16, rng) for scene in scenes]
    sample = make_sample("video", 4, "train", 7, 32, 6, places=True)
    motion = scenes[place].motion
    assert sample.labels == {
        "shape": scenes[place].shape,
        "motion": motion,
        "place_motion": PLACE_MOTIONS.index(f"{MOTIONS[motion]} in the {PLACES[place]}"),
    }
    clip = decode_clip(sample.media, 6, FPS).permute(1, 2, 3, 0).double().numpy()
    for index, name in enumerate(PLACES):
        rows = slice(0, 16) if "top" in name else slice(16, 32)
        columns = slice(0, 16) if "left" in name else slice(16, 32)
        assert np.abs(clip[:, rows, columns] - quarters[index]).mean() < 12
    image = make_sample("image", 4, "train", 3, 32, 1, places=True)
    scenes, place = sample_places(np.random.default_rng([4, 0, False, 3]), 1)
    row, column = (place // 2 + scenes[place].row[0]) / 2, (place % 2 + scenes[place].column[0]) / 2
    assert image.labels["position"] == int(4 * row) * 4 + int(4 * column)
    assert image.labels.keys() == {"shape", "position", "size"}


def test_places_cannot_be_told_without_positions():
    """With quarters exchanged the class is another, and a model without positions answers the same."""
    tubes = {"short": Tube([8, 8, 8], [8, 8, 8]), "long": Tube([16, 4, 4], [16, 8, 8], [0, 2, 2])}
    tiny = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    rng = np.random.default_rng(0)
    scenes, _ = sample_places(rng, 16)
    pixels = np.concatenate([render(scene, 16, rng) for scene in scenes[:2]], axis=2)  # (T, 16, 32, 3)
    clip = torch.from_numpy(np.concatenate([pixels, pixels[:, ::-1]], axis=1) / 255).float().permute(3, 0, 1, 2)[None]
    exchanged = clip.roll(16, -1)
    differences = {}
    for kind in ("none", "cosine"):
        model = Model(
            backbone=Backbone("timm:vit_tiny_patch16_224", tiny),
            input=Input(16, [32, 32]),
            frames=Frames(16),
            tubes=tubes,
            positions=Positions(kind),
        )
        made = fresh(model, {"place_motion": PLACE_MOTIONS}, seed=0).eval()
        with torch.no_grad():
            differences[kind] = (made(clip) - made(exchanged)).abs().max().item()
    assert differences["none"] < 1e-5 < 1e-3 < differences["cosine"]


def test_labels_of_places_are_in_the_index(tmp_path):
    make_shapes(tmp_path / "out", {"val": 3}, {"val": 2}, frames=4, processes=1, places=True)
    assert Shards.open(tmp_path / "out/videos-val").classes["place_motion"] == PLACE_MOTIONS
    assert "place_motion" not in Shards.open(tmp_path / "out/images-val").classes
