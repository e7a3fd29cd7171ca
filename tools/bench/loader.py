"""Clips per second of the loader against a plain PyAV loop, decord, and webdataset with PyAV, over the same shards."""

from __future__ import annotations

import importlib.util
import io
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import av
import numpy as np
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bench import videos
from bench.measure import Figures, alternated, compared, goal, machine, measured
from scaleup.config import schema
from scaleup.data.decode import shown_frames
from scaleup.data.loader import train_loader
from scaleup.data.shards import Shards

INPUT = schema.Input(frames=32, size=[224, 224], fps=15.0)
AUGMENT = schema.Augment(crop_scale=[0.25, 1.0], flip=True)
BATCH = 4
Side = Callable[[Shards, int], Iterable[Any]]  # of so many processes, endless batches


def loader(
    directory: str | None = None,
    count: int = 24,
    clips: int = 96,
    workers: int = 2,
    repeats: int = 5,
    samples: int = 10_000,
    copied: bool = False,
) -> Figures:
    """Each side fills batches of random clips with the same number of processes, in turns with ours.

    ``decode_only`` decodes the frames that ours needs and does nothing with them.

    Args:
        directory: where the shards are made, or used again; by default a temporary one.
        count: how many different videos.
        clips: how many a turn loads; processes start anew in every turn.
        samples: how many are loaded to see whether memory grows; 0: none.
        copied: videos with x264's defaults, in place of those that make_shards.py --reencode makes of them.
    """
    before = machine(workers=workers, videos="copied" if copied else "re-encoded")
    with tempfile.TemporaryDirectory() as temporary:
        shards = videos.videos_in(Path(directory or temporary) / ("copied" if copied else "videos"), count, copied)
        sides: dict[str, Side] = {"pyav": _pyav, "webdataset": _webdataset}
        if importlib.util.find_spec("decord"):
            sides["decord"] = _decord
        memory = [_memory(shards, workers, samples)] if samples else []
        ours = partial(_cost, _taken, _ours, shards, workers, clips)
        others = {name: partial(_cost, _taken, side, shards, workers, clips) for name, side in sides.items()}
        others["decode_only"] = partial(_cost, _only_decoded, shards, workers, clips)
        rows = {name: _compared(alternated(ours, other, repeats, what=name)) for name, other in others.items()}
    speeds = {"ours": clips / median(row["seconds"] for row in rows.values()), "decord": None}
    speeds |= {name: clips / row["other_seconds"] for name, row in rows.items()}
    goals = [goal("seconds of a clip, over the fastest other side's", max(rows[name]["ratio"] for name in sides), 0.5)]
    goals += [goal("growth of memory, as a share", row["growth"], 0.05) for row in memory]
    all_rows = [*memory, *({"side": name, **row} for name, row in rows.items())]
    return measured(before, all_rows, goals, clips_per_second=speeds)


class Cost(NamedTuple):
    """What a turn took: wall seconds, and those that processors worked for it, which others do not lengthen."""

    seconds: float
    cpu: float


def _cost(work: Callable[..., None], *arguments: Any) -> Cost:
    """Of ``work``, whose processes have ended with it."""
    began, before = time.perf_counter(), sum(os.times()[:4])
    work(*arguments)
    return Cost(time.perf_counter() - began, sum(os.times()[:4]) - before)


def _compared(turns: list[tuple[Cost, Cost]]) -> dict[str, float]:
    cpu = compared([(ours.cpu, other.cpu) for ours, other in turns])
    return compared([(ours.seconds, other.seconds) for ours, other in turns]) | {"cpu_ratio": cpu["ratio"]}


def _taken(side: Side, shards: Shards, workers: int, clips: int) -> None:
    """Load so many clips, and see that they are clips."""
    for batch in islice(side(shards, workers), clips // BATCH):
        pixels = getattr(batch, "pixels", batch)
        assert pixels.shape == (BATCH, 3, INPUT.frames, *INPUT.size) and pixels.dtype == torch.uint8, pixels.shape


def _ours(shards: Shards, workers: int) -> Iterator[Any]:
    dataset = schema.Dataset(str(shards.path), {"label": "label"}, augment=AUGMENT)
    return train_loader(schema.Data({"videos": dataset}, batch=BATCH, workers=workers), INPUT, 0, 1 << 30)


def _crop() -> v2.Transform:
    crop = v2.RandomResizedCrop(INPUT.size, scale=(0.25, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


def _begin(source: random.Random) -> float:
    """The second at which a random clip begins."""
    return source.random() * (videos.SECONDS - (INPUT.frames + 1) / INPUT.fps)


class _Endless(Dataset):
    """What ``made`` makes of the samples of the shards, each read at its offset, and of the second a clip begins at."""

    def __init__(self, shards: Shards, made: Callable[[bytes, float], Any]) -> None:
        self.shards, self.made = shards, made

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> Any:
        return self.made(self.shards.read(i % len(self.shards)).media, _begin(random.Random(i)))


class _Clips(_Endless):
    """Decoded by ``made``, then cropped by torchvision."""

    def __init__(self, shards: Shards, made: Callable[[bytes, float], np.ndarray]) -> None:
        super().__init__(shards, made)
        self.crop = _crop()

    def __getitem__(self, i: int) -> Tensor:
        frames = super().__getitem__(i)  # (T, H, W, 3)
        return self.crop(torch.from_numpy(frames).permute(0, 3, 1, 2)).transpose(0, 1)  # (3, T, h, w)


def _only_decoded(shards: Shards, workers: int, clips: int) -> None:
    """Decode what the frames of so many clips need, as ours does, and nothing else."""
    list(islice(DataLoader(_Endless(shards, _frames_needed), BATCH, num_workers=workers), clips // BATCH))


def _frames_needed(data: bytes, begin: float) -> int:
    start = begin / (videos.SECONDS - 1 / videos.FPS - (INPUT.frames - 1) / INPUT.fps)
    return len(shown_frames(data, INPUT.frames, INPUT.fps, [start], lambda frame: True))


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
    wanted = islice(after, 0, INPUT.frames * 2, round(videos.FPS / INPUT.fps))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in wanted])


def _decord(shards: Shards, workers: int) -> Iterable[Tensor]:
    return DataLoader(_Clips(shards, decord_frames), BATCH, num_workers=workers)


def decord_frames(data: bytes, begin: float) -> np.ndarray:
    import decord

    reader, step = decord.VideoReader(io.BytesIO(data), num_threads=1), round(videos.FPS / INPUT.fps)
    first = round(begin * videos.FPS)
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


def _memory(shards: Shards, workers: int, samples: int) -> Figures:
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
