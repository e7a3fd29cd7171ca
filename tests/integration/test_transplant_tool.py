"""The transplant as users run it: what it prints, what it writes, and what it says to mistakes."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tools

import scaleup
from scaleup.backbones.build import build
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.model.build import fresh
from scaleup.transplants.adapted_model import plan, transplant
from scaleup.transplants.transplant_plan import Options

run = partial(tools.tool, "transplant")
TINY = {"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds a whole image model of ours, 48 wide."""
    path = tmp_path_factory.mktemp("large") / "large"
    model(48, {}).save_pretrained(path, kind="full")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    model(24, {"long": schema.Tube([4, 8, 8], [4, 16, 16])}).save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def model(width: int, tubes: dict[str, schema.Tube]) -> Any:
    settings = schema.Model(
        backbone=schema.Backbone("timm:vit_tiny_patch16_224", TINY | {"embed_dim": width, "depth": 2}),
        input=schema.Input(frames=8, size=[32, 32]),
        frames=schema.Frames(stride=8),
        tubes=tubes,
    )
    return fresh(settings, {"shape": ["a", "b"]}, 3)


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_one_command_writes_a_model_and_measures_it(small: Path, large: Path, tmp_path: Path) -> None:
    done = run(small, large, "--out", tmp_path / "out", "--gate-at", 1, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["gate"]["frozen_depth"] == 1 and report["tubes"]["long"]["fold"] == [2, 1, 1]
    assert report["image_max_abs_diff"] == 0 and report["tubes"]["long"]["token_max_abs_diff"] < 1e-5
    assert files(tmp_path / "out") == {"config.json", "delta.safetensors", "report.json", "README.md"}
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["tubes"] == report["tubes"] and written["parents"] == report["parents"]
    adapted = scaleup.load(tmp_path / "out")
    assert adapted.tokenize(torch.zeros(1, 3, 8, 32, 32)).shape == (1, report["tokens"], 48)


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def mistakes(small: Path, large: Path, directory: Path) -> dict[str, tuple[list, str]]:
    """Arguments, and what is said of them."""
    out = ["--out", directory / "out"]
    (directory / "page.safetensors").write_text("<!DOCTYPE html><html><body>" + "Sign in " * 20)
    torch.save(
        {"state_dict": load_file(small / "model.safetensors"), "code": Code(directory / "proof")},
        directory / "evil.ckpt",
    )
    return {
        "web page": ([directory / "page.safetensors", large, *out], "is a web page"),
        "code": ([directory / "evil.ckpt", large, *out], "nothing was run"),
        "unknown backbone": ([small, "vit_hhh", *out], "unknown backbone 'vit_hhh'"),
        "existing output": ([small, large, "--out", small], "exists"),
    }


@pytest.mark.parametrize("name", ["web page", "code", "unknown backbone", "existing output"])
def test_a_mistake_is_one_line_and_leaves_nothing(name: str, small: Path, large: Path, tmp_path: Path) -> None:
    arguments, words = mistakes(small, large, tmp_path)[name]
    before = files(tmp_path)
    done = run(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert files(tmp_path) == before and "proof" not in before
    assert (small / "model.safetensors").exists()


def damaged(kind: str, small: Path) -> Path:
    """A small model's checkpoint, damaged."""
    whole, state = small / "model.safetensors", load_file(small / "model.safetensors")
    path = small / f"damaged{'.pt' if kind.endswith('pt') else '.safetensors'}"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(whole.read_bytes()[:-1000])
    elif kind == "truncated pt":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "without tubes":
        save_file({name: tensor for name, tensor in state.items() if "tubes" not in name}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "has 0 bytes"),
        ("truncated", "is not a complete safetensors file"),
        ("truncated pt", "is not a complete torch checkpoint"),
        ("without tubes", "lacks tubes.shared, tubes.long.bias|lacks .*of the tube 'long'"),
        ("absent", "there is no file"),
    ],
)
def test_damaged_small_models_are_refused(kind: str, words: str, small: Path, large: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        transplant(str(damaged(kind, small)), str(large), tmp_path / "out", Options())
    assert files(tmp_path) == {"small"}


@pytest.mark.parametrize(
    ("backbone", "options", "words"),
    [
        ("timm:vit_bass_patch16_224", {}, "unknown timm model .* nearest: 'vit_base_patch16_224"),
        ("timm:resnet18", {"weights": None}, "is a ResNet, not a plain ViT"),
        ("vit_ti", {"exact": True}, None),
        (
            "vit_l",
            {"exact": True, "size": (32, 32)},
            "'long' emits 24 channels.* width 1024; tubes of 64, 128, 256, 512",
        ),
        ("vit_b", {"size": (32, 4)}, "do not divide an input of 32x4; nearest are 32 high and 16 or 32 wide"),
    ],
)
def test_plans_that_cannot_be_are_refused(backbone: str, options: dict, words: str | None, small: Path) -> None:
    if words is None:
        assert plan(str(small), backbone, Options(**options)).tubes["long"].exact
        return
    with pytest.raises(UserError, match=words):
        plan(str(small), backbone, Options(**options))


def test_a_clip_too_short_for_a_tube_is_refused(small: Path, large: Path, tmp_path: Path) -> None:
    config = json.loads((small / "config.json").read_text())
    config["input"]["frames"] = 3
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="tube 'long' needs at least 4 along t .*the input has 3"):
        transplant(str(small), str(large), tmp_path / "out", Options())
    assert files(tmp_path) == {"small"}


def test_a_backbone_of_other_weights_is_refused(small: Path, large: Path, tmp_path: Path) -> None:
    other = build("timm:vit_tiny_patch16_224", TINY, (32, 32)).source.state_dict()
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not have the weights of this model"):
        transplant(str(small), str(large), tmp_path / "out", Options(weights=str(tmp_path / "other.safetensors")))
    assert not (tmp_path / "out").exists()
