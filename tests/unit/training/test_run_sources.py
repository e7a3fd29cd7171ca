import json
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
from scaleup.training import input_hashes
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
    monkeypatch.setattr(input_hashes, "PIECE", 10)
    file, content = tmp_path / "a.safetensors", bytes(range(250)) * 4
    file.write_bytes(content)
    digest = input_hashes._hash_model(file)
    for place in (0, 995, 528):  # in the first piece, in the last, in one between
        file.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        assert input_hashes._hash_model(file) != digest
    file.write_bytes(content + b"\0")
    assert input_hashes._hash_model(file) != digest
    file.write_bytes(content)
    assert input_hashes._hash_model(file) == digest


@pytest.mark.parametrize(
    ("setting", "place", "file"),
    [
        ("weights", "HERE/big.pt", "big.pt"),
        ("weights", "HERE/big.pt:teacher", "big.pt"),
        ("weights", "local-dir:HERE", "pytorch_model.bin"),
        ("weights", "HERE/model.safetensors.index.json", "model-1.safetensors"),
        ("name", "HERE/big.pt:teacher", "big.pt"),
        ("name", "timm:local-dir:HERE", "model-1.safetensors"),
    ],
)
def test_other_weights_of_the_backbone_are_noticed(
    own: Tiny, tmp_path: Path, setting: str, place: str, file: str
) -> None:
    here, recipe = tmp_path / "weights", own()
    here.mkdir()
    for name in ("big.pt", "pytorch_model.bin", "model-1.safetensors"):
        (here / name).write_bytes(b"before")
    (here / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    setattr(recipe.model.backbone, setting, place.replace("HERE", str(here)))
    before = input_hashes.hash_inputs(recipe)
    input_hashes.refuse_changed(before, input_hashes.hash_inputs(recipe))
    (here / file).write_bytes(b"behind")
    after = input_hashes.hash_inputs(recipe)
    with pytest.raises(UserError, match=f"has changed since its checkpoint: model.backbone.{setting}"):
        input_hashes.refuse_changed(before, after)
    older = {name: digest for name, digest in before.items() if "backbone" not in name}
    input_hashes.refuse_changed(older, after)  # of a version that did not notice


def test_a_run_of_another_order_is_refused_where_the_order_differs(own: Tiny) -> None:
    """Sets within a window are shuffled as ever, so runs of older versions go on with them."""
    assert not any(input_hashes.ORDER in name for name in input_hashes.hash_inputs(own()))
    recipe = own("data.window=2")
    here = input_hashes.hash_inputs(recipe)
    older = {name: digest for name, digest in here.items() if input_hashes.ORDER not in name}
    assert len(here) > len(older) == len(input_hashes.hash_inputs(own()))
    input_hashes.refuse_changed(here, here)
    with pytest.raises(UserError, match=r"began it, with another order of data.train.videos, .*; finish it with that"):
        input_hashes.refuse_changed(older, here)


def test_a_run_goes_on_after_its_shards_index_was_converted(own: Tiny, tmp_path: Path) -> None:
    recipe, sets = own(), [tmp_path / "shapes" / f"{kind}-train" for kind in ("videos", "images")]
    for path in sets:
        make_older(path)
    older = input_hashes.hash_inputs(recipe)
    assert [convert(path) for path in sets] == [True, True] and not convert(sets[0])
    assert input_hashes.hash_inputs(recipe) == older
