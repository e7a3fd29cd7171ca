"""Cut-out objects over photographs that pan: what frames show, and what they must not tell."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import tools

from scaleup.common.errors import UserError
from scaleup.data.decode import decode_clip, decode_image
from scaleup.data.generated import FPS, encode_mp4, write_splits
from scaleup.data.scenes import (
    DURATION,
    EVENTS,
    MOTIONS,
    SHIFTS,
    Material,
    Scenes,
    draw_track,
    pan_windows,
)
from scaleup.data.shards import Sample, Shards

SIZE, FRAMES = 48, 12
DIRECTIONS = {  # row, column
    name: np.array(step) for name, step in {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}.items()
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red and a green disc, and eight grey photographs of different brightness."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "objects").mkdir()
    (folder / "photos").mkdir()
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    for name, colour in {"green": (0, 255, 0), "red": (255, 0, 0)}.items():
        pixels = np.dstack([np.broadcast_to(colour, (32, 32, 3)), 255 * (x**2 + y**2 < 0.9)]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "objects" / f"{name}.png")
    for number in range(8):
        Image.new("RGB", (80, 60), (20 + 25 * number,) * 3).save(folder / "photos" / f"{number}.png")
    return folder


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two sets of numbers."""
    grid = np.concatenate([a, b])
    return max(abs((a <= x).mean() - (b <= x).mean()) for x in grid)


def test_no_single_frame_tells_motions_apart() -> None:
    rng, uniform = np.random.default_rng(0), np.linspace(0, 1, 400)
    for motion in MOTIONS:
        tracks = [draw_track(rng, motion, "none", FRAMES) for _ in range(900)]
        for frame in (0, FRAMES - 1):
            for values in ("row", "column"):
                assert distance(np.array([getattr(track, values)[frame] for track in tracks]), uniform) < 0.07
            assert distance(np.array([track.angle[frame] for track in tracks]) / 360, uniform) < 0.07


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_takes_a_few_frames_at_a_random_time(event: str) -> None:
    begins = set()
    for seed in range(80):
        plain = draw_track(np.random.default_rng(seed), "left", "none", FRAMES)
        track = draw_track(np.random.default_rng(seed), "left", event, FRAMES)
        differs = [track.row != plain.row, track.column != plain.column, track.shown != plain.shown]
        assert [bool(part.any()) for part in differs] == [event == kind for kind in ("hop", "shake", "blink")]
        (frames,) = np.logical_or.reduce(differs).nonzero()
        assert len(frames) <= DURATION and (event == "none" or len(frames) >= 1)
        begins.update(frames[:1].tolist())
    assert event == "none" or len(begins) > FRAMES / 2


def colours(sample: Sample) -> np.ndarray:
    """How much colour pixels of a video have: (T, H, W). Photographs are grey, objects are not."""
    clip = decode_clip(sample.media, FRAMES, FPS).permute(1, 2, 3, 0).numpy()
    return np.clip(np.ptp(clip.astype(float), axis=-1) - 60, 0, None)


def centre(colour: np.ndarray) -> np.ndarray:
    """The centre (T, 2) of what has a colour; if it wraps around, the circular mean."""
    angle = 2 * np.pi * np.arange(SIZE) / SIZE
    sums = [(colour.sum(axis) * np.exp(1j * angle)).sum(1) for axis in (2, 1)]  # rows, columns
    return np.stack([np.angle(each) / (2 * np.pi) * SIZE for each in sums], axis=1)


def test_an_object_moves_as_its_label_says_whatever_the_pan(folder: Path) -> None:
    scenes = Scenes(Material.of(folder), size=SIZE, frames=FRAMES)
    moved, number = dict.fromkeys(DIRECTIONS, 0), 0
    while min(moved.values()) < 2:
        sample, number = scenes("video", "train", number), number + 1
        motion = MOTIONS[sample.labels["motion"]]
        if motion not in moved or EVENTS[sample.labels["event"]] != "none":
            continue
        colour = colours(sample)
        amount = colour.sum((1, 2))
        assert amount.min() > 0.75 * amount.max()  # also at the edges, where the object wraps around
        path = np.unwrap(centre(colour), axis=0, period=SIZE)
        steps = (path[-1] - path[0]) / (FRAMES - 1) / SIZE
        along = steps @ DIRECTIONS[motion]
        assert 1 / 60 < along < 2.4 / 48 and np.abs(steps - along * DIRECTIONS[motion]).max() < 0.004
        moved[motion] += 1


def test_an_object_that_blinks_is_not_in_some_frames(folder: Path) -> None:
    scenes = Scenes(Material.of(folder), size=SIZE, frames=FRAMES)
    for number in range(16):
        sample = scenes("video", "train", number)
        gone = (colours(sample).sum((1, 2)) == 0).sum()
        assert (0 < gone <= DURATION) == (EVENTS[sample.labels["event"]] == "blink")


@pytest.mark.parametrize("pan", [*DIRECTIONS, "still"])
def test_a_photograph_moves_as_the_pan_says(pan: str) -> None:
    ramp = np.mgrid[0:120, 0:160].transpose(1, 2, 0)  # the row and the column of each pixel
    photo = Image.fromarray(np.dstack([ramp, np.zeros((120, 160))]).astype(np.uint8))
    for seed in range(20):
        windows = np.stack([*map(np.asarray, pan_windows(np.random.default_rng(seed), [photo] * FRAMES, pan, SIZE))])
        seen = windows.astype(float).mean((1, 2))[:, :2]  # (T, row and column of the photograph)
        side = np.ptp(windows[0, :, 0, 0].astype(float)) / (SIZE - 1) * SIZE
        steps = -np.diff(seen, axis=0) / side  # of the photograph, in windows
        shift = DIRECTIONS.get(pan, np.zeros(2))
        assert np.abs(steps - steps.mean(0)).max() < 0.02
        assert (np.sign(np.round(steps.mean(0), 2)) == shift).all()


def shifted(picture: np.ndarray, step: np.ndarray, length: int) -> np.ndarray:
    return np.roll(picture, tuple(int(each) for each in length * step), (0, 1))


def test_the_camera_pans_as_its_label_says(folder: Path, tmp_path: Path) -> None:
    """What is behind the object is found again in the last frame by trying all shifts."""
    (tmp_path / "objects").symlink_to(folder / "objects")
    (tmp_path / "photos").mkdir()
    rng, right = np.random.default_rng(0), 0
    for number in range(4):
        noise = Image.fromarray(rng.integers(0, 255, (12, 16), np.uint8))
        noise.resize((160, 120)).save(tmp_path / "photos" / f"{number}.png")
    scenes = Scenes(Material.of(tmp_path), size=SIZE, frames=FRAMES)
    for number in range(20):
        sample = scenes("video", "train", number)
        first, *_, last = decode_clip(sample.media, FRAMES, FPS).float().mean(0).numpy()
        errors = {"still": np.median(np.abs(first - last))}
        for name, step in DIRECTIONS.items():
            errors[name] = min(np.median(np.abs(shifted(first, step, length) - last)) for length in range(3, 16))
        right += min(errors, key=errors.__getitem__) == list(SHIFTS)[sample.labels["camera"]]
    assert right >= 18


def test_splits_share_no_photograph(folder: Path) -> None:
    photos = Material.of(folder).photos
    everything = [path for paths in photos.values() for path in paths]
    assert len(set(everything)) == len(everything) == 8 and len(photos["train"]) == 4
    scenes = Scenes(Material.of(folder), size=SIZE, frames=FRAMES)
    shades = {}
    for split in photos:
        images = [decode_image(scenes("image", split, number).media).numpy() for number in range(20)]
        shades[split] = {int(np.median(image)) for image in images}
    assert not shades["train"] & shades["test"] and not shades["val"] & shades["test"]


def test_films_are_behind_half_of_the_test_videos_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("objects", "photos"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "films").mkdir()
    film = np.zeros((30, 48, 64, 3), np.uint8)
    film[..., 1], film[..., 2] = 8 * np.arange(30)[:, None, None], 255  # blue; green says which frame it is
    (tmp_path / "films" / "blue.mp4").write_bytes(encode_mp4(film))
    scenes = Scenes(Material.of(tmp_path), size=SIZE, frames=FRAMES)
    behind, begins = {"train": 0, "test": 0}, []
    for split in behind:
        for number in range(30):
            clip = decode_clip(scenes("video", split, number).media, FRAMES, FPS).numpy()
            _, green, blue = np.median(clip, axis=(2, 3))  # (T,)
            if blue.min() > 200:
                behind[split] += 1
                assert np.abs(np.diff(green) - 8).max() < 5, "the film does not run"
                begins.append(green[0] / 8)
    assert behind["train"] == 0 and 8 <= behind["test"] <= 22 and np.ptp(begins) > (30 - FRAMES) / 2


def test_a_sample_depends_only_on_its_arguments(folder: Path, tmp_path: Path) -> None:
    scenes = Scenes(Material.of(folder), size=SIZE, frames=FRAMES)
    for modality in ("video", "image"):
        one = scenes(modality, "train", 5)
        assert one == scenes(modality, "train", 5)
        assert one.media != scenes(modality, "train", 6).media
        assert one.media != Scenes(scenes.material, 1, SIZE, FRAMES)(modality, "train", 5).media
    for processes in (1, 2):
        write_splits(tmp_path / str(processes), scenes, scenes.classes, {"val": 103}, {}, processes=processes)
    for name in ("000000.tar", "index.json"):
        one, two = ((tmp_path / processes / "videos-val" / name).read_bytes() for processes in ("1", "2"))
        assert one == two


def test_the_tool_writes_scenes(folder: Path, tmp_path: Path) -> None:
    form = ["--size", SIZE, "--frames", FRAMES, "--videos", "train=8", "--images", "val=4"]
    done = tools.tool("make_shards", "scenes", "--material", folder, "--out", tmp_path / "out", *form)
    assert done.returncode == 0, done.stderr
    videos = Shards.open(tmp_path / "out" / "videos-train")
    assert {label: len(names) for label, names in videos.classes.items()} == {
        **{"object": 2, "motion": 8, "event": 4, "camera": 5, "place_motion": 32}
    }
    for index in range(len(videos)):
        labels = videos.read(index).labels
        assert labels["place_motion"] % len(MOTIONS) == labels["motion"]
    assert list(Shards.open(tmp_path / "out" / "images-val").classes) == ["object"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["scenes"], "scenes need pictures; name a folder with objects/ and photos/ with --material"),
        (["scenes", "--material", "nowhere"], "'nowhere' has 0 objects and 0 photographs"),
        (["scenes", "--material", "x", "--places"], "--places is for shapes; 'scenes' is read as scenes"),
        (["shapes", "--material", "x"], "--material is for scenes; 'shapes' is read as shapes"),
    ],
)
def test_mistakes_are_sentences(args: list[str], sentence: str, tmp_path: Path) -> None:
    done = tools.tool("make_shards", *args, "--out", tmp_path / "out", "--videos", "train=1", "--images", "")
    assert done.returncode == 2 and sentence in done.stderr and not (tmp_path / "out").exists()


def test_sizes_that_do_not_fit_are_refused(folder: Path) -> None:
    for wrong in ({"size": 33}, {"size": 8}, {"frames": DURATION}):
        with pytest.raises(UserError, match="size must be an even number"):
            Scenes(Material.of(folder), **wrong)


@pytest.mark.parametrize(("name", "processes"), [("objects/red.png", 1), ("photos/3.png", 2), ("films/film.mp4", 1)])
def test_a_picture_that_cannot_be_read_is_named(folder: Path, tmp_path: Path, name: str, processes: int) -> None:
    material = Path(shutil.copytree(folder, tmp_path / "material"))
    (material / "photos" / ".hidden.png").write_bytes(b"no picture")
    (material / name).parent.mkdir(exist_ok=True)
    (material / name).write_bytes(b"no picture")
    form = ["--size", SIZE, "--videos", "test=8", "--images", "train=8,val=8", "--processes", processes]
    done = tools.tool("make_shards", "scenes", "--material", material, "--out", tmp_path / "out", *form)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    assert f"error: '{material / name}': not a readable " in done.stderr
