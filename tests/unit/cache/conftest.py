"""A tiny recipe that a cache fits: no arm trains the tokenizer, no pixels are mixed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scaleup import recipe
from scaleup.recipe import Recipe


@pytest.fixture
def frozen_path(tiny_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "frozen.yaml"
    path.write_text(tiny_path.read_text().replace("  full: {}\n", "").replace("mixup: 0.2, ", ""))
    return path


@pytest.fixture
def frozen(frozen_path: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """``frozen("train.steps=2", ...)``: the recipe with changes; it writes to ``tmp_path / "out"``."""
    return lambda *changes: recipe.load(frozen_path, [f"out={tmp_path / 'out'}", *changes])
