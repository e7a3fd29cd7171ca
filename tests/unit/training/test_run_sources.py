import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.indexes import make_older, whole_index

from scaleup.common.errors import UserError
from scaleup.config.recipe import load
from scaleup.config.schema import Model, Recipe
from scaleup.data.index import convert, write_index
from scaleup.training import run_inputs
from scaleup.training.run import train

Tiny = Callable[..., Recipe]


@pytest.fixture
def own(tiny_path: Path, tmp_path: Path) -> Tiny:
    """The tiny recipe on shards of its own."""
    shutil.copytree(tiny_path.parent / "shapes", tmp_path / "shapes")
    changes = [f"data.train.{kind}.shards={tmp_path / 'shapes' / kind}-train" for kind in ("videos", "images")]
    return lambda *more: load(tiny_path, [f"out={tmp_path / 'out'}", *changes, *more])


def test_a_run_does_not_go_on_with_other_shards(own: Tiny, tmp_path: Path) -> None:
    recipe, images = own(), tmp_path / "shapes" / "images-train"
    arms = {"model": recipe.arm}
    assert train(recipe, arms, stop_after=0).stopped == 1
    index, whole = whole_index(images), (images / "index.json").read_bytes()
    index.shards[0].sha256 = "0" * 64
    write_index(images, index)
    with pytest.raises(UserError, match="has changed since its checkpoint: data.train.images.shards; put it back"):
        train(recipe, arms, stop_after=0)
    (images / "index.json").write_bytes(whole)
    assert train(recipe, arms, stop_after=0).stopped == 2


def test_a_run_does_not_go_on_from_another_model(own: Tiny, tmp_path: Path) -> None:
    """Another seed drew it: the same settings and sizes, other weights."""
    for seed in (1, 2):
        recipe = own(f"seed={seed}", f"out={tmp_path / f'seed{seed}'}", "train.steps=1", "train.warmup=0")
        train(recipe, {"model": recipe.arm})
    place = tmp_path / "loaded"
    shutil.copytree(tmp_path / "seed1" / "model", place)
    recipe = replace(own(), model=Model(load=str(place)))
    arms = {"model": recipe.arm}
    assert train(recipe, arms, stop_after=0).stopped == 1
    (place / "README.md").write_text("other words")
    assert train(recipe, arms, stop_after=0).stopped == 2
    shutil.copy(tmp_path / "seed2" / "model" / "model.safetensors", place)
    with pytest.raises(UserError, match="has changed since its checkpoint: model.load; put it back"):
        train(recipe, arms, stop_after=0)


def test_large_files_are_read_in_pieces_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_inputs, "PIECE", 10)
    file, content = tmp_path / "a.safetensors", bytes(range(250)) * 4
    file.write_bytes(content)
    digest = run_inputs._hash_files(file)
    for place in (0, 995, 528):  # in the first piece, in the last, in one between
        file.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        assert run_inputs._hash_files(file) != digest
    file.write_bytes(content + b"\0")
    assert run_inputs._hash_files(file) != digest
    file.write_bytes(content)
    assert run_inputs._hash_files(file) == digest


def test_a_run_of_another_order_is_refused_where_the_order_differs(own: Tiny) -> None:
    """Sets within a window are shuffled as ever, so runs of older versions go on with them."""
    assert not any(run_inputs.ORDER in name for name in run_inputs.hash_inputs(own()))
    recipe = own("data.window=2")
    here = run_inputs.hash_inputs(recipe)
    older = {name: digest for name, digest in here.items() if run_inputs.ORDER not in name}
    assert len(here) > len(older) == len(run_inputs.hash_inputs(own()))
    run_inputs.refuse_changed(here, here)
    with pytest.raises(UserError, match=r"began it, with another order of data.train.videos, .*; finish it with that"):
        run_inputs.refuse_changed(older, here)


def test_a_run_goes_on_after_its_shards_index_was_converted(own: Tiny, tmp_path: Path) -> None:
    recipe, sets = own(), [tmp_path / "shapes" / f"{kind}-train" for kind in ("videos", "images")]
    for path in sets:
        make_older(path)
    older = run_inputs.hash_inputs(recipe)
    assert [convert(path) for path in sets] == [True, True] and not convert(sets[0])
    assert run_inputs.hash_inputs(recipe) == older
