"""What the figures of steps are made of; no time is asserted."""

from functools import partial

import pytest
import torch

from bench.measure import goal, rotate
from bench.saving import Steps, savings
from bench.share import trunk_share
from bench.step import step
from scaleup.common.errors import UserError
from scaleup.config.schema import Backbone, Input, Model, Positions, Recipe, Tube
from scaleup.model.build import fresh
from scaleup.model.tubevit import TubeViT


def tiny() -> tuple[TubeViT, torch.Tensor, Recipe]:
    kwargs = {"embed_dim": 32, "depth": 12, "num_heads": 2}
    tubes = {"tube": Tube([4, 8, 8], [4, 16, 16])}
    backbone = Backbone("timm:vit_tiny_patch16_224", kwargs)
    described = Model(backbone=backbone, input=Input(8, [32, 32]), tubes=tubes, positions=Positions("backbone"))
    recipe = Recipe()
    recipe.data.batch = 1
    clips = torch.zeros(1, 3, 8, 32, 32, dtype=torch.uint8)
    return fresh(described, {"motion": ["a", "b"]}, 0), clips, recipe


def test_every_turn_takes_all_sides_and_begins_with_another() -> None:
    order: list[str] = []

    def side(name: str) -> str:
        order.append(name)
        return name.upper()

    turns = rotate({name: partial(side, name) for name in "abc"}, repeats=2)
    assert "".join(order) == "abcbcacab"
    assert turns == [{"a": "A", "b": "B", "c": "C"}] * 2


def test_a_goal_may_be_the_least() -> None:
    assert goal("share", 0.8, 0.8, at_least=True) == {"what": "share", "measured": 0.8, "at_least": 0.8, "met": True}
    assert not goal("share", 0.79, 0.8, at_least=True)["met"]


def test_savings_are_ratios_of_the_steps_they_name() -> None:
    found = savings(*tiny(), repeats=1)
    seconds = found["seconds"]
    assert found["frozen_over_full"] == seconds["frozen"] / seconds["full"]
    assert found["cached_over_full"] == seconds["cached"] / seconds["full"]
    assert found["shared_over_apart"] == seconds["shared"] / seconds["apart"]
    alone = [seconds[name] for name in seconds if name.endswith(" alone")]
    assert len(alone) == 6 and abs(seconds["bound"] - sum(alone)) < 1e-9
    assert found["shared_over_bound"] == seconds["shared"] / seconds["bound"]
    forward = {8: 8 + 12, 9: 9 + 9, 10: 10 + 6, 11: 11 + 3}  # blocks, and three times those that train
    apart = sum(forward[depth] for depth in (8, 9, 9, 10, 11))
    assert found["bounds"] == {
        "frozen_over_full": 0.5,
        "cached_over_full": 0.25,
        "shared_over_apart": (11 + 12 + 9 + 9 + 6 + 3) / apart,
    }


def test_each_side_does_the_work_that_it_stands_for() -> None:
    steps = Steps(*tiny())
    calls: list[str] = []
    trunk = steps.models["frozen11"].trunk
    assert trunk is not None
    for index, block in enumerate(trunk.blocks):  # shared by all arms
        block.register_forward_hook(lambda *_, index=index: calls.append(f"trunk {index}"))
    for name, model in steps.models.items():
        model.arm.tail.register_forward_hook(lambda *_, name=name: calls.append(name))
    expected = {
        "full": ["full"],
        "frozen": [f"trunk {index}" for index in range(9)] + ["frozen"],
        "cached": ["frozen"],
        "shared": [f"trunk {index}" for index in range(11)] + list(steps.arms),
        "trunk alone": [f"trunk {index}" for index in range(11)],
        "frozen8 alone": ["frozen8"],
    }
    for name, side in steps.timers().items():
        calls.clear()
        side()
        if name in expected:
            assert calls == expected[name], name
        if name == "apart":
            assert len(calls) == 8 + 9 + 9 + 10 + 11 + 5


def test_the_rate_of_a_trunk_counts_all_of_its_products() -> None:
    template, clips, _ = tiny()
    row = trunk_share(template, template.preprocess(clips), repeats=1)
    tokens, width = 1 + 4 + 8, 32  # class token, patches of one frame, tubes
    block = tokens * (24 * width**2 + 4 * tokens * width)
    tokenizer = 2 * width * (4 * 3 * 16 * 16 + 8 * 3 * 4 * 8 * 8)
    flops = 1e9 * row["gflops"]["trunk"] * row["seconds"]
    assert abs(flops - (9 * block + tokenizer)) < 0.01 * flops
    assert row["of_mm"] == row["gflops"]["trunk"] / row["gflops"]["mm"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"full": True}, "--full is for one backbone; name it with --backbone"),
        ({"frozen_depth": 0}, "--frozen-depth is for one backbone; name it with --backbone"),
        ({"backbone": "vit_ti", "quick": True}, "--quick is for what is measured without --backbone"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    options: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("compare_steps", "time_step"):
        monkeypatch.setitem(step.__globals__, work, lambda *_: {})
    with pytest.raises(UserError, match=said):
        step(**options)
