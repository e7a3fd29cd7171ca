"""Clips of films under a camera that moves, on a film whose colours say where and when each pixel is."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from real.films import MOTIONS, PARTS, TRAVEL, TURN, ZOOM, Films
from scaleup.common.errors import UserError
from scaleup.data.decode import decode_clip, decode_image
from scaleup.data.generated import FPS, encode_mp4, write_splits

SIZE, FRAMES, LENGTH = 32, 6, 60
HEIGHT, WIDTH = 120, 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film whose red is the column of a pixel, green its row, and blue the number of the frame; and its negative."""
    folder = tmp_path_factory.mktemp("films")
    pixels = np.zeros((LENGTH, HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(WIDTH), np.arange(HEIGHT)[:, None]
    pixels[..., 2] = 4 * np.arange(LENGTH)[:, None, None]
    (folder / "upright.mp4").write_bytes(encode_mp4(pixels))
    (folder / "inverted.avi").write_bytes(encode_mp4(255 - pixels))
    (folder / "notes.txt").write_text("no film")
    return folder


def fitted(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centre (T, 2) of each frame in columns and rows of the film, and the film's steps (T, 2, 2) for a step to the
    right and down in the clip, by least squares over all pixels of (3, T, H, W)."""
    down, right = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    design = np.stack([np.ones_like(right), right, down], axis=-1).reshape(-1, 3)
    values = clip[:2].astype(float).reshape(2, clip.shape[1], -1)  # column and row
    weights = np.linalg.lstsq(design, values.reshape(-1, SIZE * SIZE).T, rcond=None)[0].reshape(3, 2, -1)
    return weights[0].T, weights[1:].transpose(2, 0, 1)


def clip_of(films: Films, split: str, number: int) -> tuple[np.ndarray, dict[str, int]]:
    """The pixels (3, T, H, W) of a clip, of which negatives are inverted back, and its labels."""
    sample = films("video", split, number)
    clip = decode_clip(sample.media, FRAMES, FPS).numpy()
    return clip if sample.labels["film"] else 255 - clip, sample.labels


def test_the_camera_moves_as_the_label_says(folder: Path) -> None:
    """The window of each frame is fitted to the colours, which say where it is."""
    films, seen = Films(folder, size=SIZE, frames=FRAMES), Counter[str]()
    for number in range(40):
        clip, labels = clip_of(films, "train", number)
        centres, steps = fitted(clip)
        motion = MOTIONS[labels["motion"]]
        seen[motion] += 1
        side = np.linalg.norm(steps[:, 0], axis=-1) * SIZE  # (T,) in pixels of the film
        angle = np.unwrap(np.arctan2(steps[:, 0, 1], steps[:, 0, 0]))
        way = (centres[-1] - centres[0]) @ np.linalg.inv(steps.mean(0)) / SIZE  # right and down, in windows
        expected = np.array({"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0)))
        zoom, turn = np.log(side[-1] / side[0]), np.degrees(angle[-1] - angle[0])
        assert np.abs(way - expected * np.clip(way @ expected, *TRAVEL)).max() < 0.04, (motion, way)
        assert abs(zoom - {"in": -1, "out": 1}.get(motion, 0) * np.clip(abs(zoom), *ZOOM)) < 0.08, (motion, zoom)
        assert abs(turn - {"turn left": -1, "turn right": 1}.get(motion, 0) * np.clip(abs(turn), *TURN)) < 4, motion
        corners = centres[:, None] + np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * SIZE / 2 @ steps
        assert (corners > -3).all() and (corners < np.array([WIDTH, HEIGHT]) + 3).all()
    assert len(seen) == len(MOTIONS)


def test_no_frame_shows_how_the_camera_turns(folder: Path) -> None:
    films, first = Films(folder, size=SIZE, frames=FRAMES), dict[str, list[float]]()
    for number in range(48):
        clip, labels = clip_of(films, "train", number)
        if "turn" in (motion := MOTIONS[labels["motion"]]):
            steps = fitted(clip)[1][0, 0]
            first.setdefault(motion, []).append(float(np.degrees(np.arctan2(steps[1], steps[0]))))
    assert all(min(angles) < -5 and max(angles) > 5 for angles in first.values()), first


def test_splits_are_other_parts_of_a_film(folder: Path) -> None:
    films, frames = Films(folder, size=SIZE, frames=FRAMES), dict[str, np.ndarray]()
    for split in PARTS:
        blues = [np.median(clip_of(films, split, number)[0][2], axis=(1, 2)) for number in range(20)]
        frames[split] = np.rint(np.concatenate(blues) / 4).astype(int)
        assert all(np.ptp(blue) >= 4 * (FRAMES - 1) - 4 for blue in blues), "the film stands still"
    assert frames["train"].max() < frames["val"].min() and frames["val"].max() < frames["test"].min()
    assert frames["train"].min() <= 3 and frames["test"].max() >= LENGTH - 4  # all of the film is used
    assert np.ptp(frames["train"]) > np.ptp(frames["test"]) > np.ptp(frames["val"])


def test_a_sample_depends_only_on_its_arguments(folder: Path, tmp_path: Path) -> None:
    films = Films(folder, size=SIZE, frames=FRAMES)
    for modality in ("video", "image"):
        sample = films(modality, "val", 5)
        assert sample == Films(folder, size=SIZE, frames=FRAMES)(modality, "val", 5)
        assert sample.media != films(modality, "val", 6).media
        assert sample.media != Films(folder, 1, SIZE, FRAMES)(modality, "val", 5).media
    assert films.classes["video"] == {"film": ["inverted", "upright"], "motion": MOTIONS}
    shards = write_splits(tmp_path / "out", films, films.classes, {"val": 6}, {"val": 1}, processes=1)
    assert shards["videos-val"].read(5) == films("video", "val", 5)
    image = decode_image(shards["images-val"].read(0).media)
    assert image.shape == (3, SIZE, SIZE) and shards["images-val"].classes == {"film": ["inverted", "upright"]}


def test_details_are_seen_though_films_are_shrunk(tmp_path: Path) -> None:
    """Stripes of 4 pixels, of which a window has at least 48: black and white in a sample of 32."""
    stripes = np.broadcast_to((np.arange(WIDTH) // 4 % 2 * 255).astype(np.uint8)[:, None], (LENGTH, HEIGHT, WIDTH, 3))
    (tmp_path / "a.mp4").write_bytes(encode_mp4(stripes))
    films = Films(tmp_path, size=SIZE, frames=FRAMES)
    deviations = [clip_of(films, "train", number)[0].std() for number in range(4)]
    assert min(deviations) > 70, deviations  # of 127


def test_mistakes_are_sentences(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="size must be an even number"):
        Films(folder, size=33)
    with pytest.raises(UserError, match=r"inverted.avi' has 3.9 s; clips of 30 frames for train, val, test need 6.2 s"):
        Films(folder, frames=30)
    with pytest.raises(UserError, match="has no film"):
        Films(tmp_path)
