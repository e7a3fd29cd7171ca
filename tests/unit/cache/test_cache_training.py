"""Training from a cache is training live on the same views, without the trunk and without videos."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.indexes import whole_index

from scaleup.common.errors import UserError
from scaleup.config.recipe import sweep_arms
from scaleup.config.schema import Input, Recipe
from scaleup.data.columns import Ragged
from scaleup.data.index import write_index
from scaleup.data.loader import train_loader
from scaleup.data.pack import write_shards
from scaleup.data.shards import Shards
from scaleup.data.storage import Failure
from scaleup.data.token_records import CachedSet, cached_loader, cached_sets
from scaleup.model.trunk import Trunk
from scaleup.training.run import Run, train
from scaleup.training.token_cache import make

Frozen = Callable[..., Recipe]
ARMS = ["last", "gated"]


def trained(recipe: Recipe) -> dict[str, dict[str, torch.Tensor]]:
    train(recipe, sweep_arms(recipe))
    return {arm: load_file(Path(recipe.out) / arm / "model.safetensors") for arm in ARMS}


@pytest.mark.parametrize("changes", [[], ["train.accumulate=2", "data.window=5", "data.workers=2"]])
def test_training_from_a_cache_is_training_live(frozen: Frozen, tmp_path: Path, changes: list[str]) -> None:
    """Two epochs, two views, dropout, videos and images: bit for bit the same weights."""
    changes = ["train.steps=9", *changes]
    live = trained(frozen(*changes))
    make(frozen(*changes), [1, 3], tmp_path / "cache", views=2, precision="float32")
    cached = trained(frozen(*changes, f"trunk.cache={tmp_path / 'cache'}", f"out={tmp_path / 'cached'}"))
    for arm in ARMS:
        assert cached[arm].keys() == live[arm].keys()
        for name, tensor in cached[arm].items():
            torch.testing.assert_close(tensor, live[arm][name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def cached(frozen: Frozen, cache: Path) -> Frozen:
    """A recipe that trains from the cache."""
    return lambda *changes: frozen(f"trunk.cache={cache}", *changes)


def test_a_run_from_a_cache_in_pieces_ends_with_the_same_bytes(cached: Frozen, tmp_path: Path) -> None:
    whole = trained(cached(f"out={tmp_path / 'whole'}"))
    pieces = cached(f"out={tmp_path / 'pieces'}")
    for step in (1, 2, 3):
        assert train(pieces, sweep_arms(pieces), stop_after=0).stopped == step
    for arm, tensors in trained(pieces).items():
        assert all(torch.equal(tensor, whole[arm][name]) for name, tensor in tensors.items())


def test_ranks_put_together_read_what_one_reads(cached: Frozen) -> None:
    recipe = cached("data.workers=1")
    sets = cached_sets(recipe.data, recipe.trunk.cache)
    alone = list(cached_loader(recipe.data, sets, 0, range(4), 0, 1))
    parts = [list(cached_loader(recipe.data, sets, 0, range(4), rank, 2)) for rank in (0, 1)]
    for whole, *halves in zip(alone, *parts, strict=True):
        assert torch.equal(whole.pixels, torch.cat([half.pixels for half in halves])) and len(whole.keys) == 4
        assert whole.keys == [key for half in halves for key in half.keys]


def test_what_cannot_be_read_is_replaced_as_live(frozen: Frozen, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A video that cannot be decoded, and a record that has changed: named, and the next one takes its place."""
    shards, hurt = Path(frozen().data.train["videos"].shards), tmp_path / "hurt"
    samples = [Shards.open(shards).read(number) for number in range(12)]
    broken = [replace(sample, media=b"broken") if number == 3 else sample for number, sample in enumerate(samples)]
    write_shards(broken, hurt, "video", Shards.open(shards).classes)
    changes = [f"data.train.videos.shards={hurt}", "data.max_bad=0.3", "train.steps=6"]
    live = train_loader(frozen(*changes).data, Input(8, [32, 32], 8), 1, 6)
    made = make(frozen(*changes), [1, 3], tmp_path / "cache", precision="float32").datasets["videos"]
    assert made.samples == 11 and [failure.source for failure in made.failures] == [samples[3].key]
    changes += [f"trunk.cache={tmp_path / 'cache'}", "train.steps=6"]
    data, keys = frozen(*changes).data, [batch.keys for batch in live]
    for make_old in (None, make_older_cache):
        if make_old:
            make_old(tmp_path / "cache/videos")
        sets = cached_sets(data, str(tmp_path / "cache"))
        assert [batch.keys for batch in cached_loader(data, sets, 1, range(6), 0, 1)] == keys
        opened, videos = Shards.open(hurt), sets["videos"]
        assert list(videos.keys) == list(opened.keys) and videos.list_sha256 == opened.list_sha256
        labels, there = opened.labels["motion"], [number for number in range(12) if number != 3]
        assert videos.labels["motion"][there].tolist() == labels[there].tolist()
        assert videos.labels["motion"][4:9].tolist() == labels[4:9].tolist()

    tar = tmp_path / "cache/videos/000000.tar"
    content = bytearray(tar.read_bytes())
    content[3000] ^= 1
    tar.write_bytes(content)
    capsys.readouterr()
    trained(frozen(*changes, f"out={tmp_path / 'again'}"))
    said = capsys.readouterr().err
    assert f"sample '{samples[3].key}' left out: not a readable video" in said
    assert f"sample '{samples[0].key}' left out: its bytes in 000000.tar have changed" in said


def test_too_many_records_that_have_changed_are_a_sentence(cached: Frozen, cache: Path, tmp_path: Path) -> None:
    """Also if the first of a step is one, so that nothing of the step is read."""
    shutil.copytree(cache, tmp_path / "hurt")
    for name in ("videos", "images"):
        tar = tmp_path / "hurt" / name / "000000.tar"
        tar.write_bytes(bytes(tar.stat().st_size))
    data = cached("data.workers=0").data
    with pytest.raises(UserError, match="1 of the 12 samples of dataset '.*' cannot be read, more than data.max_bad"):
        list(cached_loader(data, cached_sets(data, str(tmp_path / "hurt")), 0, range(4), 0, 1))


def make_older_cache(path: Path) -> None:
    """As versions wrote it that named all samples in ``index.json``."""
    index, keys = whole_index(path), list(CachedSet(path).keys)
    index.made = {name: value for name, value in index.made.items() if name not in ("failed", "list_sha256")}
    index.made["keys"] = keys
    write_index(path, index)


def test_a_cache_that_contradicts_itself_is_refused(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache / "videos", tmp_path / "videos")
    index = whole_index(tmp_path / "videos")
    index.made["failed"] = [3]
    index.failures.append(Failure("3", "not a readable video"))
    write_index(tmp_path / "videos", index)
    with pytest.raises(UserError, match="is not a usable token cache: 12 records of 12 samples in 1 views"):
        CachedSet(tmp_path / "videos")


def test_to_open_a_cache_reads_no_key_and_no_label(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Ragged, "span", never)
    opened = CachedSet(cache / "videos")
    assert len(opened) == 12 and len(opened.list_sha256) == 64


def test_no_video_is_decoded_and_no_frozen_block_computes(
    cached: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are the videos there: of their shards the index is enough."""
    recipe = cached(f"out={tmp_path / 'cached'}", "data.workers=0")
    for dataset in recipe.data.train.values():
        index = tmp_path / Path(dataset.shards).name / "index.json"
        index.parent.mkdir()
        index.write_bytes((Path(dataset.shards) / "index.json").read_bytes())
        dataset.shards = str(index.parent)

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    for module in ("scaleup.data.augment.decode_clip", "scaleup.data.augment.decode_image"):
        monkeypatch.setattr(module, never)
    monkeypatch.setattr(Trunk, "forward", never)
    training = Run(recipe, sweep_arms(recipe))
    for model in training.models.values():
        for module in [*model.trunk.blocks, model.trunk.tokenizer]:  # type: ignore[union-attr]
            module.register_forward_pre_hook(never)
    training.train()


@pytest.mark.parametrize(("arm", "names"), [("last", {"h3"}), ("gated", {"z0", "h1"})])
def test_no_tokens_are_read_that_no_arm_reads(
    cached: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str, names: set[str]
) -> None:
    seen, tokens = set(), CachedSet.tokens

    def noted(self: CachedSet, records: torch.Tensor, name: str) -> torch.Tensor:
        seen.add(name)
        return tokens(self, records, name)

    monkeypatch.setattr(CachedSet, "tokens", noted)
    recipe = cached(f"out={tmp_path / 'cached'}", "data.workers=0")
    train(recipe, {arm: sweep_arms(recipe)[arm]})
    assert seen == names


def test_validation_of_a_run_from_a_cache_is_live(cached: Frozen, frozen: Frozen, tmp_path: Path) -> None:
    changes = ["train.valid_every=2", "trunk.precision=bfloat16"]
    changes.append(f"data.valid={{shards: {frozen().data.train['videos'].shards}}}")
    live = train(frozen(*changes, f"out={tmp_path / 'live'}"), sweep_arms(frozen()))
    make(frozen(*changes), [1, 3], tmp_path / "low", precision="bfloat16")
    recipe = cached(*changes, f"trunk.cache={tmp_path / 'low'}")
    found = train(recipe, sweep_arms(recipe))
    assert found.trunk["precision"] == "bfloat16" and found.trunk["drift"].keys() == {1, 3}
    assert found.trunk["cache"]["views"] == 1
    assert {arm: each.valid_accuracy is not None for arm, each in found.arms.items()} == dict.fromkeys(ARMS, True)
    assert live.trunk["drift"] == found.trunk["drift"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["arms.gated.frozen_depth=2"], "has no taps at frozen depth 2; it has those at 1, 3"),
        (["seed=2"], "blocks.0 is sha256 .* there and sha256 .* here, blocks.1"),
        (["model.tubes.long.stride=[4,8,8]"], r"transform: tokenizer.tubes.long.stride is \[4, 16, 16\] there and \["),
        (["model.positions.amplitude=2"], "tokenizer.positions.amplitude is 1.0 there and 2.0 here"),
        (["model.input.fps=4"], "input.fps is 8.0 there and 4.0 here"),
        (
            ["data.train.images.augment.flip=false"],
            "cache/images' was made .*augment.flip is True there and False here",
        ),
        (["data.train.videos.shards=IMAGES"], "cache/videos' was made .*shards is sha256 .* there and sha256 .* here"),
        (["trunk.precision=bfloat16"], "trunk.precision is 'float32' there and 'bfloat16' here"),
        (["data.train.more={shards: IMAGES, heads: {shape: shape}}"], "more' is not a shard directory"),
        (["data.train.videos.heads={size: size}"], "head 'size' learns label 'size', but .* has: shape, motion"),
        (["trunk.cache=IMAGES/.."], "videos' is not a shard directory"),
        (["train.mixup=0.2"], "train.mixup: mixes pixels before the trunk, but a cache"),
        (["train.cutmix=0.2"], "train.cutmix: mixes pixels before the trunk, but a cache"),
        (["arms.gated={frozen_depth: 0, gate: false}"], "arms.gated.frozen_depth: 0 trains the tokenizer on pixels"),
        (["trunk.cache=nowhere"], "trunk.cache: 'nowhere' is not a directory with a cache or its address"),
    ],
)
def test_another_cache_is_refused_with_what_differs(cached: Frozen, changes: list[str], said: str) -> None:
    images = cached().data.train["images"].shards
    with pytest.raises(UserError, match=said):
        recipe = cached(*(change.replace("IMAGES", images) for change in changes))
        train(recipe, sweep_arms(recipe))


def test_shards_of_videos_are_no_cache(cached: Frozen, tmp_path: Path) -> None:
    videos = Path(cached().data.train["videos"].shards)
    shutil.copytree(videos, tmp_path / "none/videos")
    recipe = cached(f"trunk.cache={tmp_path / 'none'}", "data.train.images.shards=" + str(videos))
    with pytest.raises(UserError, match="none/videos' has videos, and is not a token cache; make one"):
        cached_sets(recipe.data, str(tmp_path / "none"))
