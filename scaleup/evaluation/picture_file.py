"""Pictures, one after the other, as a file: a video, or one of them as an image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from scaleup.errors import UserError


def refuse_name(path: str | Path) -> None:
    """UserError where :func:`write` does not know how to write a file of this name, or has no directory for it."""
    if Path(path).suffix not in (".mp4", ".png"):
        raise UserError(f"an overlay is written as .mp4 or .png, not {str(path)!r}")
    if not Path(path).parent.is_dir():
        raise UserError(
            f"the overlay {str(path)!r} cannot be written: there is no directory {str(Path(path).parent)!r}"
        )


def write(clips: Iterable[np.ndarray], path: str | Path, fps: float) -> None:
    """Write pictures (T, h, w, 3), clip after clip, as a video (.mp4), or the middle one of the first as a .png."""
    refuse_name(path)
    half = Path(path).with_name(f".half-{Path(path).name}")
    try:
        if half.suffix == ".png":
            first = next(iter(clips))
            Image.fromarray(first[len(first) // 2]).save(half)
        else:
            _encode(clips, half, fps)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _encode(clips: Iterable[np.ndarray], path: Path, fps: float) -> None:
    """H.264 wants even sides: an odd one loses a row or a column."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "18"})
        for pictures in clips:
            height, width = (side - side % 2 for side in pictures.shape[1:3])
            if not stream.codec_context.is_open:
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for picture in pictures[:, :height, :width]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode())
