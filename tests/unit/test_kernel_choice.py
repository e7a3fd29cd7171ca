"""What computes a block fastest is measured once on a machine."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.small import small_model
from torch import nn
from torch.overrides import _get_current_function_mode

from scaleup.common.distributed import World
from scaleup.model import kernel_choice
from scaleup.model.kernel_choice import choose, choose_precision, fastest, kept_choices

H = torch.zeros(1, 512, 512)


class Clock(nn.Module):
    """A block that takes as long as it is told, by how it is computed."""

    def __init__(self, **takes: float) -> None:
        super().__init__()
        self.takes, self.weight, self.trained = takes, nn.Parameter(torch.ones(1)), False

    def forward(self, h: torch.Tensor, **_: Any) -> torch.Tensor:
        mode: Any = _get_current_function_mode()
        replaced = len(mode.replaced) if mode else 0
        Clock.time += self.takes[("lean", "products", "fast")[replaced]]
        Clock.calls += 1
        Clock.trained = torch.is_grad_enabled()
        return h[:, :1, :1] * self.weight

    time, calls, trained = 0.0, 0, False


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_choice, "thread_time", lambda: Clock.time)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("lean", "products", "fast", "forward", "trained"),
    [
        (1.06, 1.0, 0.9, "fast", "products"),
        (1.06, 0.9, 1.0, "products", "products"),
        (1.03, 1.0, 1.01, "products", "products"),
        (1.01, 1.0, 1.0, "lean", "lean"),
        (1.0, 2.0, 0.5, "fast", "lean"),
    ],
)
def test_what_is_faster_is_chosen(lean: float, products: float, fast: float, forward: str, trained: str) -> None:
    block = Clock(lean=lean, products=products, fast=fast)
    assert choose(block, H, {}, trains=False) == forward and not Clock.trained
    assert choose(block, H, {}, trains=True) == trained and Clock.trained
    assert block.weight.grad is None  # a copy trains


def test_a_gain_that_most_rounds_do_not_show_is_noise() -> None:
    lean = [1.1, 1.3, 1.0, 1.1, 1.1]
    assert fastest({"lean": lean, "products": [1.0, 1.0, 1.1, 1.0, 1.0]}, 1.05) == "products"
    assert fastest({"lean": lean, "products": [1.0, 1.0, 1.1, 1.2, 1.0]}, 1.05) == "lean"
    assert fastest({"lean": lean, "products": [1.09, 1.09, 1.0, 1.09, 1.0]}, 1.05) == "lean"


def test_a_choice_is_kept_for_the_same_block_and_work() -> None:
    block = Clock(lean=2, products=1, fast=3)
    assert choose(block, H, {}, trains=False) == "products"
    calls, block.takes = Clock.calls, dict.fromkeys(block.takes, 1.0)
    assert choose(block, H, {}, trains=False) == "products"
    assert Clock.calls == calls
    others: list[Any] = [(block, torch.zeros(2, 512, 512), {}), (block, H, {"rope": None}), (block, H, {})]
    assert [choose(*other, trains=other[1] is H and not other[2]) for other in others] == ["lean"] * 3


@pytest.mark.parametrize("damage", ["", "[]", "{", "\xff"])
def test_a_damaged_file_costs_a_measurement(damage: str) -> None:
    block = Clock(lean=2, products=1, fast=3)
    choose(block, H, {}, trains=False)
    whole = kept_choices().read_text()
    for content in (damage, whole.replace("products", "fester")):
        kept_choices().write_bytes(content.encode("latin-1"))
        assert choose(block, H, {}, trains=False) == "products"
        assert kept_choices().read_text() == whole


def test_a_file_that_cannot_be_written_costs_a_measurement_each_time(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    own_cache.write_text("no directory")
    block = Clock(lean=2, products=1, fast=3)
    assert [choose(block, H, {}, trains=False) for _ in range(2)] == ["products"] * 2
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert [choose(block, H, {}, trains=False) for _ in range(2)] == ["products"] * 2


@pytest.mark.parametrize(("low", "chosen"), [(0.9, "bfloat16"), (0.97, "float32"), (2.0, "float32")])
def test_a_precision_is_chosen_where_it_trains_faster(low: float, chosen: str) -> None:
    model, world = small_model("cosine"), World(0, 1, torch.device("cpu"))

    def wait(*_: Any) -> None:
        assert torch.is_grad_enabled()
        Clock.calls += 1
        Clock.time += low if torch.is_autocast_enabled("cpu") else 1.0

    model.blocks[0].register_forward_pre_hook(wait)
    assert choose_precision([model], world, 2) == chosen
    calls = Clock.calls
    assert choose_precision([model], world, 2) == chosen
    assert Clock.calls == calls


def test_small_models_are_not_measured() -> None:
    assert choose(None, torch.zeros(8, 100, 192), {}, trains=True) == "lean"  # type: ignore[arg-type]
