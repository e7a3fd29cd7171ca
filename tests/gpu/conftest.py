"""Tests that need a GPU (``make test-gpu``). Without one they are skipped; with PRETEND=1 they run on the pretended one
of ``tests/devices``, as far as that can be."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PRETEND = bool(os.environ.get("PRETEND"))
HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "devices"))


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[None]:
    import torch

    if PRETEND:
        from pretended import gpu

        if request.node.get_closest_marker("real"):
            pytest.skip("only a real GPU shows this")
        with gpu():
            yield
        return
    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    yield
    torch.use_deterministic_algorithms(False)
