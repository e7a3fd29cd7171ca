import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

from scaleup.backbones.backbone import ALIASES, Backbone, resolve
from scaleup.backbones.build import add_blocks, build
from scaleup.common import tensors
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.model.build import fresh

NAME = "timm:vit_tiny_patch16_224"
KWARGS: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
IMAGES = torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(0))


def trained(img_size: tuple[int, int] = (32, 24), **kwargs: Any) -> nn.Module:
    """timm's own model with a classifier, as somebody trained it."""
    torch.manual_seed(7)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=img_size, **KWARGS, **kwargs)
    for tensor in vit.parameters():
        nn.init.normal_(tensor, 0.1, 0.3)
    return vit.eval()


@torch.no_grad()
def assert_same(backbone: Backbone, vit: nn.Module) -> None:
    """The parts, one after the other, compute what the model they came from computes."""
    h = backbone.stem.eval()(IMAGES)
    for block in [backbone.stem.norm_pre, *backbone.blocks]:
        h = block.eval()(h)
    assert torch.equal(backbone.tail.eval()(h), vit.forward_head(vit.forward_features(IMAGES), pre_logits=True))


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_is_a_plain_vit(alias: str) -> None:
    backbone = build(alias, {}, None, "meta")
    assert backbone.name == resolve(alias) and len(backbone.mean) == len(backbone.std) == 3
    assert all(side % each == 0 for side, each in zip(backbone.size, backbone.patch_size, strict=True))
    assert backbone.depth >= 12
    assert all(tensor.is_meta for tensor in backbone.state_dict().values())


def test_a_vit_h_is_what_the_paper_says() -> None:
    backbone = build("vit_h", {}, None, "meta")
    assert (backbone.depth, backbone.embed_dim, backbone.num_heads) == (32, 1280, 16)
    assert sum(p.numel() for p in backbone.source.parameters()) == pytest.approx(632e6, rel=0.01)


def test_random_weights_depend_on_the_seed_alone() -> None:
    def digest(seed: int) -> str:
        torch.manual_seed(seed * 3 + 1)
        return tensors.fingerprint(tensors.hashes(build(NAME, KWARGS, (32, 24), None, seed).source.state_dict()))

    state = torch.get_rng_state()
    build(NAME, KWARGS, (32, 24), None, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert digest(1) == digest(1) != digest(2)


def digest(name: str, **words: Any) -> str:
    return tensors.fingerprint(build(name, KWARGS | words, (32, 24), None, 1).hashes())


def test_fresh_weights_are_those_of_fan_in_unless_the_recipe_says_otherwise() -> None:
    assert digest(NAME) == digest(NAME, weight_init="jax")
    torch.manual_seed(1)
    own = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(32, 24), **KWARGS)
    assert digest(NAME, weight_init="") == tensors.fingerprint(tensors.hashes(own.state_dict())) != digest(NAME)


WIDE = {"timm:deit_small_patch16_224": {"num_heads": 2}, "timm:eva02_tiny_patch14_224": {"num_heads": 2}}
WIDE |= {"timm:vit_small_patch16_rope_224": {"num_heads": 2}, NAME: {"num_heads": 2}}
WIDE |= {"open_clip:ViT-B-32": {"head_width": 12}, "open_clip:ViT-B-16-SigLIP": {"num_heads": 2}}


def spread(blocks: nn.Module) -> dict[str, float]:
    """Of each matrix the standard deviation times the root of its fan-in; 1 keeps a signal as strong as it is."""
    matrices = {name: tensor for name, tensor in blocks.named_parameters() if tensor.dim() == 2}
    return {name: (tensor.std() * tensor.shape[1] ** 0.5).item() for name, tensor in matrices.items()}


@pytest.mark.parametrize("width", [24, 192])
@pytest.mark.parametrize("name", WIDE)
def test_fresh_blocks_start_fan_in_at_every_width(name: str, width: int) -> None:
    own = name == "open_clip:ViT-B-32"  # the others are timm's, also that inside open_clip
    words = {"width" if own else "embed_dim": width, "layers" if own else "depth": 2} | WIDE[name]
    found = spread(nn.ModuleList(build(name, words, None, None, 1).blocks))
    assert len(found) >= 8 and all(0.5 < each < 1.3 for each in found.values()), found


def test_blocks_that_are_added_start_fan_in(tmp_path: Path) -> None:
    save_file(trained().state_dict(), tmp_path / "vit.safetensors")
    grown = add_blocks(build(NAME, KWARGS, (32, 24), str(tmp_path / "vit.safetensors")), 2, 1)
    found = spread(nn.ModuleList(grown.blocks[2:]))
    assert len(found) == 8 and all(0.5 < each < 1.3 for each in found.values()), found


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_weights_file_gives_its_model_and_names_what_it_leaves(suffix: str, tmp_path: Path) -> None:
    vit, path = trained(), tmp_path / f"vit{suffix}"
    if suffix == ".pth":
        torch.save({"model": {f"module.{name}": tensor for name, tensor in vit.state_dict().items()}}, path)
    else:
        save_file(vit.state_dict(), path)
    backbone = build(NAME, KWARGS, (32, 24), str(path))
    assert_same(backbone, vit)
    assert backbone.left.keys() == {"head.weight", "head.bias"} and backbone.weights == str(path)
    assert all(tensor.dtype == torch.float32 for tensor in backbone.state_dict().values())


def test_positions_of_another_input_size_are_resampled(tmp_path: Path) -> None:
    save_file(trained((32, 32)).state_dict(), tmp_path / "vit.safetensors")
    backbone = build(NAME, KWARGS, (64, 48), str(tmp_path / "vit.safetensors"))
    assert backbone.stem.position_grid().shape == (8, 6, 24) and backbone.stem(torch.zeros(1, 3, 64, 48)).shape[1] == 49


def test_positions_are_left_where_the_model_is_built_without(tmp_path: Path) -> None:
    save_file(trained().state_dict(), tmp_path / "vit.safetensors")
    backbone = build(NAME, KWARGS | {"pos_embed": "none"}, (32, 24), str(tmp_path / "vit.safetensors"))
    assert backbone.left.keys() == {"head.weight", "head.bias", "pos_embed"}
    assert backbone.stem.position_grid().abs().max() == 0


@pytest.mark.parametrize("safe", ["both", False])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_timms_own_directories(safe: Any, pool: str, tmp_path: Path) -> None:
    vit = trained(global_pool=pool)
    save_for_hf(vit, tmp_path / "vit", safe_serialization=safe)
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "license": "their own"}
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    backbone = build(str(tmp_path / "vit"), {}, None, "pretrained")
    assert_same(backbone, vit)
    assert backbone.name == NAME and backbone.mean == (0.1, 0.2, 0.3) and backbone.license == "their own"
    assert backbone.size == (32, 24) and backbone.left.keys() == {"head.weight", "head.bias"}
    again = build(backbone.name, backbone.kwargs, backbone.size, backbone.weights)  # what config.json keeps
    assert_same(again, vit)


@pytest.mark.parametrize(
    "config", ["[]", "3", "{}", '{"architecture": "vit"}', '{"architecture": 3, "pretrained_cfg": 4}']
)
def test_directories_of_something_else_are_refused(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="config.json"):
        build(str(tmp_path), {}, None, "pretrained")


def test_a_bare_file_of_an_aliased_model_names_it_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for alias in ALIASES.keys() - {"vit_ti", "vit_b", "vit_h"}:  # to build fewer
        monkeypatch.delitem(ALIASES, alias)
    with torch.device("meta"):
        shapes = timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict()
    save_file({name: torch.full(tensor.shape, 0.5) for name, tensor in shapes.items()}, tmp_path / "mine.safetensors")
    backbone = build(str(tmp_path / "mine.safetensors"), {}, None, "pretrained")
    assert backbone.name == NAME and backbone.weights == str(tmp_path / "mine.safetensors")
    assert (backbone.stem.pos_embed == 0.5).all()
    save_file({"weight": torch.zeros(100)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="has the tensors of none of .*vit_huge.*; give timm:NAME or open_clip:NAME"):
        build(str(tmp_path / "other.safetensors"), {}, None, "pretrained")


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("vit_hh", {}, "unknown backbone 'vit_hh'; allowed are vit_ti.*nearest: 'vit_h'"),
        ("timm:vit_hugee_patch14_224", {}, "unknown timm model .*nearest: 'vit_huge_patch14_224"),
        ("timm:resnet18", {}, "is a ResNet, not a plain ViT"),
        ("timm:vit_base_patch16_rpn_224", {}, "its blocks normalise their output"),
        ("timm:beit_base_patch16_224", {}, "a table with an entry for each pair of patches"),
        ("timm:swin_tiny_patch4_window7_224", {}, "its windows are cut from a grid"),
        ("timm:vit_base_r26_s32_224", {}, "its patches come from a convolutional network"),
        ("timm:vit_medium_patch16_reg1_gap_256", {"block_fn": 3}, "timm cannot build"),
        (NAME, {"embed_dims": 3}, "unexpected keyword argument 'embed_dims'"),
        (NAME, {"embed_dim": 25}, "timm cannot build"),
        (NAME, {"depth": 0}, "not a plain ViT"),
        (NAME, {"parallel_scaling": 2}, "timm cannot build"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, kwargs: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        build(name, kwargs, None, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm.weight": None}, "model: it lacks norm.weight$"),
        ({"blocks.2.norm1.weight": torch.zeros(24)}, "model: it has besides blocks.2.norm1.weight$"),
        ({"blocks.0.attn.qkv.weight": torch.zeros(72, 25)}, r"differs in .* \(72, 25\) where \(72, 24\) belongs"),
        ({"pos_embed": torch.zeros(3)}, "does not have the weights of this model"),
        ({"patch_embed.proj.weight": torch.zeros(7)}, "does not have the weights of this model"),
        ({"encoder": torch.zeros(7)}, "does not have the weights of this model"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict, words: str, tmp_path: Path) -> None:
    state = trained().state_dict() | change
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=words):
        build(NAME, KWARGS, (32, 24), str(tmp_path / "vit.safetensors"))


def test_our_own_directories(tmp_path: Path) -> None:
    settings = schema.Model(
        backbone=schema.Backbone(NAME, dict(KWARGS)),
        input=schema.Input(frames=8, size=[32, 24], mean=[0.1, 0.2, 0.3]),
        frames=schema.Frames(stride=4),
        tubes={"long": schema.Tube([4, 4, 4], [4, 8, 8])},
    )
    model = fresh(settings, {"shape": ["a", "b"]}, 3).eval()
    model.save_pretrained(tmp_path / "own")
    backbone = build(str(tmp_path / "own"), {}, None, "pretrained")
    left = {"heads.shape.weight", "heads.shape.bias", "tubes.long.weight", "tubes.long.bias"}
    assert backbone.left.keys() == left and backbone.size == (32, 24) and backbone.mean == (0.1, 0.2, 0.3)
    held = load_file(tmp_path / "own" / "model.safetensors")
    assert held.keys() == left | backbone.state_dict().keys()
    assert all(torch.equal(tensor, held[name]) for name, tensor in backbone.state_dict().items())
    (tmp_path / "own" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has none of model.safetensors.*--to full"):
        build(str(tmp_path / "own"), {}, None, "pretrained")
