from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaleup.backbones.build import build
from scaleup.checkpoint.model_directory import HeadLoss
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.model.arm import Gate
from scaleup.model.build import describe
from scaleup.model.tokenizer import Preprocess
from scaleup.model.tubevit import TubeViT

KWARGS = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "average": {"global_pool": "avg"},
    "average of normed": {"global_pool": "avg", "fc_norm": False},
    "without class token": {"global_pool": "avg", "class_token": False},
    "attention pool": {"global_pool": "map"},
    "registers": {"reg_tokens": 4},
    "positions of patches only": {"no_embed_class": True, "reg_tokens": 2},
    "layer scale": {"init_values": 0.1, "qk_norm": True},
    "norm before the blocks": {"pre_norm": True},
    "without positions": {"pos_embed": "none"},
    "input of any size": {"dynamic_img_size": True},
    "dropout": {"proj_drop_rate": 0.5, "drop_path_rate": 0.5, "attn_drop_rate": 0.5, "pos_drop_rate": 0.5},
}
TUBES = {"long": schema.Tube([4, 4, 4], [4, 8, 8]), "folded": schema.Tube([2, 6, 4], [4, 8, 16], fold=[2, 1, 1])}
IMAGES, VIDEOS = torch.randn(2, 3, 32, 24), torch.randn(2, 3, 8, 32, 24)


def adapted(frozen_depth: int = 2, gate: bool = True, **kwargs: Any) -> tuple[TubeViT, nn.Module]:
    """A model on a backbone with no two tensors alike, and timm's own model with the very same tensors."""
    backbone = build("timm:vit_tiny_patch16_224", KWARGS | kwargs, (32, 24))
    torch.manual_seed(0)
    for tensor in backbone.source.parameters():
        nn.init.normal_(tensor, 0.1, 0.3)
    config = describe(
        backbone,
        0,
        input=schema.Input(frames=8, size=[32, 24]),
        frames=schema.Frames(4),
        tubes=TUBES,
        positions=schema.Positions("backbone", 0.5),
        frozen_depth=frozen_depth,
        gate=gate,
        heads={"motion": ["left", "right", "up"], "shape": ["disc", "ring"]},
    )
    return TubeViT.assemble(config, backbone).eval(), backbone.source.eval()


def open_gate(model: TubeViT, alpha: float) -> None:
    assert model.arm.gate is not None
    model.arm.gate.alpha.data.fill_(alpha)


@torch.no_grad()
@pytest.mark.parametrize("frozen_depth", [1, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_an_image_with_the_gate_closed_gives_what_timm_gives(name: str, frozen_depth: int) -> None:
    model, vit = adapted(frozen_depth, **VARIANTS[name])
    wanted = vit.forward_head(vit.forward_features(IMAGES), pre_logits=True)
    assert torch.equal(model.forward_features(IMAGES), wanted)
    assert torch.equal(model.forward_features(IMAGES[:, :, None]), wanted)
    open_gate(model, 0.5)
    assert not torch.allclose(model.forward_features(IMAGES), wanted)


@torch.no_grad()
@pytest.mark.parametrize("x", [IMAGES, VIDEOS], ids=["images", "videos"])
def test_a_closed_gate_is_no_gate_and_an_open_one_changes_the_output(x: Tensor) -> None:
    closed, without = adapted(gate=True)[0], adapted(gate=False)[0]
    missing, unexpected = without.load_state_dict(closed.state_dict(), strict=False)
    assert not missing and unexpected == ["arm.gate.alpha"]
    assert torch.equal(closed(x, "motion"), without(x, "motion"))
    open_gate(closed, 0.1)
    assert not torch.allclose(closed(x, "motion"), without(x, "motion"))


@torch.no_grad()
@pytest.mark.parametrize("x", [IMAGES, VIDEOS], ids=["images", "videos"])
@pytest.mark.parametrize("alpha", [0.7, -2.0])
def test_the_gate_adds_all_tokens_that_enter_the_first_block(x: Tensor, alpha: float) -> None:
    """Equation 8, the blocks called by hand."""
    model, vit = adapted(frozen_depth=3, pre_norm=True)
    open_gate(model, alpha)
    z0 = h = model.tokenize(x)
    for block in vit.blocks[:3]:
        h = block(h)
    h = h + torch.tanh(torch.tensor(alpha)) * z0
    wanted = vit.norm(vit.blocks[3](h))[:, 0]
    torch.testing.assert_close(model.forward_features(x), wanted, rtol=1e-5, atol=1e-5)
    head = model.arm.heads["shape"]
    torch.testing.assert_close(model(x, "shape"), wanted @ head.weight.T + head.bias, rtol=1e-5, atol=1e-5)


def test_a_gate_starts_closed_and_ready_to_open() -> None:
    model, _ = adapted()
    model(VIDEOS, "motion").logsumexp(1).sum().backward()
    alpha = model.arm.gate.alpha
    assert alpha.shape == (1,) and alpha.dtype == torch.float32 and alpha.item() == 0
    assert alpha.grad.abs() > 1e-4


def test_a_gate_keeps_the_type_of_the_tokens() -> None:
    z0 = torch.ones(1, 2, 4, dtype=torch.bfloat16)
    gate = Gate()
    gate.alpha.data.fill_(0.3)
    assert gate(z0, z0).dtype == torch.bfloat16


def test_the_trunk_is_never_in_train_mode_and_never_trains() -> None:
    model, _ = adapted(**VARIANTS["dropout"])
    model.train()
    assert not any(module.training for module in model.trunk.modules())
    assert all(module.training for module in model.arm.modules())
    assert not any(tensor.requires_grad for tensor in model.trunk.parameters())
    assert all(tensor.requires_grad for tensor in model.arm.parameters())
    taps = model.arm_inputs(VIDEOS)
    again = model.arm_inputs(VIDEOS)
    assert torch.equal(taps.h, again.h) and torch.equal(taps.z0, again.z0)
    assert not torch.equal(model.arm.features(taps), model.arm.features(taps))  # the arm drops


def test_no_graph_reaches_below_the_gate() -> None:
    model, _ = adapted()
    pixels = VIDEOS.clone().requires_grad_()
    taps = model.arm_inputs(pixels)
    assert not taps.h.requires_grad and not taps.z0.requires_grad
    model(pixels, "motion").sum().backward()
    assert pixels.grad is None and all(tensor.grad is None for tensor in model.trunk.parameters())
    assert all(t.grad is not None for name, t in model.arm.named_parameters() if "heads.shape" not in name)


def test_one_pass_of_the_trunk_gives_the_taps_of_several_depths() -> None:
    model, vit = adapted(frozen_depth=4)
    taps = model.trunk(VIDEOS, [1, 3])
    assert set(taps) == {1, 3}
    h = model.tokenize(VIDEOS)
    for depth, block in enumerate(vit.blocks[:3], 1):
        assert torch.equal(taps[1].z0, model.tokenize(VIDEOS))
        h = block(h)
        if depth in taps:
            assert torch.equal(taps[depth].h, h)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    model, _ = adapted()
    taps = model.arm_inputs(VIDEOS)
    gradients = []
    for model.arm.grad_checkpointing in (False, True):
        gradients.append(torch.autograd.grad(model.arm(taps, "motion").sum(), list(model.arm.blocks.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_nothing_frozen_everything_trains_tubes_included() -> None:
    model, _ = adapted(frozen_depth=0, gate=False)
    assert model.trunk is None
    model(VIDEOS, "motion").sum().backward()
    assert model.tokenizer.tubes["long"].weight.grad.abs().sum() > 0
    assert model.tokenizer.stem.patch_embed.proj.weight.grad.abs().sum() > 0


def pointers(module: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in module.state_dict().values()}


def test_arms_share_the_trunk_and_are_copies_of_their_own() -> None:
    template, _ = adapted(frozen_depth=3)
    deep, shallow = template.with_arm(3, True, template.config.heads), template.with_arm(1, False, {})
    everything = pointers(template)
    assert pointers(deep.trunk) == pointers(template.trunk)
    assert pointers(shallow.trunk) < pointers(template.trunk)
    assert not pointers(deep.arm) & everything and not pointers(shallow.arm) & everything
    assert not pointers(deep.arm) & pointers(shallow.arm)
    assert all(tensor.requires_grad for tensor in shallow.arm.parameters())
    before = template(VIDEOS, "shape")
    for tensor in [*deep.arm.parameters(), *shallow.arm.parameters()]:
        tensor.data.zero_()
    assert torch.equal(template(VIDEOS, "shape"), before)


@torch.no_grad()
@pytest.mark.parametrize("frozen_depth", [0, 1, 4])
def test_an_arm_computes_what_its_template_does(frozen_depth: int) -> None:
    template, _ = adapted(frozen_depth=2)
    model = template.with_arm(frozen_depth, frozen_depth > 0, template.config.heads).eval()
    assert torch.equal(model(VIDEOS, "motion"), template(VIDEOS, "motion"))
    assert template.config.frozen_depth == 2 and model.config.frozen_depth == frozen_depth


def test_the_opening_of_a_gate_goes_with_the_arm() -> None:
    template, _ = adapted()
    open_gate(template, 0.4)
    assert template.with_arm(1, True, {}).arm.gate.alpha.item() == pytest.approx(0.4)


def test_new_heads_depend_on_seed_and_name_alone() -> None:
    template, _ = adapted()

    def heads(names: list[str], seed: int) -> dict[str, Tensor]:
        torch.manual_seed(len(names))
        model = template.with_arm(2, True, {name: ["a", "b", "c", "d"] for name in names}, seed)
        assert all((head.bias == 0).all() for head in model.arm.heads.values())
        return {name: head.weight for name, head in model.arm.heads.items()}

    alone, together = heads(["k600"], 5), heads(["ssv2", "k600", "ab", "ba"], 5)
    assert torch.equal(alone["k600"], together["k600"])
    drawn = [*together.values(), heads(["k600"], 6)["k600"]]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_head_with_other_classes_is_drawn_anew() -> None:
    template, _ = adapted()
    same = template.with_arm(2, True, {"shape": ["disc", "ring"]}, 9).arm.heads["shape"].weight
    other = template.with_arm(2, True, {"shape": ["ring", "disc"]}, 9).arm.heads["shape"].weight
    assert torch.equal(same, template.arm.heads["shape"].weight) and not torch.equal(same, other)


@torch.no_grad()
def test_a_head_of_the_same_loss_keeps_its_scale_and_gives_the_same_numbers() -> None:
    heads = {"height": ["value"]}
    first = adapted()[0].with_arm(2, True, heads, losses={"height": HeadLoss("l2", 100.0, 20.0)}).eval()
    other = {"height": HeadLoss("l2", -5.0, 1.0)}  # of other data
    later = first.with_arm(2, True, heads, losses=other).eval()
    assert torch.equal(later(VIDEOS), first(VIDEOS)) and later.config.losses["height"].mean == 100
    anew = first.with_arm(2, True, heads, losses={"height": HeadLoss("l1", -5.0, 1.0)}).eval()
    assert anew.config.losses["height"].mean == -5 and not torch.equal(anew(VIDEOS), first(VIDEOS))


@torch.no_grad()
def test_heads_are_named_unless_there_is_one() -> None:
    model, _ = adapted()
    with pytest.raises(UserError, match="no head was named; this model has 'motion', 'shape'"):
        model(IMAGES)
    with pytest.raises(UserError, match="there is no head 'shapes'; .*nearest: 'shape'"):
        model(IMAGES, "shapes")
    only = model.with_arm(2, True, {"shape": ["disc", "ring"]}).eval()
    assert torch.equal(only(IMAGES), only(IMAGES, head="shape"))
    with pytest.raises(UserError, match="this model has none"):
        model.with_arm(2, True, {})(IMAGES)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 32, 24), (3, 32, 24), (2, 8, 3, 32, 24), (1, 3, 8, 24, 32)])
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"allowed are \(B, 3, T, 32, 24\) and \(B, 3, 32, 24\)"):
        adapted()[0].tokenize(torch.zeros(shape))


@pytest.mark.parametrize("frames", [0, 2, 3])
def test_a_clip_too_short_for_a_tube_is_refused(frames: int) -> None:
    with pytest.raises(UserError, match=r"tube '(long|frames)' needs at least \d along t"):
        adapted()[0].tokenize(torch.zeros(1, 3, frames, 32, 24))


@torch.no_grad()
def test_longer_and_shorter_clips_give_more_and_fewer_tokens() -> None:
    model, _ = adapted()
    for frames, count in ((4, 1), (8, 2), (20, 5)):
        tokens = 1 + count * 12 + count * 12 + count * 4 * 2
        assert model.tokenize(torch.randn(1, 3, frames, 32, 24)).shape == (1, tokens, 24)


@pytest.mark.parametrize("frozen_depth", [-1, 5])
def test_a_frozen_depth_that_does_not_fit_is_refused(frozen_depth: int) -> None:
    with pytest.raises(UserError, match="does not fit a model of 4 blocks; allowed are 0 to 4"):
        adapted(frozen_depth)
    with pytest.raises(UserError, match="allowed are 0 to 4"):
        adapted()[0].with_arm(frozen_depth, False, {})


def test_a_gate_without_frozen_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="a gate needs frozen blocks below it"):
        adapted(frozen_depth=0, gate=True)


@pytest.mark.parametrize("name", ["a.b", "k-600", "", "training", "forward"])
def test_names_that_a_head_cannot_have(name: str) -> None:
    with pytest.raises(UserError, match="a head cannot be named"):
        adapted()[0].with_arm(2, True, {name: ["a"]})


def test_preprocessing_is_the_fields_own() -> None:
    prepare = Preprocess(schema.Input(8, [32, 24], 15.0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    for shape in ((2, 3, 8, 4), (2, 3, 5, 8, 4)):
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        made, given = prepare(pixels), pixels.clone()
        for channel, (mean, std) in enumerate(zip(prepare.mean, prepare.std, strict=True)):
            torch.testing.assert_close(made[:, channel], (pixels[:, channel] / 255 - mean) / std, rtol=0, atol=1e-5)
        assert torch.equal(pixels, given)
