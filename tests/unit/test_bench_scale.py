"""The simulation of large sets, with a small one; no time is asserted."""

import sys
from pathlib import Path

import pytest
from support.indexes import whole_index

from bench.scale import MEDIUM, PER_RANK, make_index, measure, scale
from scaleup.data.shards import Shards


def test_sparse_tars_are_what_their_index_says(tmp_path: Path) -> None:
    make_index(tmp_path / "set", 8 * PER_RANK + 7, 100)
    shards = Shards.open(tmp_path / "set")
    assert [tar.file for tar in whole_index(shards.path).shards] == ["000000.tar", "000001.tar", "000002.tar"]
    assert [shards.read(i).key for i in (0, 99, 100, 262)] == ["000000000", "000000099", "000000100", "000000262"]
    assert shards.read(262).media == bytes(MEDIUM)
    assert sum((tmp_path / "set" / name).stat().st_blocks for name in shards.files) == 0
    figures = measure(str(tmp_path / "set"))
    assert {"batch_seconds_8_ranks", "resume_seconds", "order_ms"} <= figures.keys()
    assert "batch_seconds_64_ranks" not in figures


def test_the_figure_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two numbers of samples, as the bench runs them, but in this process: figures, goals of the larger, a plot."""
    monkeypatch.setattr(sys.modules["bench.scale"], "run_in_process", lambda work, *args, modules: work(*args))
    (tmp_path / "indexes").mkdir()
    result = scale([300, 3000], 100, str(tmp_path / "indexes"), str(tmp_path / "plot.png"), repeats=2)
    assert [row["samples"] for row in result["rows"]] == [300, 3000] and len(result["goals"]) == 4
    assert result["goals"][0]["what"].startswith("3,000 samples") and (tmp_path / "plot.png").stat().st_size > 1000
    assert result["rows"][1]["batch_seconds_64_ranks"] > 0 and not [*(tmp_path / "indexes").iterdir()]


@pytest.mark.parametrize("count", [1, PER_RANK - 1])
def test_less_than_a_batch_is_measured_too(count: int, tmp_path: Path) -> None:
    make_index(tmp_path / "set", count, 100)
    assert {"first_batch_seconds", "resume_seconds", "order_ms"} <= measure(str(tmp_path / "set")).keys()
