"""A cache is written as shards are: sized before, same bytes for the same input, whole after a kill."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import files

from scaleup.common.errors import UserError
from scaleup.config.schema import Recipe
from scaleup.data.index import write_index
from scaleup.data.loader import Augmented, open_datasets
from scaleup.data.shards import Shards
from scaleup.data.token_records import CachedSet, dequantise, layout, quantise, record, tensor_of
from scaleup.data.verify import verify
from scaleup.model.tubevit import TubeViT
from scaleup.training import cache_size
from scaleup.training import token_cache as making
from scaleup.training.run_inputs import build_models
from scaleup.training.token_cache import SetWriter, make

Frozen = Callable[..., Recipe]
SETS = ("videos", "images")


@pytest.fixture
def small_tars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five samples a tar of either set."""
    for module in ("token_cache", "cache_size"):
        monkeypatch.setattr(f"scaleup.training.{module}.samples_of_a_tar", lambda record, views: 5)


def model_of(recipe: Recipe) -> TubeViT:
    return build_models(recipe, {"last": recipe.arm})["last"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_records_hold_what_the_trunk_gives_of_each_view(frozen: Frozen, tmp_path: Path, precision: str) -> None:
    recipe = frozen("arm.frozen_depth=3")
    made = make(recipe, [1, 3], tmp_path / "cache", views=2, precision=precision)
    model = model_of(recipe)
    read = Augmented(recipe.data, model.config.input, recipe.seed, open_datasets(recipe.data))
    for name in SETS:
        cached = CachedSet(tmp_path / "cache" / name)
        assert cached.keys == open_datasets(recipe.data)[name].keys and len(cached) == 12
        for sample, epoch, view in ((0, 0, 0), (7, 1, 1), (7, 5, 1)):
            x = model.preprocess(read(name, sample, view)[None])
            taps = model.trunk(x, [1, 3])  # type: ignore[misc]
            record = cached.record(sample, epoch)[None]
            for tensor, wanted in (("z0", taps[1].z0), ("h1", taps[1].h), ("h3", taps[3].h)):
                error = {"float32": 1e-6, "bfloat16": 2**-8, "int8": 0.02}[precision]
                found = cached.tokens(record, tensor)
                assert found.dtype == torch.float32 and found.shape == wanted.shape
                assert (found - wanted).norm() <= error * wanted.norm()
    assert all((share < 1e-6) == (precision == "float32") for share in made.drift.values())


def test_int8_is_within_half_a_step_of_each_token() -> None:
    tokens = torch.randn(2, 5, 16) * torch.logspace(-3, 3, 5)[:, None]
    tokens[0, 0] = 0
    found = dequantise(quantise({"z0": tokens}, "int8"), "z0")
    steps = tokens.abs().amax(-1, keepdim=True) / 127
    assert ((found - tokens).abs() <= 0.501 * steps).all() and not found[0, 0].any()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_tensor_is_read_wherever_it_lies_in_a_batch_of_records(precision: str, first: int) -> None:
    tokens = torch.randn(3, 5, 7)  # records of odd lengths with int8
    kept = quantise({"z0": tokens, "h1": tokens + 1}, precision)
    records = [record({name: each[sample] for name, each in kept.items()}) for sample in range(3)]
    batch = torch.stack([torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in records])[first:]
    for name, place in layout(records[0]).items():
        assert torch.equal(tensor_of(batch, place), kept[name][first:])


@pytest.mark.usefixtures("small_tars")
@pytest.mark.parametrize("changes", [[], ["data.workers=2"]])
def test_the_same_input_gives_the_same_bytes_as_many_as_were_said(
    frozen: Frozen, tmp_path: Path, changes: list[str], capsys: pytest.CaptureFixture
) -> None:
    make(frozen(), [2], tmp_path / "one", views=3)
    result = make(frozen(*changes), [2], tmp_path / "two", views=3)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name, shards in open_datasets(frozen().data).items():
        *tars, columns, index = sorted((tmp_path / "one" / name).iterdir())
        assert [tar.name for tar in tars] == ["000000.tar", "000001.tar", "000002.tar"]
        assert (columns.name, index.name) == ("index.columns", "index.json")
        record = result.datasets[name].record_bytes
        roughly = cache_size.cache_bytes(shards, record, 3) - sum(tar.stat().st_size for tar in tars)
        assert roughly == 3 * (12 * cache_size.ENTRY + sum(map(len, shards.keys)))
        assert 0.7 * roughly < columns.stat().st_size < roughly
        assert verify(tmp_path / "one" / name, processes=1).problems == []
    assert "the cache takes" in capsys.readouterr().err


def cut_off(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """As a kill would, in the midst of a tar."""
    real, left = SetWriter._records, [after]

    def records(self: SetWriter, pixels: torch.Tensor) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, pixels)

    monkeypatch.setattr(SetWriter, "_records", records)


@pytest.mark.usefixtures("small_tars")
def test_what_was_finished_is_kept(
    frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    make(frozen(), [2], tmp_path / "whole")
    partial, batches = tmp_path / ".out.partial", 2 + 2 + 1  # of four and one samples, a dataset
    kept: dict[str, int] = {}
    for after in (3, batches):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            cut_off(patch, after)
            make(frozen(), [2], tmp_path / "out")
        assert not (tmp_path / "out").exists()
        found = {str(path): path.stat().st_ino for path in partial.glob("*/*.json")}
        assert kept.items() < found.items() or not kept
        kept = found
    assert len(kept) == 4  # three of the videos, one of the images
    tars = {path.name: path.stat().st_ino for path in (partial / "videos").glob("*.tar")}
    make(frozen(), [2], tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole") and not partial.exists()
    assert {name: (tmp_path / "out/videos" / name).stat().st_ino for name in tars} == tars
    assert "going on: 3 of 3 shards of 'videos' are finished" in capsys.readouterr().err


@pytest.mark.usefixtures("small_tars")
def test_a_kill_while_indexes_are_written_costs_no_tokens(
    frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(frozen(), [2], tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("scaleup.data.pack.write_index", interrupted_after(1, write_index))
        make(frozen(), [2], tmp_path / "out")
    monkeypatch.setattr(SetWriter, "_records", None)  # nothing may be computed again
    make(frozen(), [2], tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.usefixtures("small_tars")
def test_what_has_come_while_it_was_made_stays_and_so_does_the_cache(
    frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conclude = SetWriter.conclude

    def meanwhile(writer: SetWriter) -> None:
        conclude(writer)
        (tmp_path / "out").write_text("theirs")

    monkeypatch.setattr(SetWriter, "conclude", meanwhile)
    with pytest.raises(UserError, match="out' exists"):
        make(frozen(), [2], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "theirs"
    monkeypatch.setattr(SetWriter, "_records", None)  # nothing may be computed again
    make(frozen(), [2], tmp_path / "out", overwrite=True)
    assert len(CachedSet(tmp_path / "out/videos")) == 12


def interrupted_after(times: int, call: Callable[..., None]) -> Callable[..., None]:
    left = iter([call] * times)

    def called(*args: Any) -> None:
        if (each := next(left, None)) is None:
            raise KeyboardInterrupt
        each(*args)

    return called


def test_another_plan_begins_anew(
    frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_off(patch, 4)
        make(frozen(), [2], tmp_path / "out")
    make(frozen(), [3], tmp_path / "out")
    assert "starting again" in capsys.readouterr().err
    assert CachedSet(tmp_path / "out/videos").made["depths"] == [3]


def test_what_is_too_large_is_refused_before_anything_is_read(
    frozen: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(Shards, "read", nothing)
    monkeypatch.setattr(making, "prepare_trunks", nothing)
    with pytest.raises(UserError, match=r"the cache takes .* kB, more than --limit allows, 10 kB"):
        make(frozen(), [2], tmp_path / "out", limit=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 9 * 10**5, 10**5))
    with pytest.raises(UserError, match=r"of the 100 kB that are free on the disk .* 5% must stay free"):
        make(frozen(), [2], tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_depth_that_is_none_is_refused(frozen: Frozen, tmp_path: Path) -> None:
    for depth in (0, 4):
        with pytest.raises(UserError, match=f"no taps at frozen depth {depth}; this model has 1 to 3"):
            make(frozen(), [2, depth], tmp_path / "out")


def test_damage_is_found(frozen: Frozen, tmp_path: Path) -> None:
    make(frozen(), [2], tmp_path / "out")
    tar = tmp_path / "out/videos/000000.tar"
    content = bytearray(tar.read_bytes())
    content[3000] ^= 1
    tar.write_bytes(content)
    problems = verify(tmp_path / "out/videos", processes=1).problems
    assert any(
        f"sample '{CachedSet(tmp_path / 'out/videos').keys[0]}-v0'" in problem and "has changed" in problem
        for problem in problems
    )
