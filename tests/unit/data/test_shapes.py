import numpy as np
import pytest
import torch

from scaleup.data import shapes
from scaleup.data.decode import decode_clip, decode_image
from scaleup.data.shapes import MOTIONS, SHAPES, Scene, make_sample, make_shapes, render, sample_scene
from scaleup.errors import UserError


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
        one = make_sample(modality, 0, 0, 5, 32, 4)
        assert one == make_sample(modality, 0, 0, 5, 32, 4)
        for other in [(1, 0, 5), (0, 1, 5), (0, 0, 6)]:
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
    sample = make_sample("video", 0, 0, 2, 32, 16)
    assert sample.labels == {"shape": scene.shape, "motion": scene.motion}
    clip = decode_clip(sample.media, 16, shapes.FPS).permute(1, 2, 3, 0)
    assert (clip.double() - torch.from_numpy(pixels)).abs().mean() < 8  # of 255; half of the colour is given up
    rng = np.random.default_rng([0, 0, False, 2])
    scene = sample_scene(rng, 1)
    sample = make_sample("image", 0, 0, 2, 32, 16)
    assert np.array_equal(decode_image(sample.media).permute(1, 2, 0), render(scene, 32, rng)[0])
    assert sample.labels["position"] == int(scene.row[0] * 4) * 4 + int(scene.column[0] * 4)


@pytest.mark.parametrize("size, frames", [(31, 16), (8, 16), (32, 0)])
def test_sizes_that_cannot_be_made_are_refused(tmp_path, size, frames):
    with pytest.raises(UserError, match="size is an even number"):
        make_shapes(tmp_path / "out", {"val": 1}, {}, size=size, frames=frames)
    assert not list(tmp_path.iterdir())
