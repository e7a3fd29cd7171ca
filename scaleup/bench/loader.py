"""Clips per second of the loader against a plain PyAV loop, decord, and webdataset with PyAV, over the same shards."""

from __future__ import annotations

import importlib.util
import io
import json
import multiprocessing
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from scaleup import recipe
from scaleup.bench.turns import alternated, compared, goal, machine, timed
from scaleup.data.loader import train_loader
from scaleup.data.shards import Sample, Shards, write_shards

INPUT = recipe.Input(frames=32, size=[224, 224], fps=15.0)
FPS, SECONDS, HEIGHT, WIDTH = 30, 10, 256, 340  # of the videos, which are as those of Kinetics
AUGMENT = recipe.Augment(crop_scale=[0.25, 1.0], flip=True)
BATCH = 4


def loader(
    directory: str | None = None,
    videos: int = 24,
    clips: int = 96,
    workers: int = 2,
    repeats: int = 5,
    samples: int = 10_000,
) -> dict[str, Any]:
    """Each side fills batches of random clips with the same number of processes, in turns with ours.

    Args:
        directory: where the shards are made, or used again; by default a temporary one.
        videos: how many different ones.
        clips: how many a turn loads; processes start anew in every turn.
        samples: how many are loaded to see whether memory grows; 0: none.
    """
    before = machine()
    with tempfile.TemporaryDirectory() as temporary:
        shards = videos_in(Path(directory or temporary) / "videos", videos)
        sides: dict[str, Callable[[Shards, int], Iterable[Any]]] = {"pyav": _pyav, "webdataset": _webdataset}
        if importlib.util.find_spec("decord"):
            sides["decord"] = _decord
        ours = timed(lambda: _taken(_ours(shards, workers), clips))
        rows: list[dict[str, Any]] = [_memory(shards, workers, samples)] if samples else []
        for name, side in sides.items():
            other = timed(lambda side=side: _taken(side(shards, workers), clips))  # type: ignore[misc]
            row = compared(alternated(ours, other, repeats))
            speeds = {
                "clips_per_second": clips / row["seconds"],
                "other_clips_per_second": clips / row["other_seconds"],
            }
            rows.append({"side": name, **row, **speeds})
        slowest = max(row["ratio"] for row in rows if "ratio" in row)
        goals = [goal("seconds of a clip, over the fastest other side's", slowest, 0.5)]
        goals += [goal("growth of memory, as a share", row["growth"], 0.05) for row in rows if "growth" in row]
    return {"machine": before | {"workers": workers, "decord": "decord" in sides}, "rows": rows, "goals": goals}


def videos_in(path: Path, videos: int) -> Shards:
    """Shards of so many videos as Kinetics has them; those that stand there already."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = (Sample(f"video{number:04d}", "mp4", video(number), {"label": 0}) for number in range(videos))
        write_shards(made, path, "video", {"label": ["any"]}, per_shard=max(1, videos // 4))
    return Shards.open(path)


def video(seed: int) -> bytes:
    """A picture that slides under noise: H.264 as x264 makes it by default, half a megabyte, as in Kinetics."""
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    ground = rng.integers(0, 255, (HEIGHT // 8 + 40, WIDTH // 8 + 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(buffer, "w", format="mp4") as file:
        stream: Any = file.add_stream("libx264", rate=FPS, options={"crf": "23"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for i in range(FPS * SECONDS):
            picture = ground[i : i + HEIGHT, 2 * i : 2 * i + WIDTH].astype(np.int16)
            noisy = np.clip(picture + rng.integers(-12, 13, picture.shape), 0, 255).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def _taken(batches: Iterable[Any], clips: int) -> None:
    """Load so many clips, and see that they are clips."""
    for batch in islice(batches, clips // BATCH):
        pixels = getattr(batch, "pixels", batch)
        assert pixels.shape == (BATCH, 3, INPUT.frames, *INPUT.size) and pixels.dtype == torch.uint8, pixels.shape


def _ours(shards: Shards, workers: int) -> Iterator[Any]:
    videos = recipe.Dataset(str(shards.path), {"label": "label"}, augment=AUGMENT)
    return train_loader(recipe.Data({"videos": videos}, batch=BATCH, workers=workers), INPUT, 0, 1 << 30)


def _crop() -> v2.Transform:
    crop = v2.RandomResizedCrop(INPUT.size, scale=(0.25, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def _begin(source: random.Random) -> float:
    """The second at which a random clip begins."""
    return source.random() * (SECONDS - (INPUT.frames + 1) / INPUT.fps)


class _Clips(Dataset):
    """Endless samples of the shards, each read at its offset, decoded by ``frames``, then cropped by torchvision."""

    def __init__(self, shards: Shards, frames: Callable[[bytes, float], np.ndarray]) -> None:
        self.shards, self.frames, self.crop = shards, frames, _crop()

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> Tensor:
        frames = self.frames(self.shards.read(i % len(self.shards)).media, _begin(random.Random(i)))  # (T, H, W, 3)
        return self.crop(torch.from_numpy(frames).permute(0, 3, 1, 2)).transpose(0, 1)  # (3, T, h, w)


def _pyav(shards: Shards, workers: int) -> Iterable[Tensor]:
    return DataLoader(_Clips(shards, sought_frames), BATCH, num_workers=workers)


def sought_frames(data: bytes, begin: float) -> np.ndarray:
    """Seek, decode every frame on the way, and convert those of the clip: (T, H, W, 3)."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        container.seek(int(begin / stream.time_base), stream=stream)  # type: ignore[operator]
        return _every_other(container.decode(stream), begin)


def _every_other(frames: Iterator[av.VideoFrame], begin: float) -> np.ndarray:
    """``INPUT.frames`` at ``INPUT.fps`` from the first frame that is not before ``begin``."""
    after = (frame for frame in frames if frame.time >= begin)  # type: ignore[operator]
    wanted = islice(after, 0, INPUT.frames * 2, round(FPS / INPUT.fps))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in wanted])


def _decord(shards: Shards, workers: int) -> Iterable[Tensor]:
    return DataLoader(_Clips(shards, decord_frames), BATCH, num_workers=workers)


def decord_frames(data: bytes, begin: float) -> np.ndarray:
    import decord

    reader, step = decord.VideoReader(io.BytesIO(data), num_threads=1), round(FPS / INPUT.fps)
    first = round(begin * FPS)
    return reader.get_batch(list(range(first, first + INPUT.frames * step, step))).asnumpy()


def _webdataset(shards: Shards, workers: int) -> Iterable[Tensor]:
    """Tars read in sequence, each video decoded from its beginning to the end of its clip."""
    crop, source = _crop(), random.Random(0)

    def clip(sample: dict[str, bytes]) -> Tensor:
        json.loads(sample["json"])
        with av.open(io.BytesIO(sample["mp4"])) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.thread_count = "NONE", 1
            frames = _every_other(container.decode(stream), _begin(source))
        return crop(torch.from_numpy(frames).permute(0, 3, 1, 2)).transpose(0, 1)

    tars = [str(Path(shards.path) / name) for name in shards.files]
    samples = webdataset.WebDataset(tars, resampled=True, shardshuffle=False).shuffle(16).map(clip)
    return DataLoader(samples.batched(BATCH, collation_fn=torch.stack), None, num_workers=workers)


def _memory(shards: Shards, workers: int, samples: int) -> dict[str, Any]:
    """Resident bytes of this process and the loader's after a tenth of the samples and after all of them."""
    batches, tenth = _ours(shards, workers), samples // BATCH // 10
    sizes = []
    for _ in range(10):
        for _ in range(tenth):
            next(batches)
        sizes.append(_resident())  # while the processes of the loader live
    early, late = sizes[0], sizes[-1]
    return {"side": "memory", "samples": samples, "early_bytes": early, "late_bytes": late, "growth": late / early - 1}


def _resident() -> int:
    pids = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * 4096
