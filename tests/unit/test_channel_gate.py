"""A gate with an alpha for each channel, from the recipe to the directory on disk and back."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from support.runs import metrics
from torch import Tensor

import scaleup
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Recipe
from scaleup.model.build import fresh, load_run
from scaleup.model.tubevit import TubeViT
from scaleup.training.run import train

WIDTH = 24
IMAGES, VIDEOS = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 8, 32, 32)
NONE = "arms={full: null, last: null, gated: null}"
CHANGES = ("train.steps=3", NONE, "arms.channel={frozen_depth: 1, gate: channel}")
HEADS = {"motion": ["left", "right"]}


def template(tiny: Callable[..., Recipe]) -> TubeViT:
    return fresh(tiny().model, HEADS, 0)


def gated(tiny: Callable[..., Recipe], gate: bool | str = "channel") -> TubeViT:
    return template(tiny).with_arm(2, gate, HEADS).eval()


@torch.no_grad()
@pytest.mark.parametrize("x", [IMAGES, VIDEOS], ids=["images", "videos"])
def test_closed_it_is_no_gate_and_each_channel_opens_alone(x: Tensor, tiny: Callable[..., Recipe]) -> None:
    model = gated(tiny)
    alpha = model.arm.gate.alpha
    assert alpha.shape == (WIDTH,) and alpha.dtype == torch.float32 and not alpha.any()
    wanted = gated(tiny, False)(x)
    assert torch.equal(model(x), wanted)
    alpha[5] = 0.5
    assert not torch.allclose(model(x), wanted)
    z0, h, *_ = model.arm_inputs(x)
    opened = h.clone()
    opened[..., 5] += torch.tensor(0.5).tanh() * z0[..., 5]
    torch.testing.assert_close(model.arm.gate(h, z0), opened)


def test_closed_it_is_ready_to_open_in_every_channel(tiny: Callable[..., Recipe]) -> None:
    model = gated(tiny)
    model(VIDEOS).logsumexp(1).sum().backward()
    assert (model.arm.gate.alpha.grad.abs() > 1e-9).all()


@torch.no_grad()
def test_it_goes_on_from_one_alpha_and_not_back_to_one(tiny: Callable[..., Recipe]) -> None:
    scalar = gated(tiny, True)
    scalar.arm.gate.alpha.fill_(0.3)
    channel = scalar.with_arm(2, "channel", HEADS).eval()
    assert (channel.arm.gate.alpha == scalar.arm.gate.alpha).all()
    torch.testing.assert_close(channel(VIDEOS), scalar(VIDEOS))
    assert torch.equal(channel.with_arm(2, "channel", HEADS).arm.gate.alpha, channel.arm.gate.alpha)
    assert channel.with_arm(2, False, HEADS).arm.gate is None
    with pytest.raises(UserError, match="has an alpha for each of 24 channels.*allowed are gate: channel"):
        channel.with_arm(2, True, HEADS)


def test_it_trains_is_logged_and_comes_back(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny(*CHANGES)
    found = train(recipe, sweep_arms(recipe)).arms["channel"]
    lines = metrics(tmp_path / "out")
    model = scaleup.load(tmp_path / "out/channel")
    alpha = model.arm.gate.alpha
    assert model.config.gate == "channel" and alpha.shape == (WIDTH,) and len(alpha.unique()) > 1
    for logged in (asdict(found), lines[-1]["arms"]["channel"], model.report["training"]):
        assert logged["alpha"] == pytest.approx(alpha.mean().item())
        assert logged["alpha_largest"] == pytest.approx(alpha.abs().max().item())
    assert "one alpha for each channel" in (tmp_path / "out/channel/README.md").read_text()


def test_gates_of_both_kinds_train_side_by_side_as_alone(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny("train.steps=3")
    arms = {kind: replace(recipe.arm, frozen_depth=1, gate=gate) for kind, gate in (("one", True), ("each", "channel"))}
    train(recipe, arms)
    train(tiny("train.steps=3", f"out={tmp_path / 'alone'}"), {"each": arms["each"]})
    together, alone = (scaleup.load(tmp_path / at / "each").state_dict() for at in ("out", "alone"))
    assert all(torch.equal(together[name], alone[name]) for name in together)


def test_gates_of_both_kinds_on_one_trunk_come_back_together(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    gated(tiny, True).save_pretrained(tmp_path / "began", kind="full")
    recipe = tiny("train.steps=2")
    recipe.model = schema.Model(load=str(tmp_path / "began"))
    arms = {kind: replace(recipe.arm, frozen_depth=1, gate=gate) for kind, gate in (("one", True), ("each", "channel"))}
    train(recipe, arms)
    for name, model in load_run(tmp_path / "out").items():
        assert torch.equal(model.arm.gate.alpha, scaleup.load(tmp_path / "out" / name).arm.gate.alpha)
        assert len(model.arm.gate.alpha) == {"one": 1, "each": WIDTH}[name]


def test_a_run_that_is_stopped_goes_on_to_the_same_weights(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny(*CHANGES)
    stopped = train(recipe, sweep_arms(recipe), stop_after=0)
    assert stopped.stopped == 1 and stopped.exit == 0
    train(recipe, sweep_arms(recipe))
    whole = tiny(*CHANGES, f"out={tmp_path / 'whole'}")
    train(whole, sweep_arms(whole))
    parts, once = (scaleup.load(tmp_path / at / "channel").state_dict() for at in ("out", "whole"))
    assert all(torch.equal(parts[name], once[name]) for name in parts)


def test_what_a_gate_can_be(tiny: Callable[..., Recipe]) -> None:
    for gate in (True, False, "channel"):
        assert sweep_arms(tiny(f"arms.gated.gate={gate}"))["gated"].gate == gate
    for wrong in ("chanel", "1", "null"):
        with pytest.raises(UserError, match=r"arms\.gated\.gate: .* is not one of False, True, 'channel'"):
            tiny(f"arms.gated.gate={wrong}")
    with pytest.raises(UserError, match="arms.full.gate: a gate needs frozen blocks below it"):
        tiny("arms.full.gate=channel")


def test_a_grid_names_it(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny(NONE, "grid={frozen_depth: [1, 2], gate: [true, channel]}")
    assert list(sweep_arms(recipe)) == ["depth1_gate", "depth1_channel", "depth2_gate", "depth2_channel"]
    assert sweep_arms(recipe)["depth1_channel"] == schema.Arm(1, "channel", lr=0.01, weight_decay=0.1)
