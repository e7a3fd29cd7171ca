"""What is said of the settings of ``make real`` before it fetches anything."""

from pathlib import Path

import pytest

from real.settings import check_settings
from scaleup.common.errors import UserError


@pytest.mark.parametrize(
    ("seeds", "changes", "sentence"),
    [
        ([0, 1, 0], [], "--seeds names 0 twice"),
        ([0], ["train.stps=3"], "train.stps: unknown key; nearest: 'steps'"),
        ([0], ["train.warmup=900"], "train.warmup: 900 is more than train.steps"),
        ([0], ["steps"], "'steps' is not key=value"),
    ],
)
def test_mistakes_are_sentences(tmp_path: Path, seeds: list[int], changes: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_settings(tmp_path / "out", seeds, changes)
    assert not (tmp_path / "out").exists()


def test_figures_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    for name in ("material", "shards", "small"):
        check_settings(tmp_path, [1], ["train.steps=400"])  # each but the last may still be others
        check_settings(tmp_path, [0], [])
        (tmp_path / "stages").mkdir(exist_ok=True)
        (tmp_path / f"stages/{name}.json").touch()
    check_settings(tmp_path, [0, 1], [])
    with pytest.raises(UserError, match="has figures with first seed 0, not 1; name another --out"):
        check_settings(tmp_path, [1, 0], [])
    with pytest.raises(UserError, match=r"has figures with changes \[\], not \['train.steps=400'\]"):
        check_settings(tmp_path, [0], ["train.steps=400"])
    check_settings(tmp_path, [0], [])


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file' cannot be written: File exists"):
        check_settings(tmp_path / "file", [0], [])
