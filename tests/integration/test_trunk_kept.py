"""Frozen blocks in another precision or place, from the transplant to the evaluation of what was trained."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import copied
from support.tools import tool

import scaleup
from scaleup.common.errors import UserError
from scaleup.config.recipe import load as load_recipe
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Recipe, Trunk
from scaleup.evaluation.accuracy import evaluate
from scaleup.model.build import fresh, load, load_run
from scaleup.model.trunk import is_on_meta
from scaleup.model.tubevit import TubeViT
from scaleup.outputs.conversion import export
from scaleup.training.run import train
from scaleup.training.run_directory import RunResult
from scaleup.transplants.adapted_model import transplant
from scaleup.transplants.transplant_plan import Options

Tiny = Callable[..., Recipe]


def options(placement: str = "device") -> Options:
    return Options(gate_at=2, placement=placement)


@pytest.fixture(scope="module")
def made(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and what a transplant makes of them."""
    place = tmp_path_factory.mktemp("kept")
    described = load_recipe(tiny_path, ["model.positions.kind=backbone"]).model
    for name, seed in (("small", 1), ("large", 2)):
        fresh(described, {}, seed).save_pretrained(place / name)
    transplant(str(place / "small"), str(place / "large"), place / "moved", options())
    return place


@pytest.fixture
def moved(made: Path, tmp_path: Path) -> Path:
    return copied(made, tmp_path) / "moved"


@pytest.fixture
def parents(moved: Path, tmp_path: Path) -> tuple[str, str]:
    return str(tmp_path / "small"), str(tmp_path / "large")


def sweep(tiny_path: Path, moved: Path, out: Path, *changes: str) -> RunResult:
    content = tiny_path.read_text()
    text = content[: content.index("model:")] + f"model: {{load: {moved}}}\n" + content[content.index("data:") :]
    path = moved.parent / "sweep.yaml"
    path.write_text(text.replace("  full: {}\n", "").replace("last: {frozen_depth: 3}", "last: {frozen_depth: 2}"))
    recipe = load_recipe(path, [f"out={out}", "train.steps=2", *changes])
    return train(recipe, sweep_arms(recipe))


@pytest.fixture(scope="module")
def swept(made: Path, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The directory of a sweep of what was moved, with changes; each is made once, and no test may write into it."""

    @cache
    def swept(*changes: str) -> Path:
        out = tmp_path_factory.mktemp("swept") / "out"
        sweep(tiny_path, made / "moved", out, *changes)
        return out

    return swept


def test_a_transplant_from_disk_is_the_transplant(parents: tuple[str, str], moved: Path, tmp_path: Path) -> None:
    report = transplant(*parents, tmp_path / "streamed", options("disk"))
    assert report.image_max_abs_diff == 0 and report.gate.alpha_grad > 0
    ours, wanted = (load_file(path / "delta.safetensors") for path in (tmp_path / "streamed", moved))
    assert ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in ours)
    configs = [json.loads((path / "config.json").read_text()) for path in (tmp_path / "streamed", moved)]
    assert configs[0] == configs[1]  # the very sha256 too, read block by block
    assert load(moved).report["accounting"] == asdict(report.accounting)


def test_a_model_on_disk_gives_what_the_model_gives_and_saves_what_it_is(moved: Path, tmp_path: Path) -> None:
    resident, streamed = load(moved), load(moved, placement="disk")
    assert all(is_on_meta(block) for block in streamed.trunk.blocks)  # type: ignore[union-attr]
    clip = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(streamed.forward_features(clip), resident.forward_features(clip))
    streamed.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/delta.safetensors").read_bytes() == (moved / "delta.safetensors").read_bytes()
    with pytest.raises(UserError, match="cannot be written in full; write a delta"):
        streamed.save_pretrained(tmp_path / "full", kind="full")
    assert not (tmp_path / "full").exists()


def test_a_sweep_from_disk_trains_what_a_sweep_trains(swept: Callable[..., Path]) -> None:
    for arm in ("last", "gated"):  # the second freezes less than the transplant did
        wanted = load_file(swept() / arm / "delta.safetensors")
        for placement in ("host", "disk"):
            found = load_file(swept(f"trunk.placement={placement}") / arm / "delta.safetensors")
            assert found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("placement", ["device", "disk"])
def test_a_sweep_in_low_precision_says_how_far_it_moves_and_saves_exact_weights(
    placement: str, swept: Callable[..., Path], made: Path
) -> None:
    out = swept("trunk.precision=bfloat16", *([] if placement == "device" else [f"trunk.placement={placement}"]))
    kept = json.loads((out / "result.json").read_text())["trunk"]
    assert kept["precision"] == "bfloat16" and kept["drift"].keys() == {"1", "2"}
    assert all(1e-4 < share < 0.05 for share in kept["drift"].values())
    model, before = scaleup.load(out / "last"), scaleup.load(made / "moved")
    for mine, theirs in zip(model.trunk.state_dict().values(), before.trunk.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs) and mine.dtype == torch.float32
    names = load_file(out / "last/delta.safetensors").keys()
    assert {name.split(".")[1] for name in names if name.startswith("blocks.")} == {"2"}


def test_blocks_that_trained_once_keep_their_float32_content(
    tiny_path: Path, moved: Path, tmp_path: Path, swept: Callable[..., Path]
) -> None:
    changed = copied(swept(), tmp_path / "first") / "gated"  # blocks 1 and 2 are no longer the base's
    sweep(tiny_path, changed, tmp_path / "second", "trunk.precision=bfloat16")
    mine, theirs = load(tmp_path / "second/last"), load(changed)
    assert not torch.equal(theirs.blocks[1].mlp.fc1.weight, load(moved).blocks[1].mlp.fc1.weight)  # type: ignore
    for one, other in zip(mine.blocks[:2], theirs.blocks[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_auto_says_what_it_measured(tiny_path: Path, moved: Path, tmp_path: Path) -> None:
    kept = sweep(tiny_path, moved, tmp_path / "auto", "trunk.precision=auto", "trunk.placement=disk").trunk
    assert kept["block_seconds"].keys() == {"float32", "bfloat16", "float16"}
    assert kept["precision"] == min(kept["block_seconds"], key=kept["block_seconds"].get)


def test_a_run_is_evaluated_as_its_trunk_was_kept(swept: Callable[..., Path]) -> None:
    out = swept("trunk.precision=bfloat16")
    recipe = load_recipe(out / "recipe.yaml")
    shards = recipe.data.train["videos"].shards
    for changes, precision in (([], "bfloat16"), (["--precision", "float32", "--placement", "disk"], "float32")):
        done = tool("evaluate", out, shards, "--views", "1x1", "--json", *changes)
        assert done.returncode == 0, done.stderr
        arms = json.loads(done.stdout)["arms"]
        assert {arm["trunk"]["precision"] for arm in arms.values()} == {precision}


def test_placements_give_the_same_accuracy(swept: Callable[..., Path]) -> None:
    shards = load_recipe(swept() / "recipe.yaml").data.train["videos"].shards
    found = [
        evaluate(load_run(swept(), placement=place), shards, "1x1", trunk=Trunk("float32", place))
        for place in ("device", "disk")
    ]
    assert all(found[0][arm].heads == found[1][arm].heads for arm in found[0])


def test_blocks_of_a_full_directory_wait_in_it(tiny_path: Path, moved: Path, tmp_path: Path) -> None:
    export(moved, "full", tmp_path / "full")
    streamed, clip = load(tmp_path / "full", placement="disk"), torch.randn(2, 3, 8, 32, 32)
    assert all(is_on_meta(block) for block in streamed.trunk.blocks)  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.equal(streamed.forward_features(clip), load(moved).forward_features(clip))
    streamed.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "full/model.safetensors").read_bytes()

    for placement in ("device", "disk"):
        sweep(tiny_path, tmp_path / "full", tmp_path / placement, f"trunk.placement={placement}")
    for arm in ("last", "gated"):
        wanted, found = (load_file(tmp_path / place / arm / "model.safetensors") for place in ("device", "disk"))
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    for name, model in load_run(tmp_path / "disk", placement="disk").items():
        alone = load(tmp_path / "disk" / name)
        with torch.no_grad():
            assert torch.equal(model.forward_features(clip), alone.forward_features(clip))


def test_what_cannot_wait_on_disk_is_said(parents: tuple[str, str], moved: Path, tmp_path: Path) -> None:
    torch.save(load_file(tmp_path / "large/model.safetensors"), tmp_path / "large.pt")
    with pytest.raises(UserError, match="blocks cannot stay in .*large.pt; allowed is a .safetensors file"):
        load(moved, base=str(tmp_path / "large.pt"), placement="disk")
    with pytest.raises(UserError, match="its weights are random, not in a file"):
        transplant(parents[0], "vit_ti", tmp_path / "out", Options(weights=None, placement="disk", size=(32, 32)))


def test_without_a_base_nothing_is_lost(tiny: Tiny, tmp_path: Path) -> None:
    """A fresh model knows no public backbone: what is cast keeps its float32 content beside."""
    recipe = tiny("arms={last: {frozen_depth: 3}}", "train.steps=1", "trunk.precision=bfloat16")
    train(recipe, sweep_arms(recipe))
    wanted: TubeViT = fresh(recipe.model, {}, recipe.seed)
    found = load(tmp_path / "out/last")
    for one, other in zip(found.blocks, wanted.blocks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
