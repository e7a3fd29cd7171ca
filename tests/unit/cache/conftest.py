"""A tiny recipe that a cache fits: no arm trains the tokenizer, no pixels are mixed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scaleup.config import recipe
from scaleup.config.schema import Recipe
from scaleup.training.token_cache import make


@pytest.fixture(scope="session")
def frozen_path(tiny_path: Path) -> Path:
    path = tiny_path.with_name("frozen.yaml")
    path.write_text(tiny_path.read_text().replace("  full: {}\n", "").replace("mixup: 0.2, ", ""))
    return path


@pytest.fixture(scope="session")
def cache(frozen_path: Path) -> Path:
    """A cache of that recipe in float32, at depths 1 and 3; to be read only."""
    make(recipe.load(frozen_path), [1, 3], frozen_path.with_name("cache"), precision="float32")
    return frozen_path.with_name("cache")


@pytest.fixture
def frozen(frozen_path: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """``frozen("train.steps=2", ...)``: the recipe with changes; it writes to ``tmp_path / "out"``."""
    return lambda *changes: recipe.load(frozen_path, [f"out={tmp_path / 'out'}", *changes])
