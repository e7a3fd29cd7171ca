"""Writes generated data: shard directories for training, validation and test, sample by sample."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image

from scaleup.common.files import new_directory
from scaleup.common.processes import parallel
from scaleup.data.pack import write_shards
from scaleup.data.shards import Sample, Shards

FPS = 15
CHUNK = 100  # samples that a process sends together
SPLITS = ("train", "val", "test")


class Generator(Protocol):
    """Makes one sample, as a file. The sample depends only on the arguments."""

    def __call__(self, modality: str, split: str, number: int) -> Sample: ...


def write_splits(
    out: str | Path,
    generate: Generator,
    classes: Mapping[str, Mapping[str, list[str]]],
    videos: Mapping[str, int],
    images: Mapping[str, int],
    overwrite: bool = False,
    processes: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Shards]:
    """Write the shard directories ``out/videos-train``, ``out/images-val`` and so on.

    The bytes do not depend on the number of processes.

    Args:
        classes: by modality, the classes of each label.
        videos, images: split (train, val, test) to number of samples.
        advance: called after every sample.

    Returns:
        The shard directories, by name.
    """
    sets = {f"videos-{split}": ("video", split, count) for split, count in videos.items()}
    sets |= {f"images-{split}": ("image", split, count) for split, count in images.items()}
    with new_directory(out, overwrite) as temporary:
        for name, (modality, split, count) in sets.items():
            chunks = [range(begin, min(begin + CHUNK, count)) for begin in range(0, count, CHUNK)]
            samples = chain.from_iterable(parallel(partial(_generate, generate, modality, split), chunks, processes))
            write_shards(_count(samples, advance), temporary / name, modality, dict(classes[modality]))
    return {name: Shards.open(Path(out) / name) for name in sets}


def _generate(generate: Generator, modality: str, split: str, numbers: range) -> list[Sample]:
    return [generate(modality, split, number) for number in numbers]


def _count(samples: Iterable[Sample], advance: Callable[[], None]) -> Iterator[Sample]:
    for sample in samples:
        yield sample
        advance()


def encode_mp4(pixels: np.ndarray) -> bytes:
    """uint8 (T, H, W, 3) as H.264."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"crf": "15", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        stream.thread_count = 1
        for picture in pixels:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
