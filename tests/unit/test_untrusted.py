"""Models from strangers: changed at random, or made to harm. A sentence each; no code runs, memory stays bounded."""

import copy
import json
import os
import pickle
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaleup.backbones.build import build
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.model.build import describe, load
from scaleup.model.tubevit import TubeViT
from scaleup.transplants.adapted_model import plan
from scaleup.transplants.transplant_plan import Options

KWARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TRIALS = 170  # of each kind of file, three kinds
LARGE = [10**6 + 1, 10**9, 2**40, 1e12]


@pytest.fixture
def model() -> TubeViT:
    backbone = build("timm:vit_tiny_patch16_224", KWARGS, (32, 32))
    tubes = {"long": schema.Tube([4, 4, 4], [4, 8, 8])}
    parts = {"input": schema.Input(8, [32, 32]), "frames": schema.Frames(4), "tubes": tubes}
    positions = schema.Positions("backbone")
    return TubeViT.assemble(describe(backbone, 0, positions=positions, heads={"a": ["x", "y"]}, **parts), backbone)


def tried(work: Callable[[], Any]) -> bool:
    """Whether it was refused; anything but a sentence for the user fails the test."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        work()
        refused = False
    except UserError as error:
        refused = "\n" not in str(error) and len(str(error)) > 10
        assert refused
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: less than a GiB more
    return refused


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """Cut, with bits turned, bytes replaced, a stretch zeroed, doubled or shuffled."""
    content, kind = bytearray(whole), draw.randrange(5)
    start = draw.randrange(len(content))
    if kind == 0:
        return bytes(content[:start])
    if kind == 1:
        for _ in range(draw.choice((1, 3, 30))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == 2:
        for _ in range(draw.choice((1, 3, 30))):
            content[draw.randrange(min(len(content), 4000))] = draw.randrange(256)
    elif kind == 3:
        content[start : start + 200] = bytes(len(content[start : start + 200]))
    else:
        content[start:start] = content[:start]
    return bytes(content)


def refused(path: Path, contents: Callable[[int], bytes], work: Callable[[], Any], trials: int = TRIALS) -> float:
    """The share of contents of a file at which ``work`` refused it."""
    count = 0
    for trial in range(trials):
        path.write_bytes(contents(trial))
        count += tried(work)
    return count / trials


def test_files_of_tensors_changed_at_random(model: TubeViT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "out", "full")
    path, draw = tmp_path / "out/model.safetensors", random.Random(1)
    whole = path.read_bytes()

    def moved() -> object:
        return plan(str(tmp_path / "out"), "vit_ti", Options(size=(32, 32)))

    # turned bits in the numbers themselves make another model, not a damaged file
    assert refused(path, lambda _: damaged(whole, draw), lambda: load(tmp_path / "out")) > 1 / 3
    assert refused(path, lambda _: damaged(whole, draw), moved, TRIALS // 4) > 0


def test_torch_checkpoints_changed_at_random(model: TubeViT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "out", "full")
    path, draw = tmp_path / "small.ckpt", random.Random(2)
    torch.save({"state_dict": model.state_dict()}, path)
    (tmp_path / "config.json").write_bytes((tmp_path / "out/config.json").read_bytes())
    whole = path.read_bytes()

    def moved() -> object:
        return plan(str(path), "vit_ti", Options(size=(32, 32)))

    assert refused(path, lambda _: damaged(whole, draw), moved) > 1 / 3


def test_configs_changed_at_random(model: TubeViT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "out", "full")
    path, draw = tmp_path / "out/config.json", random.Random(3)
    whole = path.read_bytes()

    def changed(trial: int) -> bytes:
        return damaged(whole, draw) if trial % 2 else json.dumps(grown(model.config.to_json(), draw)).encode()

    assert refused(path, changed, lambda: load(tmp_path / "out")) > 1 / 3


def grown(config: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A config in which a number somewhere is enormous."""
    changed: Any = copy.deepcopy(config)
    changed["backbone"]["kwargs"]["mlp_ratio"] = 4.0
    inner = changed
    while True:
        keys = list(range(len(inner))) if isinstance(inner, list) else list(inner)
        if not keys:
            return changed
        key = draw.choice(keys)
        if not isinstance(inner[key], dict | list):
            inner[key] = draw.choice(LARGE)
            return changed
        inner = inner[key]


@pytest.mark.parametrize(
    ("key", "value"), [("depth", 10**9), ("embed_dim", 2**40), ("mlp_ratio", 1e12), ("reg_tokens", 10**9)]
)
def test_a_delta_that_asks_for_all_memory_is_refused_before_it_is_given_any(
    key: str, value: float, model: TubeViT, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "out", "full")
    config = json.loads((tmp_path / "out/config.json").read_text())
    config["backbone"]["kwargs"][key] = value
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    (tmp_path / "out/model.safetensors").rename(tmp_path / "out/delta.safetensors")
    assert tried(lambda: load(tmp_path / "out"))


def test_a_model_at_random_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs \d+ GiB in float32, but this machine has"):
        build("timm:vit_giant_patch14_224", {"embed_dim": 16384, "num_heads": 16, "mlp_ratio": 8}, (224, 224))


class Harm:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["small.ckpt", "small.pt", "small.bin", "small.safetensors"])
def test_no_code_of_a_file_runs(name: str, model: TubeViT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "out", "full")
    mark, path = tmp_path / "harmed", tmp_path / name
    for content in (
        pickle.dumps(Harm(mark)) + bytes(100),
        pickle.dumps({"state_dict": {"x": Harm(mark)}}) + bytes(100),
    ):
        path.write_bytes(content)
        assert tried(lambda: plan(str(path), "vit_ti", Options()))
        assert tried(lambda: build("timm:vit_tiny_patch16_224", KWARGS, (32, 32), str(path)))
    torch.save({"state_dict": {"x": Harm(mark)}}, path)
    assert tried(lambda: plan(str(path), "vit_ti", Options()))
    for file in ("model.safetensors", "config.json", "report.json"):
        kept = (tmp_path / "out" / file).read_bytes()
        (tmp_path / "out" / file).write_bytes(path.read_bytes())
        assert tried(lambda: load(tmp_path / "out"))
        (tmp_path / "out" / file).write_bytes(kept)
    assert not mark.exists()
