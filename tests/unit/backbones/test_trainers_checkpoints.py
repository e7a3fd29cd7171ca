"""Weights as trainers keep them, from what a user writes to the backbone."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from scaleup.backbones.build import build
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.model.build import load
from scaleup.transplants.adapted_model import transplant
from scaleup.transplants.transplant_plan import Options

NAME, KWARGS = "timm:vit_tiny_patch16_224", {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
SIZE, PROBE = (32, 32), "blocks.0.attn.qkv.weight"


def drawn(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=3, **KWARGS).state_dict()


PLAIN, EMA = drawn(0), drawn(1)


def under(before: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {before + name: tensor for name, tensor in state.items()}


def taken(place: str | Path) -> str:
    weight = build(NAME, KWARGS, SIZE, str(place)).state_dict()[PROBE]
    return next(which for which, state in (("plain", PLAIN), ("ema", EMA)) if torch.equal(weight, state[PROBE]))


@pytest.mark.parametrize("legacy", [False, True])
def test_an_average_is_taken_and_said_and_the_weights_may_be_chosen(
    legacy: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = {
        "epoch": 3,
        "state_dict": PLAIN,
        "state_dict_ema": under("module.", EMA),
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "big.pt", _use_new_zipfile_serialization=not legacy)
    assert taken(tmp_path / "big.pt") == "ema"
    said = (
        "big.pt: holds state_dict and state_dict_ema; taking state_dict_ema, as timm does; choose with FILE:state_dict"
    )
    assert capfd.readouterr().err == f"{said}; of the model, head left out\n"
    assert taken(f"{tmp_path / 'big.pt'}:state_dict") == "plain"
    assert capfd.readouterr().err == "big.pt: of the model, head left out\n"
    with pytest.raises(
        UserError, match="big.pt has no model 'state_dict_eam'; allowed are .*nearest: 'state_dict_ema'"
    ):
        taken(f"{tmp_path / 'big.pt'}:state_dict_eam")


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    torch.save({"student": PLAIN, "teacher": EMA}, tmp_path / "big.pt")
    torch.save(PLAIN, tmp_path / "big.pt:teacher")
    assert taken(tmp_path / "big.pt:teacher") == "plain"
    (tmp_path / "at 12:30").mkdir()
    shutil.copy(tmp_path / "big.pt", tmp_path / "at 12:30" / "pytorch_model.bin")
    assert taken(tmp_path / "at 12:30" / "pytorch_model.bin") == taken(tmp_path / "at 12:30") == "ema"
    assert taken(f"{tmp_path / 'at 12:30'}:student") == "plain"
    with pytest.raises(UserError, match="there is no file .*none.pt:teacher"):
        taken(tmp_path / "none.pt:teacher")


@pytest.mark.parametrize("place", ["{}:teacher", "local-dir:{}:teacher", "{}/model.safetensors:teacher"])
def test_one_of_the_models_of_a_directory(place: str, tmp_path: Path) -> None:
    save_file(under("student.", PLAIN) | under("teacher.backbone.", EMA), tmp_path / "model.safetensors")
    backbone = build(NAME, KWARGS, SIZE, place.format(tmp_path))
    assert (
        backbone.weights == f"{tmp_path}/model.safetensors:teacher" and backbone.file == tmp_path / "model.safetensors"
    )
    assert backbone.origin[PROBE] == f"teacher.backbone.{PROBE}"
    waiting = build(NAME, KWARGS, SIZE, place.format(tmp_path), on_disk=1)
    assert waiting.blocks[0].attn.qkv.weight.is_meta and waiting.hashes() == backbone.hashes()


def test_a_file_of_two_models_as_a_backbone(tmp_path: Path) -> None:
    torch.manual_seed(2)
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    torch.save({"teacher": drawn(1), "student": state}, tmp_path / "big.pt")
    backbone = build(f"{tmp_path / 'big.pt'}:student", {}, None, "pretrained")
    assert backbone.name == NAME and backbone.weights == f"{tmp_path / 'big.pt'}:student"
    assert torch.equal(backbone.state_dict()[PROBE], state[PROBE])


def write_parts(directory: Path, state: dict[str, Tensor]) -> Path:
    places = {name: f"model-0000{1 + n % 2}-of-00002.safetensors" for n, name in enumerate(state)}
    for part in set(places.values()):
        save_file({name: state[name] for name in state if places[name] == part}, directory / part)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 3}, "weight_map": places}))
    return index


def test_weights_in_parts(tmp_path: Path) -> None:
    index = write_parts(tmp_path, PLAIN)
    assert taken(index) == taken(tmp_path) == "plain"
    backbone, waiting = (build(NAME, KWARGS, SIZE, str(tmp_path), on_disk=count) for count in (0, 1))
    assert backbone.weights == str(index) and waiting.blocks[0].attn.qkv.weight.is_meta
    assert waiting.hashes() == backbone.hashes()
    file = waiting.block_file()
    assert file is not None and torch.equal(file.read(0, "attn.qkv.weight"), PLAIN[PROBE])


@pytest.mark.parametrize("whole", [True, False])
def test_weights_in_parts_on_a_hub(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    at = tmp_path / "hub/models--me--vit"
    (at / "refs").mkdir(parents=True)
    (at / "refs/main").write_text("0" * 40)
    (at / "snapshots" / ("0" * 40)).mkdir(parents=True)
    index = write_parts(at / "snapshots" / ("0" * 40), PLAIN)
    blobs = at / "blobs"  # where the cache keeps files, under other names
    blobs.mkdir()
    for number, path in enumerate(sorted(index.parent.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    if whole:
        assert taken("hf-hub:me/vit") == taken(index.parent) == taken(index) == "plain"
        return
    (index.parent / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="hf-hub:me/vit .* is not in the cache and could not be fetched"):
        taken("hf-hub:me/vit")


def test_a_model_of_a_file_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    at = tmp_path / "hub/models--me--vit"
    (at / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (at / "refs").mkdir(parents=True)
    (at / "refs/main").write_text("0" * 40)
    torch.save({"student": PLAIN, "teacher": EMA}, at / "snapshots" / ("0" * 40) / "pytorch_model.bin")
    assert taken("hf-hub:me/vit") == "ema" and taken("hf-hub:me/vit:student") == "plain"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}, "param_groups": [{"lr": 0.1}]}},
            "does not have the w",
        ),
        ({"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}], "name": "x" * 64}, "holds no tensors by name"),
        ({"ema": {"shadow_params": [torch.ones(9)]}, "decay": 0.999, "name": "x" * 64}, "holds no tensors by name"),
        ({"left": PLAIN, "right": EMA}, "tensors of two models, left and right; name one of them: .*a.pt:left"),
    ],
)
def test_files_without_a_model_get_a_sentence(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match=words) as error:
        taken(tmp_path / "a.pt")
    assert "\n" not in str(error.value)


def test_decoders_and_masks_of_pretraining_are_left_out_and_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight", "fc.weight"]
    torch.save({"model": PLAIN | {name: torch.ones(3) for name in more}}, tmp_path / "mae.pth")
    backbone = build(NAME, KWARGS, SIZE, str(tmp_path / "mae.pth"))
    assert backbone.left.keys() == {*more, "head.weight", "head.bias"}
    assert capfd.readouterr().err == (
        "mae.pth: of the model, mask_token, head, decoder_pos_embed, decoder_embed and 2 more left out\n"
    )


def test_half_precision_and_shared_tensors(tmp_path: Path) -> None:
    shared = PLAIN["norm.weight"].half()
    state = {name: tensor.bfloat16() for name, tensor in PLAIN.items()} | {"norm.weight": shared, "norm.bias": shared}
    torch.save({"model_ema": under("_orig_mod.module.", state)}, tmp_path / "a.ckpt")
    own = build(NAME, KWARGS, SIZE, str(tmp_path / "a.ckpt")).state_dict()
    assert torch.equal(own["norm.bias"], shared.float()) and torch.equal(own[PROBE], PLAIN[PROBE].bfloat16().float())


def test_a_delta_knows_which_model_of_the_file_it_is_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scaleup.model.build import fresh

    tubes = {"long": schema.Tube([4, 4, 4], [4, 8, 8])}
    settings = schema.Model(schema.Backbone(NAME, KWARGS), input=schema.Input(8, [32, 32]), tubes=tubes)
    fresh(settings, {"a": ["x", "y"]}, 0).save_pretrained(tmp_path / "small")
    torch.save({"student": PLAIN, "teacher": EMA}, tmp_path / "big.pt")
    monkeypatch.chdir(tmp_path)
    config = {"pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}, "model_args": KWARGS}
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit/config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"} | config))
    transplant("small", "vit", tmp_path / "out", Options(weights="big.pt:student", gate_at=1))
    saved = json.loads((tmp_path / "out/config.json").read_text())
    assert saved["backbone"]["weights"] == f"{tmp_path}/big.pt:student"
    monkeypatch.chdir("/")
    model = load(tmp_path / "out")
    assert torch.equal(model.state_dict()["trunk.blocks.0.attn.qkv.weight"], PLAIN[PROBE])
    with pytest.raises(UserError, match="sha256"):
        load(tmp_path / "out", base=f"{tmp_path}/big.pt:teacher")
    (tmp_path / "big.pt").unlink()
    with pytest.raises(UserError, match="the base weights of .* are not at .*big.pt:student"):
        load(tmp_path / "out")


def test_tubes_come_from_the_average_of_a_small_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from scaleup.model.build import fresh
    from scaleup.transplants import donor

    tubes = {"long": schema.Tube([4, 4, 4], [4, 8, 8])}
    settings = schema.Model(schema.Backbone(NAME, KWARGS), input=schema.Input(8, [32, 32]), tubes=tubes)
    model = fresh(settings, {"a": ["x", "y"]}, 0)
    model.save_pretrained(tmp_path / "small")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = {name: tensor + 1 for name, tensor in state.items()}
    torch.save(
        {"state_dict": state, "state_dict_ema": average, "args": argparse.Namespace()}, tmp_path / "small/last.ckpt"
    )
    (own,) = donor.read(tmp_path / "small").kernels
    (kernel,) = donor.read(tmp_path / "small/last.ckpt").kernels
    assert torch.equal(kernel.weight, own.weight + 1)
    assert "last.ckpt: holds state_dict and state_dict_ema; taking state_dict_ema" in capfd.readouterr().err
    (kernel,) = donor.read(f"{tmp_path}/small/last.ckpt:state_dict").kernels
    assert torch.equal(kernel.weight, own.weight)
