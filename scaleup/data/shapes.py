"""Artificial data: small videos and images of moving shapes. The motion cannot be seen in a single frame.

A shape starts anywhere and wraps around at the edges. A size that grows or shrinks starts anywhere too, and wraps
around. So in every frame, position and size are uniformly distributed for every motion.

With *places*, scenes are harder. Each quarter of the frame wraps around by itself. One quarter has a shape, the other
three have dots with other motions. The label of a video is the motion of the shape together with its quarter. A single
frame shows only the quarter. The motion looks the same in every quarter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scaleup.common.errors import UserError
from scaleup.data.generated import SPLITS, encode_mp4, encode_png, write_splits
from scaleup.data.shards import Sample, Shards

SHAPES = ["circle", "ring", "square", "bar", "triangle", "star", "cross", "moon"]
DOT = len(SHAPES)
MOTIONS = ["left", "right", "up", "down", "grow", "shrink"]
PLACES = ["top left", "top right", "bottom left", "bottom right"]
PLACE_MOTIONS = [f"{motion} in the {place}" for place in PLACES for motion in MOTIONS]
CLASSES = {
    "video": {"shape": SHAPES, "motion": MOTIONS},
    "image": {
        "shape": SHAPES,
        "position": [f"row {row} column {column}" for row in range(4) for column in range(4)],
        "size": ["smallest", "small", "large", "largest"],
    },
}
RADIUS = (0.20, 0.40)  # from the centre to the outermost point, as a share of the frame
SPEED = (1 / 32, 2 / 32)  # per frame, as a share of the picture: one to two pixels of 32
CYCLE = (0.6 / 16, 1.0 / 16)  # per frame, as a share of the range from smallest to largest
_STEPS = [(0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, -1)]  # row, column and size, by motion


@dataclass(frozen=True)
class Scene:
    """Position and size of a shape in every frame."""

    shape: int
    motion: int
    row: np.ndarray  # (T,) of the centre, 0 to 1 down the frame
    column: np.ndarray  # (T,)
    size: np.ndarray  # (T,) 0 (smallest) to 1 (largest)

    @property
    def radius(self) -> np.ndarray:  # (T,) share of the frame
        return RADIUS[0] + (RADIUS[1] - RADIUS[0]) * self.size


def sample_scene(rng: np.random.Generator, frames: int) -> Scene:
    """A random shape with a random motion."""
    shape, motion = int(rng.integers(len(SHAPES))), int(rng.integers(len(MOTIONS)))
    start = rng.random(3)  # row, column, size
    rates = np.array([speed := rng.uniform(*SPEED), speed, rng.uniform(*CYCLE)])
    path = start + np.arange(frames)[:, None] * rates * _STEPS[motion]  # (T, 3)
    return Scene(shape, motion, *(path % 1.0).T)


def sample_places(rng: np.random.Generator, frames: int) -> tuple[list[Scene], int]:
    """A scene for each of ``PLACES``, in coordinates of its quarter, and the index of the one with the shape."""
    place = int(rng.integers(len(PLACES)))
    scenes = [sample_scene(rng, frames) for _ in PLACES]
    return [scene if index == place else replace(scene, shape=DOT) for index, scene in enumerate(scenes)], place


def draw_places(rng: np.random.Generator, size: int, frames: int) -> tuple[Scene, np.ndarray, int]:
    """The scene of the shape in coordinates of the whole frame, the pixels (T, size, size, 3), and the shape's
    place."""
    scenes, place = sample_places(rng, frames)
    quarters = [render(scene, size // 2, rng) for scene in scenes]
    pixels = np.concatenate([np.concatenate(quarters[row : row + 2], axis=2) for row in (0, 2)], axis=1)
    (row, column), scene = divmod(place, 2), scenes[place]
    return replace(scene, row=(row + scene.row) / 2, column=(column + scene.column) / 2), pixels, place


def render(scene: Scene, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw every frame of ``scene``: uint8 (T, size, size, 3)."""
    grid = (np.arange(size) + 0.5) / size
    dy = (grid[None, :, None] - scene.row[:, None, None] + 0.5) % 1.0 - 0.5  # (T, H, 1), on the torus
    dx = (grid[None, None, :] - scene.column[:, None, None] + 0.5) % 1.0 - 0.5  # (T, 1, W)
    angle = rng.uniform(-0.25, 0.25)
    radius = scene.radius[:, None, None]
    x = (dx * math.cos(angle) + dy * math.sin(angle)) / radius  # (T, H, W), in radii
    y = (dy * math.cos(angle) - dx * math.sin(angle)) / radius
    distance = _distance(list(OUTLINES)[scene.shape], x, y)
    cover = np.clip(0.5 - distance * radius * size, 0, 1)[..., None]  # (T, H, W, 1)
    ground = _texture(rng, grid[:, None], grid[None, :], 0.10)[None] + (base := rng.uniform(0.1, 0.5, 3))
    figure = _texture(rng, x / 2, y / 2, 0.05) + base + rng.uniform(0.3, 0.5) + rng.uniform(-0.1, 0.1, 3)  # lighter
    noise = rng.normal(0, 0.06, (*cover.shape[:3], 1))
    return (np.clip(ground + (figure - ground) * cover + noise, 0, 1) * 255 + 0.5).astype(np.uint8)


def _texture(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, amplitude: float) -> np.ndarray:
    """Smooth colour variation that repeats every 1 in x and y: (..., 3) around 0."""
    total = np.zeros(3)
    for fx, fy in rng.integers(-2, 3, (3, 2)):
        wave = np.sin(2 * math.pi * (fx * x + fy * y + rng.random()))
        total = total + wave[..., None] * rng.normal(0, amplitude / math.sqrt(3), 3)
    return total


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of ``shape``, negative inside, all in radii (exact near the outline)."""
    return OUTLINES[shape](np.hypot(x, y), x, y)


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _star(r: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    sector = math.pi / 5  # by symmetry, half of one of the five points
    turned = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    tip, notch = np.array([1.0, 0.0]), 0.42 * np.array([math.cos(sector), math.sin(sector)])
    normal = np.array([notch[1], tip[0] - notch[0]]) / math.hypot(notch[1], tip[0] - notch[0])
    return (r * np.cos(turned) - tip[0]) * normal[0] + r * np.sin(turned) * normal[1]


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {  # (radius, x, y) -> distance
    "circle": lambda r, x, y: r - 0.9,
    "ring": lambda r, x, y: np.abs(r - 0.72) - 0.23,
    "square": lambda r, x, y: _box(x, y, 0.75, 0.75),
    "bar": lambda r, x, y: _box(x, y, 0.97, 0.36),
    "triangle": lambda r, x, y: np.maximum(0.866 * np.abs(x) - 0.5 * y, y) - 0.5,
    "star": _star,
    "cross": lambda r, x, y: np.minimum(_box(x, y, 0.97, 0.28), _box(x, y, 0.28, 0.97)),
    "moon": lambda r, x, y: np.maximum(r - 0.95, 0.62 - np.hypot(x - 0.45, y)),
    "dot": lambda r, x, y: r - 0.25,  # moves in the other quarters; it is not a class
}


def make_sample(
    modality: str, seed: int, split: str, number: int, size: int, frames: int, places: bool = False
) -> Sample:
    """One sample as a file; it depends only on the arguments."""
    rng = np.random.default_rng([seed, SPLITS.index(split), modality == "video", number])
    frames = frames if modality == "video" else 1
    place_motion = {}
    if places:
        scene, pixels, place = draw_places(rng, size, frames)
        place_motion = {"place_motion": place * len(MOTIONS) + scene.motion}
    else:
        scene = sample_scene(rng, frames)
        pixels = render(scene, size, rng)
    key = f"{modality}-{split}-{seed}-{number:06d}"
    if modality == "video":
        return Sample(key, "mp4", encode_mp4(pixels), {"shape": scene.shape, "motion": scene.motion} | place_motion)
    position = int(scene.row[0] * 4) * 4 + int(scene.column[0] * 4)
    labels = {"shape": scene.shape, "position": position, "size": int(scene.size[0] * 4)}
    return Sample(key, "png", encode_png(pixels[0]), labels)


@dataclass(frozen=True)
class Shapes:
    """Generates moving shapes.

    Args:
        size: pixels of a side, even.
        places: harder scenes, in quarters of the frame; videos also have the label ``place_motion``.
    """

    seed: int = 0
    size: int = 32
    frames: int = 16
    places: bool = False

    def __post_init__(self) -> None:
        if self.size % 2 or self.size < 16 or self.frames < 1:
            raise UserError(
                f"size {self.size} and frames {self.frames}: size must be an even number from 16, frames at least 1"
            )

    def __call__(self, modality: str, split: str, number: int) -> Sample:
        return make_sample(modality, self.seed, split, number, self.size, self.frames, self.places)

    @property
    def classes(self) -> dict[str, dict[str, list[str]]]:
        """By modality, the classes of each label."""
        placed = {"place_motion": PLACE_MOTIONS} if self.places else {}
        return CLASSES | {"video": CLASSES["video"] | placed}


def make_shapes(
    out: str | Path,
    videos: Mapping[str, int],
    images: Mapping[str, int],
    seed: int = 0,
    size: int = 32,
    frames: int = 16,
    overwrite: bool = False,
    processes: int | None = None,
    advance: Callable[[], None] = lambda: None,
    places: bool = False,
) -> dict[str, Shards]:
    """Write shapes, see :class:`Shapes` and :func:`scaleup.data.generated.write_splits`."""
    shapes = Shapes(seed, size, frames, places)
    return write_splits(out, shapes, shapes.classes, videos, images, overwrite, processes, advance)
