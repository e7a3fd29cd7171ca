"""Adapters: one on every layer that is called, the identity at first, and what their formulas say afterwards."""

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.marks import at_length
from test_model import IMAGES, VIDEOS, adapted, pointers
from torch import Tensor, nn

import scaleup
from scaleup.backbones.build import build
from scaleup.checkpoint.model_directory import ModelConfig
from scaleup.common import tensors
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.model.adapter import KINDS, Adapt, adapted_layers
from scaleup.model.build import fresh
from scaleup.model.tubevit import TubeViT

EACH = pytest.mark.parametrize("kind", KINDS)
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
CLIP = {"width": 32, "layers": 2, "head_width": 16, "patch_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "timm:vit_tiny_patch16_224": SMALL | {"qk_norm": True},
    "timm:vit_giant_patch14_dinov2": SMALL,  # SwiGLU, layer scale
    "timm:vit_small_patch16_18x2_224": SMALL,  # two attentions and two MLPs side by side
    "timm:vit_base_patch16_xp_224": SMALL,  # attention and MLP in one
    "timm:vit_dpwee_patch16_reg1_gap_256": SMALL,  # differential attention
    "timm:eva_giant_patch14_224": SMALL,  # biases that pass by the layer of queries, keys and values
    "timm:eva02_base_patch16_clip_224": SMALL,  # queries, keys and values apart; SwiGLU
    "timm:vit_small_patch16_dinov3": SMALL,
    "timm:vit_small_patch16_dinov3_qkvb": SMALL,
    "timm:vit_pe_core_base_patch16_224": SMALL,
    "timm:vit_base_patch16_sapiens2": SMALL | {"num_kv_heads": [2, 1]},  # grouped queries
    "open_clip:ViT-B-32": CLIP,  # torch's own attention
    "open_clip:ViT-B-16": CLIP | {"qk_norm": True, "scale_heads": True, "scale_attn": True, "scale_fc": True},
}


def family(name: str) -> TubeViT:
    """A shrunken model of a family, no two of its tensors alike."""
    described = schema.Model(
        backbone=schema.Backbone(name, FAMILIES[name]),
        input=schema.Input(frames=4, size=[28, 28] if "patch14" in name else [32, 32]),
        frames=schema.Frames(stride=4),
        tubes={"long": schema.Tube([4, 4, 4], [4, 8, 8])},
        positions=schema.Positions("backbone"),
    )
    return scattered(fresh(described, {"motion": ["left", "right"]}, 0))


def scattered(model: TubeViT, only: str = "") -> TubeViT:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if only in name:
            nn.init.normal_(parameter, 0.05, 0.2)
    return model


def trained(kind: str, frozen_depth: int = 2, depth: int = 4, **kwargs: Any) -> tuple[TubeViT, nn.Module]:
    """A model with an adapter that is not the identity any more, and timm's own model below it."""
    template, vit = adapted(frozen_depth, depth=depth, **kwargs)
    model = template.with_arm(frozen_depth, True, template.config.heads, adapt=Adapt(kind, 3, 2.0))
    return scattered(model, ".default").eval(), vit


def called(model: TubeViT, x: Tensor) -> set[str]:
    """Linear layers of the late blocks that are called as modules."""
    seen: set[str] = set()
    blocks = model.arm.blocks.named_modules()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: seen.add(name))
        for name, module in blocks
        if isinstance(module, nn.Linear)
    ]
    model.forward_features(x)
    for hook in hooks:
        hook.remove()
    return seen


EVERYWHERE = [("lora", name) for name in FAMILIES]
ELSEWHERE = [(kind, name) for kind in KINDS if kind != "lora" for name in FAMILIES]
FEW = ELSEWHERE[:: len(FAMILIES) // 2]  # of the other kinds


@pytest.mark.parametrize(
    ("kind", "name"), [*EVERYWHERE, *FEW, *at_length(*(pair for pair in ELSEWHERE if pair not in FEW))]
)
def test_every_layer_that_is_called_gets_an_adapter_that_learns(name: str, kind: str) -> None:
    template = family(name).eval()
    x = torch.randn(2, 3, 4, *template.preprocess.size)
    layers = called(template.with_arm(1, False, {}), x)
    model = template.with_arm(1, False, {}, adapt=Adapt(kind, 2)).eval()
    found = adapted_layers(model.arm.blocks)
    assert found.keys() == layers if kind != "ia3" else found.keys() <= layers
    with torch.no_grad():  # torch's own attention computes otherwise where its weights train
        begins, before = model.forward_features(x), template.forward_features(x)
    if kind == "dora":  # a weight over its norm, times its norm
        torch.testing.assert_close(begins, before, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(begins, before)
    scattered(model, ".default").forward_features(x).square().sum().backward()
    trains = {name for name, parameter in model.arm.named_parameters() if parameter.requires_grad}
    assert all((model.arm.get_parameter(name).grad.abs() > 0).any() for name in trains)
    assert trains == {name for name, _ in model.arm.named_parameters() if "blocks" not in name or ".default" in name}
    assert len(trains) > 2 * len(found) if kind != "ia3" else len(trains) > len(found)


def by_hand(model: TubeViT, vit: nn.Module, kind: str) -> None:
    """Put the weights that the papers' formulas give into timm's own model."""
    state = dict(model.arm.blocks.named_parameters())
    for name, layer in adapted_layers(model.arm.blocks).items():
        target = vit.get_submodule(f"blocks.{name}")
        weight, bias = layer.base_layer.weight, layer.base_layer.bias
        if kind == "ia3":
            scale = state[f"{name}.ia3_l.default"].flatten()
            gives = name.endswith("qkv")
            target.weight.data = weight * (scale[:, None] if gives else scale)
            target.bias.data = bias * scale if gives else bias
        else:
            change = state[f"{name}.lora_B.default.weight"] @ state[f"{name}.lora_A.default.weight"] * 2.0 / 3
            target.weight.data = weight + change
        if kind == "dora":
            norm = target.weight.data.square().sum(1, keepdim=True).sqrt()
            target.weight.data *= state[f"{name}.lora_magnitude_vector.default.weight"][:, None] / norm


@EACH
@torch.no_grad()
def test_an_adapter_is_its_formula(kind: str) -> None:
    model, vit = trained(kind)
    before = vit(IMAGES)
    vit = copy.deepcopy(vit)  # the model shares its weights
    by_hand(model, vit, kind)
    wanted = vit(IMAGES)
    torch.testing.assert_close(model.forward_features(IMAGES), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, wanted, rtol=0.01, atol=0.01)


def test_what_is_drawn_depends_on_seed_and_name_alone() -> None:
    template, _ = adapted(2)

    def drawn(depth: int, seed: int, kind: str = "lora") -> dict[str, Tensor]:
        torch.manual_seed(depth)
        blocks = template.with_arm(depth, False, {}, seed, Adapt(kind)).arm.blocks
        return {name: tensor for name, tensor in blocks.named_parameters() if ".lora_A." in name}

    alone, together, other = drawn(3, 5), drawn(1, 5), drawn(3, 6)
    assert len(alone) == 4 and len(together) == 12
    assert all(torch.equal(alone[name], together[name]) for name in alone)
    everything = [*together.values(), *other.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(everything) for b in everything[:i] if a.shape == b.shape)
    assert all(0.8 < tensor.abs().max() * tensor.shape[1] ** 0.5 <= 1 for tensor in everything)  # U(+-1 / sqrt(fan-in))
    assert all(torch.equal(alone[name], tensor) for name, tensor in drawn(3, 5, "dora").items())


@pytest.mark.parametrize("kind", [*KINDS, "none"])
@pytest.mark.parametrize("frozen_depth", [0, 2])
def test_frozen_weights_are_shared_and_what_trains_is_the_arms_own(kind: str, frozen_depth: int) -> None:
    template, _ = adapted(3)
    before, modes = template(VIDEOS, "shape"), [module.training for module in template.modules()]
    arms = [template.with_arm(frozen_depth, False, template.config.heads, adapt=Adapt(kind)) for _ in range(2)]
    for arm in arms:
        arm.train()
    own = [{p.data_ptr() for p in model.arm.parameters() if p.requires_grad} for model in arms]
    kept = [{p.data_ptr() for p in model.arm.blocks.parameters() if not p.requires_grad} for model in arms]
    assert kept[0] == kept[1] and kept[0] <= pointers(template) and len(kept[0]) == 12 * (4 - frozen_depth)
    assert not own[0] & own[1] and not own[0] & pointers(template)
    assert [module.training for module in template.modules()] == modes
    full = template.with_arm(frozen_depth, False, template.config.heads)  # after the others froze what they share
    assert all(parameter.requires_grad for parameter in full.arm.parameters())
    for parameter in (p for model in [*arms, full] for p in model.arm.parameters() if p.requires_grad):
        parameter.data.zero_()
    assert torch.equal(template(VIDEOS, "shape"), before)


def test_blocks_of_which_nothing_trains_drop_nothing() -> None:
    template, _ = adapted(1, proj_drop_rate=0.5, drop_path_rate=0.5)
    for kind, stays in (("none", True), ("lora", False), ("full", False)):
        arm = template.with_arm(1, True, {}, adapt=Adapt(kind)).train().arm
        taps = template.trunk(VIDEOS, [1])[1]
        assert torch.equal(arm.features(taps), arm.features(taps)) == stays
        assert arm.tail.training


@EACH
@torch.no_grad()
def test_peft_puts_the_adapter_on_timms_own_model(kind: str, tmp_path: Path) -> None:
    """More layers than peft lists one by one, and early blocks that must stay as they are."""
    model, vit = trained(kind, frozen_depth=2, depth=9)
    before = vit(IMAGES)
    model.save_pretrained(tmp_path / "out")
    directory = tmp_path / "out" / "adapter"
    found = peft.PeftModel.from_pretrained(vit, str(directory)).eval()
    assert torch.equal(found(IMAGES), model.forward_features(IMAGES))
    assert not torch.allclose(found(IMAGES), before, rtol=0.01, atol=0.01)
    assert peft.get_peft_model_state_dict(found).keys() == load_file(directory / "adapter_model.safetensors").keys()
    targets = json.loads((directory / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)  # not in the order of a set, which changes from run to run


@EACH
@torch.no_grad()
def test_peft_puts_the_adapter_on_open_clips_own_tower(kind: str, tmp_path: Path) -> None:
    template = family("open_clip:ViT-B-32").eval()
    model = scattered(template.with_arm(1, False, {}, adapt=Adapt(kind)), ".default").eval()
    model.save_pretrained(tmp_path / "out")
    tower = build("open_clip:ViT-B-32", CLIP, (32, 32)).source.eval()
    tower.load_state_dict(
        {name: tensor for name, tensor in template.named_tensors().items() if name in tower.state_dict()}
    )
    found = peft.PeftModel.from_pretrained(tower, str(tmp_path / "out" / "adapter")).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found(images), model.forward_features(images))
    assert not torch.allclose(found(images), template.forward_features(images), rtol=0.01, atol=0.01)


def reloadable(kind: str, frozen_depth: int, directory: Path) -> TubeViT:
    """A model with an adapter whose backbone's weights are in a file."""
    _, vit = adapted()
    save_file(vit.state_dict(), directory / "base.safetensors")
    described = schema.Model(
        backbone=schema.Backbone(
            "timm:vit_tiny_patch16_224",
            {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2},
            str(directory / "base.safetensors"),
        ),
        input=schema.Input(frames=8, size=[32, 24]),
        frames=schema.Frames(stride=4),
        tubes={"long": schema.Tube([4, 4, 4], [4, 8, 8])},
        positions=schema.Positions("backbone"),
    )
    template = fresh(described, {"motion": ["left", "right"]}, 0)
    model = template.with_arm(frozen_depth, frozen_depth > 0, template.config.heads, adapt=Adapt(kind, 3, 2.0))
    model.base = tensors.hashes(dict(vit.state_dict()))
    return scattered(model, ".default").eval()


@EACH
@pytest.mark.parametrize(("to", "frozen_depth"), [("delta", 2), ("full", 2), ("full", 0)])
def test_a_model_with_an_adapter_comes_back_bit_for_bit(kind: str, to: str, frozen_depth: int, tmp_path: Path) -> None:
    model = reloadable(kind, frozen_depth, tmp_path)
    model.save_pretrained(tmp_path / "out", to)
    found = scaleup.load(tmp_path / "out")
    ours, theirs = model.state_dict(), found.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(found(VIDEOS), model(VIDEOS))
    assert found.config == model.config and found.config.adapter == Adapt(kind, 3, 2.0).adapter
    assert [t.requires_grad for t in found.parameters()] == [t.requires_grad for t in model.parameters()]
    found.save_pretrained(tmp_path / "again", to)
    files = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {str(name) for name in files} >= {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in files)


def test_a_tensor_is_stored_once(tmp_path: Path) -> None:
    model = reloadable("lora", 2, tmp_path)
    model.save_pretrained(tmp_path / "out", "full")
    whole, beside = (
        load_file(tmp_path / "out" / name) for name in ("model.safetensors", "adapter/adapter_model.safetensors")
    )
    assert "a lora adapter on the blocks above" in (tmp_path / "out" / "README.md").read_text()
    assert len(whole) + len(beside) == len(model.state_dict()) and len(beside) == 2 * 4 * 2
    assert load_file(tmp_path / "base.safetensors").keys() < whole.keys()  # under the library's own names
    model.save_pretrained(tmp_path / "delta")
    kept = load_file(tmp_path / "delta" / "delta.safetensors")
    assert {name.split(".")[0] for name in kept} == {"tubes", "gate", "heads"}


@pytest.mark.parametrize("to", ["delta", "full"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blocks.2.attn.qkv.lora_A.weight": None}, r"missing base_model.model.blocks.2.attn.qkv.lora_A.weight \(1 f"),
        ({"blocks.2.attn.qkw.lora_A.weight": torch.zeros(3, 24)}, r"unexpected .*qkw.*nearest: '.*blocks.2.attn.qkv"),
        ({"blocks.1.attn.qkv.lora_A.weight": torch.zeros(3, 24)}, "unexpected base_model.model.blocks.1.attn.qkv"),
        ({"blocks.2.attn.qkv.lora_A.weight": torch.zeros(4, 24)}, r"lora_A.weight is \(4, 24\) .* must be \(3, 24\)"),
        (None, "missing base_model.model.blocks.2.attn.proj.lora_A.weight"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(to: str, change: dict | None, words: str, tmp_path: Path) -> None:
    reloadable("lora", 2, tmp_path).save_pretrained(tmp_path / "out", to)
    path = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    path.unlink()
    if change is not None:
        state |= {f"base_model.model.{name}": tensor for name, tensor in change.items()}
        save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)
    with pytest.raises(UserError, match=words):
        scaleup.load(tmp_path / "out")


def test_an_adapter_that_no_config_knows_is_refused(tmp_path: Path) -> None:
    reloadable("lora", 2, tmp_path).save_pretrained(tmp_path / "out", "full")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"adapter": None}))
    with pytest.raises(UserError, match="unexpected base_model.model.blocks"):
        scaleup.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"kind": "lora", "rank": 3}, "adapter.alpha: is missing"),
        ({"kind": "loar", "rank": 3, "alpha": 2.0}, "adapter.kind: 'loar' is not one of .*; nearest: 'lora'"),
        ({"kind": "lora", "rank": 0, "alpha": 2.0}, "adapter.rank: 0 is not a whole number of at least 1"),
        ({"kind": "lora", "rank": 3, "alpha": "much"}, "adapter.alpha: 'much' is not a number above 0"),
        ({"kind": "lora", "rank": 3, "alpha": 2.0, "r": 3}, "adapter.r: unknown key"),
        ("lora", "adapter: 'lora' is not a mapping"),
    ],
)
def test_an_adapter_that_cannot_be_is_named(value: Any, words: str) -> None:
    config = adapted()[0].config.to_json()
    assert ModelConfig.from_json(config, "here").adapter is None
    with pytest.raises(UserError, match=words):
        ModelConfig.from_json(config | {"adapter": value}, "here")


def test_a_head_and_a_tube_may_be_called_as_peft_calls_adapters(tmp_path: Path) -> None:
    template, _ = adapted(2)
    template.with_arm(2, True, {"default": ["a", "b"]}, adapt=Adapt("lora")).save_pretrained(tmp_path / "out", "full")
    assert "heads.default.weight" in load_file(tmp_path / "out" / "model.safetensors")


def test_an_adapter_trains_on_and_nothing_else_takes_its_place() -> None:
    model, _ = trained("lora")
    heads = model.config.heads
    again = model.with_arm(2, True, heads, adapt=Adapt("lora", 3, 2.0)).eval()
    assert torch.equal(again(VIDEOS, "shape"), model(VIDEOS, "shape"))
    own = {p.data_ptr() for p in again.arm.parameters() if p.requires_grad}
    assert len(own) == 16 + 2 + 4 + 1 and not own & pointers(model)
    assert {p.data_ptr() for p in again.arm.blocks.parameters() if not p.requires_grad} <= pointers(model)
    for depth, adapt in ((2, Adapt()), (2, Adapt("lora", 4, 2.0)), (3, Adapt("lora", 3, 2.0)), (2, Adapt("none"))):
        with pytest.raises(UserError, match=r"has a lora adapter \(rank 3, alpha 2\) above 2 frozen blocks.*--merge"):
            model.with_arm(depth, True, heads, adapt=adapt)


def test_an_adapter_needs_blocks_that_are_known() -> None:
    template, vit = adapted(4)
    with pytest.raises(UserError, match="no block above the trunk for a lora adapter; choose a smaller frozen_depth"):
        template.with_arm(4, False, {}, adapt=Adapt("lora"))
    vit.blocks[3].__class__ = type("Layer", (type(vit.blocks[3]),), {})
    with pytest.raises(UserError, match="a ia3 adapter does not fit blocks of class Layer; adapters fit Block, "):
        template.with_arm(3, False, {}, adapt=Adapt("ia3"))
