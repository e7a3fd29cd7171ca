"""Which programs of a model a test writes."""

from collections.abc import Sequence

import pytest

from scaleup.outputs import programs


def only(kinds: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write programs of these kinds alone: each is traced by itself, which takes seconds."""
    every = programs.programs
    monkeypatch.setattr(programs, "programs", lambda *args: {k: v for k, v in every(*args).items() if k in kinds})
