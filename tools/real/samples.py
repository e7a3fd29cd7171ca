"""A picture of what the models see: frames of a scene and of a clip of a film, out of material that may be shown."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from real.emoji import draw_animals
from real.films import Films
from real.material import Material
from scaleup.data.decode import decode_clip
from scaleup.data.generated import FPS
from scaleup.data.scenes import Material as Pictures
from scaleup.data.scenes import Scenes

PHOTOS = ("Fossa_by_Jasper_Roks.jpg", "Infinite-Sea_by_Aury88.jpg", "Kleiber_by_Lukas_Baubkus.jpg")  # CC BY-SA 3.0
FILM = "bigbuckbunny.mp4"  # CC BY 3.0, Blender Foundation
FRAMES, SHOWN, GAP = 16, 8, 4  # of a clip; of these in the picture; pixels between two
SCENES, CLIPS = (1, 5), (2,)  # numbers of test samples


def draw_samples(material: Material, path: Path) -> None:
    """Write the picture, a row for each sample."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        draw_animals(material.emoji, work / "objects")
        for name, files in (("photos", [material.photos / name for name in PHOTOS]), ("film", [material.films / FILM])):
            (work / name).mkdir()
            for file in files:
                (work / name / file.name).symlink_to(file.resolve())
        makers: list[tuple[Scenes | Films, tuple[int, ...]]]
        makers = [(Scenes(Pictures.of(work)), SCENES), (Films(work / "film"), CLIPS)]
        samples = [make("video", "test", number) for make, numbers in makers for number in numbers]
    rows = [decode_clip(sample.media, FRAMES, FPS)[:, :: FRAMES // SHOWN].permute(1, 2, 3, 0) for sample in samples]
    Image.fromarray(np.concatenate([_row([*map(np.asarray, row)]) for row in rows])).save(path, quality=85)


def _row(frames: list[np.ndarray]) -> np.ndarray:
    """Frames (H, W, 3) side by side, on white, with room below."""
    return np.concatenate([np.pad(each, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for each in frames], axis=1)
