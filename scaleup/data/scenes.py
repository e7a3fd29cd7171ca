"""Generated data on real pictures: cut-out objects that move over photographs, while the camera may pan.

The material is a folder with ``objects/`` (pictures with transparency; the name of a file is its class), ``photos/``,
and perhaps ``films/``. Training, validation and test use different photographs. Half of the test videos have a film
behind the object, if there are films.

An object starts anywhere and wraps around at the edges; its size and its angle start anywhere too. So no single frame
shows the motion. What is behind it moves as the camera pans (label ``camera``), whatever the object does. An event
takes at most four frames, at a random time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from scaleup.common.errors import UserError
from scaleup.data.decode import EXTENSIONS, BadSample, decode_clip, failure_reason
from scaleup.data.generated import FPS, SPLITS, encode_mp4, encode_png
from scaleup.data.shapes import PLACES
from scaleup.data.shards import Sample
from scaleup.data.storage import hidden

MOTIONS = ["left", "right", "up", "down", "turn left", "turn right", "grow", "shrink"]
EVENTS = ["none", "hop", "blink", "shake"]
PLACE_MOTIONS = [f"{motion} in the {place}" for place in PLACES for motion in MOTIONS]
SHIFTS = {
    "still": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}  # x and y
STEPS = {  # row, column, size and angle, by motion
    **{"left": (0, -1, 0, 0), "right": (0, 1, 0, 0), "up": (-1, 0, 0, 0), "down": (1, 0, 0, 0)},
    **{"turn left": (0, 0, 0, 1), "turn right": (0, 0, 0, -1), "grow": (0, 0, 1, 0), "shrink": (0, 0, -1, 0)},
}
SPEED = (1 / 48, 2 / 48)  # per frame, as a share of the frame
CYCLE = (0.4 / 16, 0.8 / 16)  # per frame, as a share of the range from smallest to largest
TURN = (0.5 / 16, 1.0 / 16)  # per frame, as a share of a full turn
SIDE = (0.25, 0.50)  # of an object, as a share of the frame
PAN = (0.15 / 16, 0.4 / 16)  # per frame, as a share of the frame
DURATION = 4  # most frames of an event
HOP = 0.12  # height of a hop and width of a shake, as a share of the frame
PHOTO = 448  # short side of a photograph in memory, pixels


@dataclass(frozen=True)
class Material:
    """The pictures of a material folder."""

    objects: dict[str, Path]  # by class
    photos: dict[str, list[Path]]  # by split
    films: list[Path]

    @classmethod
    def of(cls, folder: str | Path) -> Material:
        """List the pictures of a folder.

        Raises:
            UserError: there is no folder, fewer than two objects, or fewer photographs than splits.
        """
        folder = Path(folder)
        objects = {path.stem: path for path in _files(folder / "objects", "image")}
        photos = _files(folder / "photos", "image")
        if len(objects) < 2 or len(photos) < len(SPLITS):
            raise UserError(
                f"'{folder}' has {len(objects)} objects and {len(photos)} photographs; scenes need two pictures in "
                f"objects/ and {len(SPLITS)} in photos/"
            )
        by_split = {split: photos[index :: len(SPLITS) + 1] for index, split in enumerate(SPLITS)}
        by_split["train"] += photos[len(SPLITS) :: len(SPLITS) + 1]  # half of all, a quarter each for val and test
        return cls(objects, by_split, _files(folder / "films", "video"))


def _files(folder: Path, modality: str) -> list[Path]:
    files = (path for path in folder.glob("*") if path.is_file() and not hidden(path.name))
    return sorted(path for path in files if path.suffix[1:].lower() in EXTENSIONS[modality])


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """UserError that names the file if it cannot be read inside."""
    try:
        yield
    except Exception as error:  # Pillow has many
        reason = str(error) if isinstance(error, BadSample) else failure_reason("image", error)
        raise UserError(f"'{path}': {reason}") from error


@dataclass(frozen=True)
class Track:
    """The place, size and angle of an object in every frame."""

    row: np.ndarray  # (T,) of the centre, 0 to 1 down the frame
    column: np.ndarray  # (T,)
    side: np.ndarray  # (T,) share of the frame
    angle: np.ndarray  # (T,) degrees
    shown: np.ndarray  # (T,) bool


def draw_track(rng: np.random.Generator, motion: str, event: str, frames: int) -> Track:
    """A random track of an object with this motion and event."""
    rates = np.array([speed := rng.uniform(*SPEED), speed, rng.uniform(*CYCLE), rng.uniform(*TURN)])
    path = rng.random(4) + np.arange(frames)[:, None] * rates * STEPS[motion]  # (T, 4)
    begin, length = int(rng.integers(max(1, frames - DURATION))), int(rng.integers(2, DURATION + 1))
    time = np.arange(frames) - begin
    inside = (time >= 0) & (time < length)
    if event == "hop":
        path[:, 0] -= HOP * np.where(inside, np.sin((time + 0.5) / length * math.pi), 0)
    if event == "shake":
        path[:, 1] += HOP * np.where(inside, (-1.0) ** time, 0)
    row, column, size, angle = (path % 1.0).T
    shown = ~inside if event == "blink" else np.ones(frames, bool)
    return Track(row, column, SIDE[0] + (SIDE[1] - SIDE[0]) * size, 360 * angle, shown)


def pan_windows(rng: np.random.Generator, pictures: list[Image.Image], pan: str, size: int) -> list[Image.Image]:
    """A square window of each picture, all pictures of one size; what they show moves as ``pan`` says."""
    offsets = -np.arange(len(pictures))[:, None] * rng.uniform(*PAN) * SHIFTS[pan]  # (T, 2) x and y, in windows
    offsets -= offsets.min(0)
    room = np.array(pictures[0].size)
    side = rng.uniform(0.5, 1.0) * (room / (1 + offsets.max(0))).min()
    corners = rng.random(2) * (room - side * (1 + offsets.max(0))) + side * offsets
    boxes = np.clip(np.concatenate([corners, corners + side], axis=1), 0, [*room, *room])
    how = (size, size), Image.Resampling.BILINEAR
    return [picture.resize(*how, tuple(box), reducing_gap=2.0) for picture, box in zip(pictures, boxes, strict=True)]


def read_film(film: Path, start: float, frames: int) -> list[Image.Image]:
    """Frames of a film; ``start`` is a share of what may come before them, from 0 to 1."""
    with _named(film):
        clip = decode_clip(_bytes(film), frames, FPS, start=start)  # (3, T, H, W)
    return [Image.fromarray(picture) for picture in clip.permute(1, 2, 3, 0).numpy()]


def paste(picture: Image.Image, object: Image.Image, track: Track, frame: int) -> None:
    """Paste an object into the picture of a frame. What leaves one edge enters at the opposite one."""
    size = picture.width
    side = max(2, round(track.side[frame] * size))
    turned = object.resize((side, side), Image.Resampling.LANCZOS)
    turned = turned.rotate(track.angle[frame], Image.Resampling.BICUBIC)
    left, top = (round(centre * size - side / 2) for centre in (track.column[frame], track.row[frame]))
    for dx in (-size, 0, size):
        for dy in (-size, 0, size):
            picture.paste(turned, (left + dx, top + dy), turned)


@cache
def _bytes(path: Path) -> bytes:
    return path.read_bytes()


@cache
def read_photo(path: Path) -> Image.Image:
    """A photograph with a short side of PHOTO pixels."""
    with _named(path), Image.open(path) as image:
        image.draft("RGB", (PHOTO, PHOTO))  # a JPEG is decoded at the next larger of a few sizes
        width, height = (max(PHOTO, round(length * PHOTO / min(image.size))) for length in image.size)
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


@cache
def read_object(path: Path) -> Image.Image:
    """A cut-out object, square, with transparency."""
    with _named(path), Image.open(path) as image:
        object = image.convert("RGBA")
        square = Image.new("RGBA", (max(object.size),) * 2)
        square.paste(object, tuple((square.width - length) // 2 for length in object.size))  # type: ignore[arg-type]
        return square


@dataclass(frozen=True)
class Scenes:
    """Generates scenes of the material.

    Args:
        size: pixels of a side, even.
    """

    material: Material
    seed: int = 0
    size: int = 112
    frames: int = 16

    def __post_init__(self) -> None:
        if self.size % 2 or self.size < 16 or self.frames <= DURATION:
            raise UserError(
                f"size {self.size} and frames {self.frames}: size must be an even number from 16, frames more than "
                f"{DURATION}"
            )

    @property
    def classes(self) -> dict[str, dict[str, list[str]]]:
        """By modality, the classes of each label."""
        objects = {"object": list(self.material.objects)}
        moving = {"motion": MOTIONS, "event": EVENTS, "camera": [*SHIFTS], "place_motion": PLACE_MOTIONS}
        return {"video": objects | moving, "image": objects}

    def __call__(self, modality: str, split: str, number: int) -> Sample:
        """One sample as a file; it depends only on the material, the seed and the arguments."""
        video, names = modality == "video", list(self.material.objects)
        rng = np.random.default_rng([self.seed, SPLITS.index(split), video, number])
        kind, motion, event, camera = (int(rng.integers(len(each))) for each in (names, MOTIONS, EVENTS, SHIFTS))
        track = draw_track(rng, MOTIONS[motion], EVENTS[event if video else 0], self.frames)
        pictures = pan_windows(rng, self._background(rng, video, split), list(SHIFTS)[camera], self.size)
        for frame, picture in enumerate(pictures):
            if track.shown[frame]:
                paste(picture, read_object(self.material.objects[names[kind]]), track, frame)
        key, pixels = f"{modality}-{split}-{self.seed}-{number:06d}", np.stack([*map(np.asarray, pictures)])
        if not video:
            return Sample(key, "png", encode_png(pixels[0]), {"object": kind})
        place = int(track.row[0] * 2) * 2 + int(track.column[0] * 2)
        labels = {"object": kind, "motion": motion, "event": event, "camera": camera}
        return Sample(key, "mp4", encode_mp4(pixels), labels | {"place_motion": place * len(MOTIONS) + motion})

    def _background(self, rng: np.random.Generator, video: bool, split: str) -> list[Image.Image]:
        """What is behind the object in each frame: a photograph, or for half of the test videos a film."""
        films, photos = self.material.films, self.material.photos[split]
        if video and split == "test" and films and rng.random() < 0.5:
            return read_film(films[int(rng.integers(len(films)))], rng.random(), self.frames)
        return [read_photo(photos[int(rng.integers(len(photos)))])] * (self.frames if video else 1)
