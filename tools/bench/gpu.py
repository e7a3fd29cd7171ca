"""What a GPU gives: its ceilings, then steps and inference of ViT-B and ViT-H as shares of them; peers, places of
blocks, and the loader."""

from __future__ import annotations

import gc
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

import bench.gpu_page as page
from bench import videos
from bench.cache import cached_steps
from bench.ceilings import copies, products
from bench.loader import steady
from bench.measure import (
    Figures,
    cost,
    gflops,
    goal,
    machine,
    measured,
    rotate,
    timed,
)
from bench.ours import adapted, described_at, tubevit
from bench.peers import OURS, ratio_goals, row
from bench.placements import placements
from bench.sides import FRAMES, PEERS, TINY, VIT_B, Size
from bench.works import ALONE, Works
from scaleup.common.distributed import own_device
from scaleup.common.errors import UserError
from scaleup.common.processes import is_full
from scaleup.config.recipe import default_precision
from scaleup.model.cuda_graphs import can_record
from scaleup.model.tubevit import TubeViT

DEEP = TINY._replace(depth=8)  # enough blocks for five arms


class Extent(NamedTuple):
    """How much is measured."""

    models: dict[str, Callable[[], TubeViT]]
    batches: tuple[int, ...]
    size: Size  # of the peers
    batch: int  # of the peers, of placements and of the cache
    workers: int  # of the loader
    videos: int
    clips: int  # that are loaded
    copied: int  # bytes


WHOLE = Extent(
    {"ViT-B": partial(adapted, "vit_b"), "ViT-H": partial(adapted, "vit_h")}, (1, 8, 64), VIT_B, 8, 16, 16, 512, 2**30
)
QUICK = Extent(dict.fromkeys(("ViT-B", "ViT-H"), partial(tubevit, DEEP, FRAMES)), (1, 2), DEEP, 2, 1, 2, 8, 2**20)


def gpu(
    quick: bool = False, repeats: int = 5, minutes: float = 9.0, docs: str | None = None, source: str | None = None
) -> Figures:
    """All figures of a GPU, in the order in which they matter: what is left when the time is over is named.

    Args:
        quick: tiny models, measured once, on any device: a test that the bench works.
        minutes: after which nothing new begins.
        docs: the page that is written.
        source: a file with an earlier result (``--json``); nothing is measured then.

    Raises:
        UserError: there is no GPU, or ``source`` is no such result.
    """
    if source is not None:
        result = page.read(source)
    elif own_device().type == "cpu" and not quick:
        raise UserError("there is no GPU here to measure; --quick tries the bench on tiny models")
    else:
        result = Measurements(QUICK if quick else WHOLE, 1 if quick else repeats, minutes).result(quick)
    if docs is not None:
        page.write(docs, result)
    return result


class Measurements:
    """Rows so far, what was left out, and the time that is left."""

    def __init__(self, extent: Extent, repeats: int, minutes: float) -> None:
        self.extent, self.repeats, self.ends = extent, repeats, time.monotonic() + 60 * minutes
        self.rows: list[Figures] = []
        self.missing: list[str] = []
        self.code = 0  # with which the tool ends
        self.rates: dict[str, float] = {}  # TFLOP/s of each model's products in bfloat16
        self.gflop: dict[tuple[str, str], float] = {}  # of one clip, by model and work
        self.peers: list[dict[str, Figures]] = []

    def result(self, quick: bool) -> Figures:
        before = machine(quick=quick, precision=default_precision(own_device().type))
        with tempfile.TemporaryDirectory() as directory:
            for name, group in self.groups(Path(directory)):
                self.measure(name, group)
        return measured(before, self.rows, goals(self), missing=self.missing, exit=self.code)

    def groups(self, directory: Path) -> Iterator[tuple[str, Callable[[], Iterable[Figures]]]]:
        """Names of what is measured, and functions that give its rows: what matters most comes first."""
        yield "copy", lambda: [copies(self.repeats, self.extent.copied)]
        models = {name: make() for name, make in reversed(self.extent.models.items())}
        for name, model in models.items():
            yield f"products of {name}", partial(self.products, name, model)
        works = {name: Works(model, max(self.extent.batches)) for name, model in models.items()}
        yield from self.steps(works, self.extent.batches, "off")
        yield "places of frozen blocks", partial(self.places, models, directory)
        yield "peers", self.beside_peers
        yield "token cache", partial(self.cache, directory)
        yield "loader", partial(self.loader, directory)
        yield from self.steps(works, self.extent.batches, "blocks")
        if own_device().type == "cuda" and can_record(own_device()):  # where the host may be slower than the GPU
            yield from self.steps(works, self.extent.batches[:-1], "blocks", "trunk")

    def steps(
        self, works: dict[str, Works], batches: tuple[int, ...], compile: str, graphs: str = "off"
    ) -> Iterator[tuple[str, Callable[[], Iterable[Figures]]]]:
        for batch in reversed(batches):
            for name, of in works.items():
                label = f"{name}, batch {batch}, compile {told(compile, graphs)}"
                yield label, partial(self.works, name, of, batch, compile, graphs)

    def measure(self, name: str, group: Callable[[], Iterable[Figures]]) -> None:
        if time.monotonic() > self.ends:
            self.missing.append(f"{name}: no time was left")
            return
        try:
            self.rows += group()
        except Exception as error:  # one failure must not cost the other figures: the GPU may be gone tomorrow
            if is_full(error):
                self.missing.append(f"{name}: no memory was left")
            else:
                traceback.print_exc()
                self.missing.append(f"{name}: {type(error).__name__}: {error}")
                self.code = 1
        gc.collect()
        if own_device().type != "cpu":
            torch.accelerator.empty_cache()

    def products(self, name: str, model: TubeViT) -> list[Figures]:
        tokens = max(self.extent.batches) * model.count_tokens(model.preprocess.frames)
        rows = products(name, tokens, model.tokenizer.embed_dim, self.repeats)
        self.rates[name] = rows[0]["teraflops"]
        return rows

    def works(self, name: str, works: Works, batch: int, compile: str, graphs: str) -> list[Figures]:
        """A row for each work, and one for the ratio that is taken in turns."""
        calls, how = works.calls(batch, compile, graphs), told(compile, graphs)
        about = {"model": name, "batch": batch, "compile": how}
        for work, call in calls.items():
            if (name, work) not in self.gflop:
                self.gflop[name, work] = gflops(call) / batch
        counted = graphs == "off"  # a replay uses memory that torch does not count as used
        peaks = {work: works.peak(work, call) if counted else None for work, call in calls.items()}
        label = f"{name}, batch {batch}, compile {how}"
        rounds = rotate({work: timed(call) for work, call in calls.items()}, self.repeats, label=label)
        seconds = {work: median(each[work] for each in rounds) for work in calls}
        rows = [{"what": work, **about, **self._of(name, work, batch, seconds[work], peaks[work])} for work in calls]
        bounds = [each["five arms"] / sum(each[work] for work in each if work.endswith(ALONE)) for each in rounds]
        return [*rows, {"what": "five arms over their bound", **about, "ratio": median(bounds)}]

    def _of(self, name: str, work: str, batch: int, seconds: float, peak: int | None) -> Figures:
        gflop = self.gflop[name, work] * batch
        return {
            "seconds": seconds,
            "clips_per_second": batch / seconds,
            "gflop": gflop,
            "share": gflop / 1000 / seconds / self.rates[name],
            "peak_bytes": peak,
        }

    def places(self, models: dict[str, TubeViT], directory: Path) -> list[Figures]:
        name, model = next(iter(models.items()))
        return placements(name, model, self.extent.batch, directory, self.repeats)

    def beside_peers(self) -> list[Figures]:
        """One after another in this process: each frees its memory of the device before the next."""
        sides, size, batch = OURS | PEERS, self.extent.size, self.extent.batch
        costs = {name: cost(partial(make, batch=batch), (size,), self.repeats) for name, make in sides.items()}
        self.peers = [costs]
        return [
            {"what": "peer", "batch": batch, **row(name, [costs[name]]), "clips_per_second": _rate(costs[name], batch)}
            for name in sides
        ]

    def cache(self, directory: Path) -> list[Figures]:
        described, batch = described_at(self.extent.size, FRAMES), self.extent.batch
        shards = videos.videos_in(directory / "videos", self.extent.videos)
        row = cached_steps(described, shards, batch, self.extent.workers, directory / "cache", self.repeats)
        return [{"what": "from a token cache", **row}]

    def loader(self, directory: Path) -> list[Figures]:
        """Clips that the loader gives, and those that the fastest live step takes."""
        shards = videos.videos_in(directory / "videos", self.extent.videos)
        given = steady(shards, self.extent.workers, self.extent.clips)
        demand = max(row["clips_per_second"] for row in self.rows if row["what"] == "step")
        about = {"what": "loader", "workers": self.extent.workers, "clips_per_second": given}
        return [{**about, "demand": demand, "share": given / demand}]


def told(compile: str, graphs: str) -> str:
    """How blocks are computed, as rows name it."""
    return compile if graphs == "off" else f"{compile}, CUDA graphs"


def _rate(costs: Figures, batch: int) -> float:
    return batch / costs["step_seconds"]


def goals(done: Measurements) -> Iterator[Figures]:
    """Those whose figures were measured; of a step, as compiled as a run on a GPU is by default, if that was."""
    name, batch = list(done.extent.models)[-1], max(done.extent.batches)
    of = {
        (row["what"], row["compile"]): row
        for row in done.rows
        if (row.get("model"), row.get("batch")) == (name, batch) and "compile" in row
    }
    where = f"{name}, batch {batch}"
    for compile in ("off", "blocks"):
        if ("step", compile) in of:
            share, ratio = of["step", compile]["share"], of["five arms over their bound", compile]["ratio"]
            what = f"{where}, compile {compile}"
            yield goal(f"step of {what}, share of the rate of its products", share, 0.55, at_least=True)
            yield goal(f"five arms of {what}, over their bound", ratio, 1.10)
    for row_ in done.rows:
        if row_["what"] == "from a token cache":
            yield goal("steps from a token cache, over the arm's", row_["ratio"], 1.10)
    if done.peers:
        yield from ratio_goals(done.peers, (6, 12, 4))
