"""Pixels of tubes are read through as few strided views as possible."""

import pytest
import torch

from scaleup.model.tubes import TubeSpec, _reading
from scaleup.model.windows import COLUMNS, ROWS, Run, runs_of, windows

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("firsts", "offsets", "runs"),
    [
        ([0, 4, 8], [0], ((Run(0, 3, 4, 1, 1),),)),
        ([0, 4], [0, 4], ((Run(0, 2, 4, 2, 4),),)),  # places of neighbours fall together
        ([2, 10, 18, 24], [0, 4], ((Run(2, 3, 8, 2, 4),), (Run(24, 1, 1, 2, 4),))),  # the last token was moved back
        ([0, 8], [0, 3, 6, 8], ((Run(0, 2, 8, 3, 3), Run(8, 2, 8, 1, 1)),)),  # rounded distances
        ([5, 5], [0, 1], ((Run(5, 1, 1, 2, 1),), (Run(5, 1, 1, 2, 1),))),  # at the same place
    ],
)
def test_places_are_as_few_runs_as_can_be(firsts: list[int], offsets: list[int], runs: object) -> None:
    assert runs_of(firsts, offsets) == runs


def test_what_is_evenly_spaced_is_read_without_a_copy() -> None:
    """Here the tubes of the demo's large model, whose tokens share places."""
    x = torch.randn(1, 3, 16, 32, 32)
    spec = TubeSpec("short", (8, 8, 8), (8, 8, 8), fold=(2, 1, 1))
    for order in (COLUMNS, ROWS):
        read = windows(x, spec.kernel, _reading(spec, (16, 32, 32), CPU), order)
        assert read.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
