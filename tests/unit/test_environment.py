import pytest
import torch

from scaleup.common import processes


def test_what_is_not_installed_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout on Python's path is no installed package, and its runs end with a result all the same."""
    monkeypatch.setattr(processes, "PACKAGES", ("torch", "no-such-package"))
    found = processes.environment()
    assert torch.__version__.startswith(found["torch"]) and found["no-such-package"] == "not installed"
