"""Clips of real films, seen by a camera that moves: a window of the film slides, zooms or turns.

The label is the motion of this camera; what is in the picture moves the other way. The films have motions of their own,
and cuts. Training, validation and test use other parts of each film. A window is tilted at random, so that no frame
shows how the camera turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from PIL import Image

from scaleup.common.errors import UserError
from scaleup.data.decode import EXTENSIONS, decode_clip
from scaleup.data.generated import FPS, SPLITS, encode_mp4, encode_png
from scaleup.data.pictures import whole_view
from scaleup.data.shards import Sample

STEPS = {  # of the camera: to the right, down, logarithm of the window's side, and angle clockwise
    **{"left": (-1, 0, 0, 0), "right": (1, 0, 0, 0), "up": (0, -1, 0, 0), "down": (0, 1, 0, 0)},
    **{"in": (0, 0, -1, 0), "out": (0, 0, 1, 0), "turn left": (0, 0, 0, -1), "turn right": (0, 0, 0, 1)},
}
MOTIONS = list(STEPS)
PARTS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}  # of a film, in this order
GAP = 0.2  # seconds between two parts, so that no frame is in both
SIDE = (0.40, 0.50)  # of the window in the middle of a clip, as a share of the film's short side
TILT = 30  # degrees by which the window is tilted at most in the middle of a clip
TRAVEL = (0.20, 0.45)  # from the first frame to the last, in sides of the window
ZOOM = (0.35, 0.60)  # logarithm of the larger side over the smaller one
TURN = (20, 45)  # degrees from the first frame to the last
MARGIN = 0.96  # from the middle of a clip to the edges, in sides: no window reaches beyond them


def draw_path(rng: np.random.Generator, motion: str, shape: tuple[int, ...], frames: int) -> np.ndarray:
    """A window in every frame of a film of ``shape`` (H, W): its centre's column and row and its side, in pixels, and
    its angle in degrees clockwise, as (T, 4)."""
    side = rng.uniform(*SIDE) * min(shape)
    row, column = (rng.uniform(MARGIN * side, length - MARGIN * side) for length in shape)
    tilt = rng.uniform(-TILT, TILT)
    travel = rng.uniform(*TRAVEL) * side
    amounts = np.array([travel, travel, rng.uniform(*ZOOM), rng.uniform(*TURN)]) * STEPS[motion]
    right, down, zoom, turn = np.linspace(-0.5, 0.5, frames) * amounts[:, None]  # (T,) each
    angle = np.radians(tilt)  # the camera goes to its own right
    columns = column + right * np.cos(angle) - down * np.sin(angle)
    rows = row + right * np.sin(angle) + down * np.cos(angle)
    return np.stack([columns, rows, side * np.exp(zoom), tilt + turn], axis=1)


def cut_window(picture: np.ndarray, window: np.ndarray, size: int) -> np.ndarray:
    """A window of a picture (H, W, 3), a row of :func:`draw_path`, as (size, size, 3)."""
    column, row, side, degrees = window.tolist()
    angle = np.radians(degrees)
    cos, sin = np.cos(angle) * side / size, np.sin(angle) * side / size  # pixels of the picture for one of the result
    left, top = column - size / 2 * (cos - sin), row - size / 2 * (sin + cos)  # the corner
    matrix = (cos, -sin, left, sin, cos, top)
    image = Image.fromarray(picture).transform((size,) * 2, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(image)


@cache
def _read(film: Path) -> tuple[bytes, float]:
    """A film, and the seconds from its first frame to its last."""
    data = film.read_bytes()
    with av.open(BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = sum(packet.size > 0 for packet in container.demux(stream))
        return data, (frames - 1) / float(stream.average_rate or FPS)


@dataclass(frozen=True)
class Films:
    """Generates clips of the films of a folder.

    Args:
        size: pixels of a side, even.
        frames: frames of a clip, at FPS frames per second.

    Raises:
        UserError: there is no film, a film is too short for a clip from each of its parts, or a size is not allowed.
    """

    folder: Path
    seed: int = 0
    size: int = 112
    frames: int = 16

    def __post_init__(self) -> None:
        if self.size % 2 or self.size < 16 or self.frames < 2:
            raise UserError(
                f"size {self.size} and frames {self.frames}: size must be an even number from 16, frames at least 2"
            )
        if not self.films:
            raise UserError(f"'{self.folder}' has no film ({', '.join(EXTENSIONS['video'])})")
        for film in self.films:
            if (length := _read(film)[1]) < self._shortest:
                raise UserError(
                    f"'{film}' has {length:.1f} s; clips of {self.frames} frames for {', '.join(PARTS)} need "
                    f"{self._shortest:.1f} s"
                )

    @property
    def films(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*") if path.suffix[1:].lower() in EXTENSIONS["video"])

    @property
    def classes(self) -> dict[str, dict[str, list[str]]]:
        """By modality, the classes of each label."""
        film = {"film": [path.stem for path in self.films]}
        return {"video": film | {"motion": MOTIONS}, "image": film}

    @property
    def _seconds(self) -> float:
        """From the first frame of a clip to its last."""
        return (self.frames - 1) / FPS

    @property
    def _shortest(self) -> float:
        """Seconds that a film must have, for one clip in each part."""
        return len(PARTS) * self._seconds + (len(PARTS) - 1) * GAP

    def __call__(self, modality: str, split: str, number: int) -> Sample:
        """One sample as a file; it depends only on the films, the seed and the arguments."""
        video, paths = modality == "video", self.films
        rng = np.random.default_rng([self.seed, SPLITS.index(split), video, number])
        film, motion = int(rng.integers(len(paths))), int(rng.integers(len(MOTIONS)))
        pictures = self._clip(rng, paths[film], split)  # (T, H, W, 3)
        path = draw_path(rng, MOTIONS[motion], pictures.shape[1:3], self.frames)
        pairs = zip(pictures, path, strict=True)
        pixels = np.stack([cut_window(picture, window, self.size) for picture, window in pairs])
        key = f"{modality}-{split}-{self.seed}-{number:06d}"
        if not video:
            return Sample(key, "png", encode_png(pixels[0]), {"film": film})
        return Sample(key, "mp4", encode_mp4(pixels), {"film": film, "motion": motion})

    def _clip(self, rng: np.random.Generator, film: Path, split: str) -> np.ndarray:
        """A clip from a film's part for a split, at a random time: (T, H, W, 3), shrunk if a window has more pixels
        than a sample."""
        data, length = _read(film)
        room = length - self._shortest  # seconds by which clips can begin later
        begin = SPLITS.index(split) * (self._seconds + GAP) + room * rng.uniform(*PARTS[split])
        view = whole_view(round(self.size / SIDE[0]))
        clip = decode_clip(data, self.frames, FPS, begin / (length - self._seconds), view)  # (3, T, H, W)
        return clip.permute(1, 2, 3, 0).numpy()
