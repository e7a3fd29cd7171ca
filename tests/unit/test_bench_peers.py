import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import peers_page
from bench.measure import Side, cost, gflops, run_in_process
from bench.ours import tubevit
from bench.peers import CACHED, FULL, LIVE, OURS, losses, peers, ratio_to_fastest, row
from bench.sides import CLASSES, PEERS, TINY
from scaleup.common.errors import UserError

pytest.importorskip("transformers")
TOOL = Path(__file__).parents[2] / "tools" / "bench.py"
MIB = 2**20


def holder(mebibytes: int) -> Side:
    def step() -> None:
        torch.ones(mebibytes * MIB // 4)

    return Side(1, 1, 0, step, None)


def test_a_side_is_measured_in_a_process_that_has_nothing_of_this_one() -> None:
    held = torch.ones(300 * MIB // 4)
    _, small, large = (run_in_process(cost, holder, (size,), 1) for size in (200, 1, 200))
    assert small["peak_bytes"] < 100 * MIB < held.nbytes
    assert 200 * MIB <= large["peak_bytes"] - small["peak_bytes"] + 20 * MIB <= 260 * MIB
    assert large["infer_seconds"] is large["gflop"] is None and large["step_seconds"] > 0


def test_a_process_that_is_killed_is_a_sentence() -> None:
    with pytest.raises(UserError, match="that measures 7 was killed"):
        run_in_process(os._exit, 7)


def test_a_multiplication_and_its_addition_are_two() -> None:
    x, weight = torch.ones(10, 20), torch.ones(30, 20, requires_grad=True)
    assert gflops(partial(F.linear, x, weight)) == 2 * 10 * 20 * 30 / 1e9
    assert gflops(lambda: F.linear(x, weight).sum().backward()) == 4 * 10 * 20 * 30 / 1e9


@pytest.mark.parametrize(("frames", "there"), [(8, 246), (16, 295), (32, 540), (64, 1177)])
def test_tubes_that_a_clip_is_too_short_for_are_left_out(frames: int, there: int) -> None:
    assert tubevit(TINY._replace(image=224), frames).count_tokens(frames) == there


def types_of(make: Callable[..., Side]) -> set[torch.dtype]:
    """The types of the products of a model's last blocks, in bfloat16, in a step."""
    seen = set()

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(layer, nn.Linear) and output.dim() == 3:
            seen.add(output.dtype)

    side = make(TINY, precision="bfloat16")
    with nn.modules.module.register_module_forward_hook(note):
        side.step()
    return seen


@pytest.mark.parametrize("make", [OURS[LIVE], OURS[FULL], PEERS["ViT on each of 8 frames, LoRA in every block"]])
def test_all_compute_in_the_precision_that_is_asked_for(make: Callable[..., Side]) -> None:
    assert types_of(make) == {torch.bfloat16}


def turn(ours: float, cached: float, least: float) -> dict[str, dict[str, float]]:
    others = {name: {"step_seconds": least * (1 + index)} for index, name in enumerate(PEERS)}
    return {LIVE: {"step_seconds": ours}, CACHED: {"step_seconds": cached}} | others


def test_ratios_are_taken_turn_by_turn_against_the_fastest_peer() -> None:
    turns = [turn(1.0, 0.5, 8.0), turn(20.0, 5.0, 100.0), turn(3.0, 1.0, 10.0)]
    assert ratio_to_fastest(turns, LIVE, "step_seconds") == 5
    assert ratio_to_fastest(turns, CACHED, "step_seconds") == 16
    assert row(LIVE, [turn[LIVE] for turn in turns]) == {
        "name": LIVE,
        "ours": True,
        "step_seconds": 3.0,
        "clips_per_second": 1 / 3,
    }


def side_row(name: str, **changes: float | None) -> dict:
    counts = {"tokens": 5, "frames": 32, "trained_parameters": 10**6, "gflop": 2.0, "train_gflop": 4.0}
    return {"name": name, "ours": name == "us"} | counts | dict.fromkeys(SECONDS, 1.0) | {"peak_bytes": 100} | changes


SECONDS = ("step_seconds", "infer_seconds")


def test_every_loss_is_found_and_has_its_own_cause() -> None:
    lean = side_row("lean", peak_bytes=90, trained_parameters=10)
    fewer = side_row("fewer", step_seconds=0.5, train_gflop=3.0, tokens=4)
    slow = side_row("even", infer_seconds=0.9)
    found = {
        (each["peer"], each["column"]): each["cause"]
        for each in losses([side_row("us"), side_row("x"), lean, fewer, slow])
    }
    assert found.keys() == {
        ("lean", "peak_bytes"),
        ("fewer", "step_seconds"),
        ("fewer", "train_gflop"),
        ("fewer", "tokens"),
        ("even", "infer_seconds"),
    }
    assert found["lean", "peak_bytes"].startswith("1.0 M parameters train")
    assert found["fewer", "step_seconds"].startswith("5 tokens of 32 frames against 4")
    assert found["even", "infer_seconds"].startswith("it computes less")
    assert not list(losses([side_row("us", infer_seconds=None, gflop=None), side_row("x", infer_seconds=0.1)]))


def test_a_page_without_marks_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    for at in (page, tmp_path / "none.md"):
        with pytest.raises(UserError, match=rf"{at.name}' cannot take figures: it has no lines '<!-- figures"):
            peers(docs=str(at))


@pytest.mark.all
def test_figures_of_all_peers_can_be_had(tmp_path: Path) -> None:
    page, plot = tmp_path / "page.md", tmp_path / "plot.png"
    page.write_text(f"before\n{peers_page.BEGIN}old\n{peers_page.END}after\n")
    asked = ["peers", "--quick", "--json", "--docs", page, "--plot", plot, "--precision", "bfloat16", "--others", "1"]
    done = subprocess.run([sys.executable, TOOL, *asked], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["name"]: row for row in found["rows"]}
    assert [name for name in rows if not rows[name]["ours"]] == list(PEERS)
    assert {name: each["tokens"] for name, each in rows.items() if each["ours"] or "32 frames" in name} == {
        **{name: 45 for name in rows if rows[name]["ours"]},
        "VideoMAE, 32 frames": 256,
        "ViViT, 32 frames": 257,
        "V-JEPA 2, frozen, attentive probe, 32 frames": 256,
        "ViT on each of 32 frames, last quarter trains": 32 * 17,
    }
    width, head = TINY.width, (TINY.width + 1) * CLASSES
    block = 12 * width**2 + 13 * width  # attention, MLP and norms
    adapters = 8 * ((1 + 3) + (1 + 1) + (1 + 4) + (4 + 1)) * width  # rank 8 on qkv, proj, fc1 and fc2
    last_quarter = block + 2 * width + head
    assert rows["ViT on each of 32 frames, last quarter trains"]["trained_parameters"] == last_quarter
    assert rows["ViT on each of 8 frames, LoRA in every block"]["trained_parameters"] == TINY.depth * adapters + head
    probe = 3 * block + 11 * width**2 + 13 * width + head  # the last layer is without a projection, with a query
    assert rows["V-JEPA 2, frozen, attentive probe, 32 frames"]["trained_parameters"] == probe
    assert rows[LIVE]["trained_parameters"] == last_quarter + 1  # and the gate
    for each in found["rows"]:
        assert min(each[key] for key in ("train_gflop", "step_seconds", "peak_bytes", "clips_per_second")) > 0
        assert (each["infer_seconds"] is None) == (each["gflop"] is None) == each["name"].startswith(CACHED)
    assert rows[CACHED]["train_gflop"] < rows[LIVE]["train_gflop"] < rows["TubeViT, full fine-tuning"]["train_gflop"]
    assert [goal["at_least"] for goal in found["goals"]] == [9, 18, 6]
    text = page.read_text()
    assert "\nbfloat16, beside 1 busy processes, load before the run " in text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert all(f"| {name} |" in text for name in PEERS) and f"| **{LIVE}** |" in text
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.all
def test_curves_can_be_drawn(tmp_path: Path) -> None:
    asked = ["curves", "--quick", "--json", "--out", tmp_path]
    done = subprocess.run([sys.executable, TOOL, *asked], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    ends = {"frames": (8, 128), "frozen_depth": (0, 4), "arms": (1, 5), "batch": (1, 8), "ranks": (1, 2)}
    assert [(row["curve"], row[row["curve"]]) for row in rows] == [(key, end) for key in ends for end in ends[key]]
    assert all(row["step_seconds"] > 0 and row["peak_bytes"] > 0 for row in rows)
    assert {path.name for path in tmp_path.iterdir()} == {f"{curve}.png" for curve in ends}
    of = {(row["curve"], row[row["curve"]]): row["train_gflop"] for row in rows}
    assert of["batch", 8] == pytest.approx(8 * of["batch", 1])
    assert of["ranks", 2] == pytest.approx(of["ranks", 1] / 2)  # of each rank
    assert of["arms", 1] < of["arms", 5] < 5 * of["arms", 1]  # one trunk
