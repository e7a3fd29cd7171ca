"""Clips per second of our loader, compared with a plain PyAV loop, decord, torchcodec, and webdataset with PyAV, on the
same shards."""

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
from bench.measure import Figures, alternate, compare, goal, machine, measured
from scaleup.config import schema
from scaleup.data.decode import shown_frames
from scaleup.data.loader import train_loader
from scaleup.data.shards import Shards

INPUT = schema.Input(frames=32, size=[224, 224], fps=15.0)
AUGMENT = schema.Augment(crop_scale=[0.25, 1.0], flip=True)
BATCH = 4
Loader = Callable[[Shards, int], Iterable[Any]]  # (shards, number of processes) -> endless batches


def loader(
    directory: str | None = None,
    count: int = 24,
    clips: int = 96,
    workers: int = 2,
    repeats: int = 5,
    samples: int = 10_000,
    copied: bool = False,
) -> Figures:
    """Each loader fills batches of random clips with the same number of processes, in turns with ours.

    ``decode_only`` decodes the frames that our loader needs and does nothing with them.

    Args:
        directory: the shards are written here, or used again; by default a temporary directory.
        count: number of different videos.
        clips: number of clips that are loaded in each round; every round starts new processes.
        samples: number of clips that are loaded to see whether memory grows; 0 for none.
        copied: videos with x264's defaults, instead of re-encoded ones (``make_shards.py --reencode``).
    """
    before = machine(workers=workers, videos="copied" if copied else "re-encoded")
    with tempfile.TemporaryDirectory() as temporary:
        shards = videos.videos_in(Path(directory or temporary) / ("copied" if copied else "videos"), count, copied)
        loaders: dict[str, Loader] = {"pyav": _pyav, "webdataset": _webdataset}
        optional: dict[str, Loader] = {"decord": _decord, "torchcodec": _torchcodec}
        loaders |= {name: load for name, load in optional.items() if importlib.util.find_spec(name)}
        memory = [_memory(shards, workers, samples)] if samples else []
        ours = partial(_cost, _load, _ours, shards, workers, clips)
        others = {name: partial(_cost, _load, load, shards, workers, clips) for name, load in loaders.items()}
        others["decode_only"] = partial(_cost, _only_decoded, shards, workers, clips)
        rows = {name: _compare(alternate(ours, other, repeats, label=name)) for name, other in others.items()}
    speeds = {"ours": clips / median(row["seconds"] for row in rows.values())} | dict.fromkeys(optional)
    speeds |= {name: clips / row["other_seconds"] for name, row in rows.items()}
    goals = [
        goal("seconds of a clip, over the fastest other side's", max(rows[name]["ratio"] for name in loaders), 0.5)
    ]
    goals += [goal("growth of memory, as a share", row["growth"], 0.05) for row in memory]
    all_rows = [*memory, *({"side": name, **row} for name, row in rows.items())]
    return measured(before, all_rows, goals, clips_per_second=speeds)


def steady(shards: Shards, workers: int, clips: int) -> float:
    """Clips per second of our loader, after its processes have begun."""
    batches = _ours(shards, workers)
    list(islice(batches, 2 * workers))
    began = time.perf_counter()
    list(islice(batches, clips // BATCH))
    return clips / (time.perf_counter() - began)


class Cost(NamedTuple):
    """Wall seconds and processor seconds. Other processes lengthen the first, but not the second."""

    seconds: float
    cpu: float


def _cost(work: Callable[..., None], *arguments: Any) -> Cost:
    """The cost of ``work``, which ends all processes that it starts."""
    began, before = time.perf_counter(), sum(os.times()[:4])
    work(*arguments)
    return Cost(time.perf_counter() - began, sum(os.times()[:4]) - before)


def _compare(pairs: list[tuple[Cost, Cost]]) -> dict[str, float]:
    cpu = compare([(ours.cpu, other.cpu) for ours, other in pairs])
    return compare([(ours.seconds, other.seconds) for ours, other in pairs]) | {"cpu_ratio": cpu["ratio"]}


def _load(loader: Loader, shards: Shards, workers: int, clips: int) -> None:
    """Load ``clips`` clips, and check their shape."""
    for batch in islice(loader(shards, workers), clips // BATCH):
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
    """``decode(bytes of a video, second at which the clip begins)`` of one sample after another, endlessly."""

    def __init__(self, shards: Shards, decode: Callable[[bytes, float], Any]) -> None:
        self.shards, self.decode = shards, decode

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> Any:
        return self.decode(self.shards.read(i % len(self.shards)).media, _begin(random.Random(i)))


class _Clips(_Endless):
    """Clips, cropped by torchvision after decoding."""

    def __init__(self, shards: Shards, decode: Callable[[bytes, float], np.ndarray]) -> None:
        super().__init__(shards, decode)
        self.crop = _crop()

    def __getitem__(self, i: int) -> Tensor:
        frames = super().__getitem__(i)  # (T, H, W, 3)
        return self.crop(torch.from_numpy(frames).permute(0, 3, 1, 2)).transpose(0, 1)  # (3, T, h, w)


def _only_decoded(shards: Shards, workers: int, clips: int) -> None:
    """Decode the frames of ``clips`` clips as our loader does, and do nothing else."""
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
    """``INPUT.frames`` frames at ``INPUT.fps``, from the first frame at or after ``begin`` (seconds)."""
    after = (frame for frame in frames if frame.time >= begin)  # type: ignore[operator]
    clip = islice(after, 0, INPUT.frames * 2, round(videos.FPS / INPUT.fps))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in clip])


def _decord(shards: Shards, workers: int) -> Iterable[Tensor]:
    return DataLoader(_Clips(shards, decord_frames), BATCH, num_workers=workers)


def decord_frames(data: bytes, begin: float) -> np.ndarray:
    import decord

    reader, step = decord.VideoReader(io.BytesIO(data), num_threads=1), round(videos.FPS / INPUT.fps)
    first = round(begin * videos.FPS)
    return reader.get_batch(list(range(first, first + INPUT.frames * step, step))).asnumpy()


def _torchcodec(shards: Shards, workers: int) -> Iterable[Tensor]:
    return DataLoader(_Clips(shards, torchcodec_frames), BATCH, num_workers=workers)


def torchcodec_frames(data: bytes, begin: float) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder, step = VideoDecoder(data, dimension_order="NHWC"), round(videos.FPS / INPUT.fps)
    first = round(begin * videos.FPS)
    return decoder.get_frames_at(list(range(first, first + INPUT.frames * step, step))).data.numpy()


def _webdataset(shards: Shards, workers: int) -> Iterable[Tensor]:
    """Reads tars in sequence, and decodes each video from its beginning to the end of the clip."""
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
    """Resident bytes of this process and of the loader's processes, after a tenth of the samples and after all."""
    batches, tenth = _ours(shards, workers), samples // BATCH // 10
    sizes = []
    for _ in range(10):
        for _ in range(tenth):
            next(batches)
        sizes.append(_resident())  # the loader's processes are running
    early, late = sizes[0], sizes[-1]
    return {"side": "memory", "samples": samples, "early_bytes": early, "late_bytes": late, "growth": late / early - 1}


def _resident() -> int:
    pids = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * 4096
