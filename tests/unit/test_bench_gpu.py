"""The bench of a GPU on tiny models: every row is there, and ratios are those of what was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.marks import at_length

from bench import gpu, gpu_page
from bench.gpu import QUICK, Measurements
from bench.measure import measured
from bench.peers import CACHED, LIVE
from bench.sides import PEERS
from scaleup.common.errors import UserError

pytest.importorskip("transformers")
FEW = QUICK._replace(models={"ViT-H": QUICK.models["ViT-H"]}, batches=(1,))
WORKS = ["step", "step from stored tokens", "five arms", "5 attentive heads", "inference", "trunk alone"]


class Done(NamedTuple):
    extent: Any
    result: Any
    page: str


@pytest.fixture(scope="module", params=["cpu", *at_length("cuda")])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """On the CPU, and more on a pretended GPU; compiled by nobody."""
    extent, device = (FEW, nullcontext()) if request.param == "cpu" else (QUICK, pretended())
    page = tmp_path_factory.mktemp("page") / "gpu.md"
    with pytest.MonkeyPatch.context() as patch, device:
        patch.setattr(torch, "compile", lambda call, **_: call)
        patch.setattr(sys.modules["bench.gpu"], "QUICK", extent)
        patch.setattr("bench.videos.SECONDS", 3)
        result = gpu(quick=True, docs=str(page))
    yield Done(extent, result, page.read_text())


def pretended() -> Any:
    sys.path.append(str(Path(__file__).parents[1] / "devices"))
    from pretended import gpu as device

    return device()


def test_every_row_is_there(done: Done) -> None:
    rows = done.result["rows"]
    found = {(row["what"], row["model"], row["batch"], row["compile"]) for row in rows if "compile" in row}
    alone = [f"arm {number} alone" for number in range(5)]
    hows = [(batch, compile) for batch in done.extent.batches for compile in ("off", "blocks")]
    if done.extent is QUICK:  # on a GPU
        hows += [(batch, "blocks, CUDA graphs") for batch in QUICK.batches[:-1]]
    assert found == {
        (what, model, *how)
        for what in [*WORKS, *alone, "five arms over their bound"]
        for model in done.extent.models
        for how in hows
    }
    assert {(row["model"], row["precision"]) for row in rows if row["what"] == "products"} == {
        (model, precision) for model in done.extent.models for precision in ("bfloat16", "TF32")
    }
    assert [row["name"] for row in rows if row["what"] == "peer"][-len(PEERS) :] == list(PEERS)
    assert [row["place"] for row in rows if row["what"] == "place of frozen blocks"] == ["device", "host", "disk"]
    assert {"copy", "from a token cache", "loader"} <= {row["what"] for row in rows} and not done.result["missing"]
    assert all(f"## {title}" in done.page for title in gpu_page.TABLES)


def test_ratios_are_those_of_the_rows(done: Done) -> None:
    rows = done.result["rows"]
    rates = {
        row["model"]: row["teraflops"]
        for row in rows
        if (row["what"], row.get("precision")) == ("products", "bfloat16")
    }
    works = [row for row in rows if "gflop" in row and "compile" in row]
    for row in works:
        assert row["share"] == pytest.approx(row["gflop"] / 1000 / row["seconds"] / rates[row["model"]])
        assert row["clips_per_second"] == row["batch"] / row["seconds"]
    for bound in (row for row in rows if row["what"] == "five arms over their bound"):
        seconds = {row["what"]: row["seconds"] for row in works if same(row, bound)}
        parts = sum(each for name, each in seconds.items() if name.endswith(" alone"))
        assert bound["ratio"] == pytest.approx(seconds["five arms"] / parts)
    (loader,) = (row for row in rows if row["what"] == "loader")
    live = [row for row in works if row["what"] == "step" and row["compile"] == "off"]
    assert loader["demand"] == max(row["clips_per_second"] for row in live)
    assert loader["share"] == loader["clips_per_second"] / loader["demand"]


def same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(row[key] == other[key] for key in ("model", "batch", "compile"))


def test_goals_are_measured_by_the_rows_they_name(done: Done) -> None:
    rows, goals = done.result["rows"], {goal["what"]: goal for goal in done.result["goals"]}
    at = f"ViT-H, batch {max(done.extent.batches)}, compile"
    steps = {row["compile"]: row for row in rows if row["what"] == "step" and row["model"] == "ViT-H"}
    peers = {row["name"]: row for row in rows if row["what"] == "peer"}
    fastest = min(peers[name]["step_seconds"] for name in PEERS)
    limits = [goal.get("at_least", goal.get("at_most")) for goal in goals.values()]
    assert limits == [0.55, 1.10, 0.55, 1.10, 1.10, 6, 12, 4]
    if len(done.extent.batches) == 1:
        share = goals[f"step of {at} off, share of the rate of its products"]
        assert share["measured"] == steps["off"]["share"]
    ratios = [
        goal["measured"] for name, goal in goals.items() if name.startswith("the fastest peer's seconds of a step")
    ]
    assert ratios == [fastest / peers[LIVE]["step_seconds"], fastest / peers[CACHED]["step_seconds"]]


def test_the_page_comes_from_the_file_too(done: Done, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(done.result))
    gpu(docs=str(tmp_path / "gpu.md"), source=str(tmp_path / "gpu.json"))
    assert (tmp_path / "gpu.md").read_text() == done.page
    assert "Tiny models, to test the bench" in done.page


CHANGES: dict[str, Any] = {
    "no 'missing'": lambda result: result.pop("missing"),
    "no rows": lambda result: result.update(rows=[]),
    "no 'gigabytes_per_second'": lambda result: result["rows"][0].pop("gigabytes_per_second"),
    "no 'quick'": lambda result: result["machine"].pop("quick"),
    "a value in it has another form": lambda result: result["rows"].append(1),
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_file_that_is_no_result_is_refused_and_the_page_stays(said: str, tmp_path: Path) -> None:
    machine = {"quick": True, "precision": "float32", "system": "Linux", "cores": 2, "load_before": 0.5}
    result = measured(machine, [{"what": "copy", "gigabytes_per_second": 3.0}], missing=[])
    CHANGES[said](result)
    (tmp_path / "gpu.json").write_text(json.dumps(result))
    (tmp_path / "gpu.md").write_text("earlier")
    with pytest.raises(UserError, match=f"gpu.json' is not the output of this version's .* --json: .*{said}"):
        gpu(docs=str(tmp_path / "gpu.md"), source=str(tmp_path / "gpu.json"))
    assert (tmp_path / "gpu.md").read_text() == "earlier"


def test_what_was_not_measured_is_named_and_costs_nothing_else() -> None:
    def full() -> Any:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    def broken() -> Any:
        raise KeyError("ViT-B")

    late, early = Measurements(FEW, 1, 0.0), Measurements(FEW, 1, 1.0)
    late.measure("copy", lambda: [{"what": "copy"}])
    early.measure("ViT-H", full)
    assert early.code == 0
    early.measure("ViT-B", broken)
    early.measure("copy", lambda: [{"what": "copy"}])
    assert late.missing == ["copy: no time was left"] and not late.rows
    assert early.missing == ["ViT-H: no memory was left", "ViT-B: KeyError: 'ViT-B'"] and len(early.rows) == 1
    assert early.code == 1


def test_a_machine_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="there is no GPU here to measure; --quick"):
        gpu()
