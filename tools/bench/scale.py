"""Time and memory of an index, an epoch's order and batches, against the number of samples. The samples have no pixels:
their tars are sparse files of zeros, of the size and with the checksums that their index says."""

from __future__ import annotations

import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bench.measure import Figures, goal, machine, measured, rotate, run_in_process, timed
from bench.plots import draw_scale
from scaleup.common.processes import peak_bytes
from scaleup.config import schema
from scaleup.data.columns import ENDS
from scaleup.data.index import Index, write_rows
from scaleup.data.loader import TrainSteps, eval_share
from scaleup.data.shards import Shards

MEDIUM, TEXT = 1000, 20  # bytes of the members of a sample
PITCH = 512 + 1024 + 512 + 512  # bytes of a sample in a tar: each member has a header and ends at a multiple of 512
DIGITS, CLASSES = 9, 1000
SEED, PER_RANK, STEPS = 1, 32, 20
MIB = 2**20


def scale(
    samples: list[int], per_shard: int = 1000, directory: str | None = None, plot: str | None = None, repeats: int = 3
) -> Figures:
    """Every number of samples in a process of its own, which opens the index, draws first batches for 1, 8 and 64
    ranks, and goes on at a random step.

    Args:
        samples: the numbers of samples; at 100 million the index takes 10 GB of disk, and twice that while it is
            written.
        directory: the index is written here, one number of samples after the other; by default a temporary directory.
        plot: file for a plot.
    """
    before = machine(per_shard=per_shard, per_rank=PER_RANK)
    rows = [_row(count, per_shard, directory, repeats) for count in samples]
    if plot:
        draw_scale(rows, Path(plot))
    largest = max(rows, key=lambda row: row["samples"])
    goals = [
        goal(f"{largest['samples']:,} samples: seconds to open", largest["open_seconds"], 2),
        goal("MiB of the process above its libraries", largest["peak_mib"] - largest["libraries_mib"], 300),
        goal("seconds to the first batch, once it is open", largest["first_batch_seconds"], 1),
        goal("milliseconds of a step's order", largest["order_ms"], 1),
    ]
    return measured(before, rows, goals)


def _row(count: int, per_shard: int, directory: str | None, repeats: int) -> Figures:
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        began, path = time.perf_counter(), Path(temporary) / "shards"
        make_index(path, count, per_shard)
        made = time.perf_counter() - began
        size = sum((path / name).stat().st_size for name in ("index.json", "index.columns"))
        work = partial(run_in_process, measure, str(path), modules=("bench.scale",))
        turns = rotate({f"{count} samples": work}, repeats, warmup=0)
        figures = {key: median(turn[f"{count} samples"][key] for turn in turns) for key in _names(turns)}
        _check_shares(count)
        shutil.rmtree(path)
    return {"samples": count, "index_mib": size / MIB, "make_seconds": made, **figures}


def _names(turns: list[dict[str, Figures]]) -> list[str]:
    return list(next(iter(turns[0].values())))


def make_index(path: Path, count: int, per_shard: int) -> None:
    """An index of ``count`` samples of one label, and its sparse tars."""
    path.mkdir()
    index = Index("image", {"label": [f"class{n}" for n in range(CLASSES)]}, count, [], [])
    first = _rows(0, 0)
    write_rows(path, index, first, _parts(path, count, per_shard), ["png", "json"], "0" * 64)


def _parts(path: Path, count: int, per_shard: int) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    for number, begin in enumerate(range(0, count, per_shard)):
        length = min(per_shard, count - begin)
        file, size = f"{number:06d}.tar", length * PITCH + 10240
        with (path / file).open("wb") as tar:
            tar.truncate(size)
        yield {"file": file, "bytes": size, "sha256": "0" * 64, "samples": length}, _rows(begin, length)


def _rows(begin: int, length: int) -> dict[str, np.ndarray]:
    numbers, places = np.arange(begin, begin + length), np.arange(length)
    members = np.empty((length, 2, 4), "<i8")
    for member, (size, offset) in enumerate(((MEDIUM, 512), (TEXT, 2048))):
        members[:, member] = (member, offset, size, zlib.crc32(bytes(size)))
        members[:, member, 1] += places * PITCH
    digits = numbers[:, None] // 10 ** np.arange(DIGITS - 1, -1, -1) % 10 + ord("0")
    return {
        "keys" + ENDS: (places + 1) * DIGITS,
        "keys": digits.astype("u1").ravel(),
        "members" + ENDS: (places + 1) * 8,
        "members": members.ravel(),
        "label label": numbers * 2_654_435_761 % CLASSES,
    }


def measure(path: str) -> Figures:
    """What one process needs, in the order in which a rank does it."""
    libraries, began = peak_bytes(), time.perf_counter()
    shards = Shards.open(path)
    opened = time.perf_counter() - began
    figures = {"open_seconds": opened}
    for world in (1, 8, 64):
        rank = world // 2
        if world > 1 and PER_RANK * world > len(shards):
            continue
        steps = _steps(shards, rank, world)
        seconds = timed(partial(steps.__getitem__, 0))()
        figures.setdefault("first_batch_seconds", seconds)  # of one rank, which opens the files
        figures[f"batch_seconds_{world}_ranks"] = seconds
    epoch = -(-len(shards) // PER_RANK)
    far = np.random.default_rng(SEED).integers(epoch, 10 * epoch, STEPS).tolist()
    resumed = _steps(shards, 0, 1)
    figures["resume_seconds"] = timed(partial(resumed.__getitem__, far[0]))()
    steps = _steps(shards, 0, 1)
    keys = [steps[step].keys for step in (0, *reversed(far))]
    assert keys[-1] == resumed[far[0]].keys and resumed[0].keys == keys[0]  # whatever was drawn before
    order = _steps(shards, 0, 1).orders["clips"]
    places = [range(step * PER_RANK, (step + 1) * PER_RANK) for step in far]
    order.at(0)
    figures["order_ms"] = 1000 * median(timed(partial(list, map(order.at, own)))() for own in places)
    return figures | {"libraries_mib": libraries / MIB, "peak_mib": peak_bytes() / MIB}


def _steps(shards: Shards, rank: int, world: int) -> TrainSteps:
    """The steps of one of ``world`` ranks, each with batches of ``PER_RANK``."""
    dataset = schema.Dataset(str(shards.path), {"label": "label"})
    data = schema.Data({"clips": dataset}, batch=PER_RANK * world, max_bad=0.0)

    def read(_: str, index: int, epoch: int) -> Tensor:
        shards.read(index)
        return torch.zeros(1, dtype=torch.uint8)

    return TrainSteps(data, {"clips": cast(Any, shards)}, read, SEED, rank, world)


def _check_shares(count: int) -> None:
    """Every sample is evaluated by exactly one of the ranks."""
    for world in (1, 8, 64):
        times = np.zeros(count, np.uint8)
        for rank in range(world):
            share = eval_share(count, rank, world)
            times[share.start : share.stop : share.step] += 1
        assert (times == 1).all(), f"{world} ranks"
