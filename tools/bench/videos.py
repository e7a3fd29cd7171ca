"""Artificial videos of the size and format of Kinetics."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np

from scaleup.data.encode import STEADY, Encoding, encoded
from scaleup.data.pack import write_shards
from scaleup.data.shards import Sample, Shards

FPS, SECONDS, HEIGHT, WIDTH = 30, 10, 256, 340


def videos_in(path: Path, videos: int, copied: bool = False) -> Shards:
    """Shards at ``path``, which are made if they do not exist.

    Args:
        videos: how many.
        copied: keep the videos as they are, instead of re-encoding them.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        encoding = Encoding(again=not copied)
        packed = (encoded(video(number), "mp4", "video", encoding)[1] for number in range(videos))
        samples = (Sample(f"video{number:04d}", "mp4", data, {"label": 0}) for number, data in enumerate(packed))
        write_shards(samples, path, "video", {"label": ["any"]}, per_shard=max(1, videos // 4))
    return Shards.open(path)


def video(seed: int) -> bytes:
    """A moving picture with noise: H.264 with x264's defaults, half a megabyte, as in Kinetics."""
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    ground = rng.integers(0, 255, (HEIGHT // 8 + 40, WIDTH // 8 + 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("libx264", rate=FPS, options={"crf": "23", "x264-params": STEADY})
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = HEIGHT, WIDTH, "yuv420p", 1
        for i in range(FPS * SECONDS):
            picture = ground[i : i + HEIGHT, 2 * i : 2 * i + WIDTH].astype(np.int16)
            noisy = np.clip(picture + rng.integers(-12, 13, picture.shape), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(noisy, format="rgb24")
            file.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))  # several threads give other bytes
        file.mux(stream.encode(None))
    return buffer.getvalue()
