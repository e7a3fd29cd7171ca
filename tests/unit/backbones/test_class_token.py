"""The last block for the class token alone: the same features and gradients as the whole block."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from scaleup.checkpoint.model_directory import Pool
from scaleup.config.schema import Backbone, Input, Model, Positions, Tube
from scaleup.model.adapter import Adapt
from scaleup.model.build import fresh
from scaleup.model.kernels import knows_first_token, pools_first
from scaleup.model.trunk import cast_trunks, drift
from scaleup.model.tubevit import TubeViT, arm_inputs

VIT, EVA, ROPE = "timm:vit_tiny_patch16_224", "timm:eva02_tiny_patch14_224", "timm:vit_pe_core_tiny_patch16_384"
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": (VIT, "backbone", SMALL),
    "scaled, normed, dropped": (VIT, "backbone", SMALL | {"init_values": 0.1, "qk_norm": True, "drop_path_rate": 0.5}),
    "biased attention": (VIT, "relative", SMALL),
    "rotary": (EVA, "backbone", SMALL | {"global_pool": "token", "drop_path_rate": 0.5}),
    "fused rotary": ("timm:eva02_base_patch14_224", "backbone", SMALL | {"global_pool": "token", "qkv_fused": True}),
    "rotary of its own": (ROPE, "backbone", SMALL | {"global_pool": "token", "use_fc_norm": False}),
    "open_clip": ("open_clip:ViT-B-16", "backbone", {"layers": 2, "width": 48, "head_width": 16}),
}


def model_of(name: str, kind: str, kwargs: dict[str, Any]) -> TubeViT:
    size = [56, 56] if "eva02" in name else [64, 64]
    tubes = {"tube": Tube([4, 8, 8], [4, 16, 16])}
    described = Model(backbone=Backbone(name, kwargs), input=Input(8, size), tubes=tubes, positions=Positions(kind))
    return fresh(described, {"motion": ["a", "b", "c"]}, 0)


def learned(model: TubeViT, kernels: str) -> dict[str, torch.Tensor]:
    """Features in train mode, and the gradient of each parameter."""
    height, width = model.preprocess.size
    x = torch.randn(4, 3, 8, height, width, generator=torch.Generator().manual_seed(0))
    model.arm.kernels = kernels
    model.train().zero_grad()
    torch.manual_seed(1)  # of drop path
    features = model.forward_features(x)
    model.arm.heads["motion"](features).square().sum().backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"features": features.detach(), **{name: grad.clone() for name, grad in gradients.items()}}


def assert_alike(model: TubeViT) -> None:
    wanted, found = learned(model, "library"), learned(model, "lean")
    assert found.keys() == wanted.keys()
    largest = max(each.abs().max() for each in wanted.values())
    for name, each in wanted.items():
        assert torch.allclose(found[name], each, rtol=1e-4, atol=1e-5 * largest.item()), name
    changed = {name for name, each in wanted.items() if not torch.equal(found[name], each)}
    assert changed  # it was computed otherwise


@pytest.mark.parametrize("case", CASES)
def test_features_and_gradients_are_the_whole_blocks(case: str) -> None:
    model = model_of(*CASES[case])
    assert pools_first(model.arm.tail) and knows_first_token(model.blocks[-1])
    assert_alike(model)


def test_attention_with_a_gate_is_gated() -> None:
    model = model_of(VIT, "backbone", SMALL)
    attention: Any = model.blocks[-1].attn
    attention.gate = nn.Linear(48, 48)
    assert_alike(model)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_adapters_learn_the_same(kind: str) -> None:
    arm = model_of(VIT, "backbone", SMALL).with_arm(1, True, {"motion": ["a", "b", "c"]}, adapt=Adapt(kind))
    for name, parameter in arm.arm.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    assert_alike(arm)


def test_no_other_token_is_computed() -> None:
    model = model_of(VIT, "backbone", SMALL)
    shapes: list[tuple] = []
    block: Any = model.blocks[-1]
    for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        layer.register_forward_hook(lambda layer, args, out: shapes.append(tuple(out.shape[:2])))
    learned(model, "lean")
    assert shapes == [(4, 1)] * 3
    del shapes[:]
    learned(model, "library")
    assert all(tokens > 1 for _, tokens in shapes)


def head_of(case: str) -> TubeViT:
    """An arm that trains a head on the blocks of a case, which are all frozen; its gate is open."""
    model = model_of(*CASES[case])
    arm = model.with_arm(model.depth, True, model.config.heads)
    nn.init.constant_(arm.arm.gate.alpha, 0.7)  # type: ignore[union-attr]
    return arm


@pytest.mark.parametrize("case", CASES)
def test_the_last_frozen_block_is_computed_for_a_head_alone(case: str) -> None:
    assert_alike(head_of(case))


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_head_gets_the_same_bits_whatever_reads_beside_it(precision: str) -> None:
    head, pool = head_of("plain"), Pool("attentive", queries=1, heads=4, depth=1)
    models = [head, head.with_arm(1, False, head.config.heads), head.with_arm(2, False, head.config.heads, pool=pool)]
    for model in models:
        model.arm.kernels = model.trunk.kernels = "lean"  # type: ignore[union-attr]
    cast_trunks([model.trunk for model in models], precision, set())  # type: ignore[misc]
    x = torch.randn(4, 3, 8, 64, 64)
    together: Any = arm_inputs(head.trunk, x, models)
    for model in models:
        depth, alone = model.frozen_depth, arm_inputs(model.trunk, x, [model])
        assert torch.equal(model.arm.features(alone[depth]), model.arm.features(together[depth]))
    first: Any = arm_inputs(head.trunk, x, [head])[2]
    assert first.h.shape == (4, 1, 48) and together[2].h.shape[1] > 1
    assert drift(together[2].h[:, :1], first.h) < (1e-6 if precision == "float32" else 0.02)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (VIT, {"global_pool": "avg"}),
        (VIT, {"global_pool": "map"}),
        ("timm:deit_tiny_distilled_patch16_224", {}),
        ("open_clip:ViT-B-16", {"layers": 1, "width": 48, "head_width": 16, "pool_type": "avg"}),
    ],
)
def test_pools_of_other_tokens_get_them_all(name: str, kwargs: dict[str, Any]) -> None:
    model = model_of(name, "backbone", (SMALL | kwargs) if name.startswith("timm") else kwargs)
    assert not pools_first(model.arm.tail)
    wanted, found = learned(model, "library"), learned(model, "lean")
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


def test_a_block_that_draws_dropout_is_left_as_it_is() -> None:
    model = model_of(VIT, "backbone", SMALL | {"proj_drop_rate": 0.1})
    assert not knows_first_token(model.train().blocks[-1]) and knows_first_token(model.eval().blocks[-1])


def test_blocks_that_are_not_known_are_left_as_they_are() -> None:
    model = model_of(VIT, "backbone", SMALL)
    model.arm.blocks["1"] = ParallelScalingBlock(48, 3)
    wanted, found = learned(model, "library"), learned(model, "lean")
    assert all(torch.equal(found[name], each) for name, each in wanted.items())
