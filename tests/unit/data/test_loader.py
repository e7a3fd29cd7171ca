import copy
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch

from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.data.index import Index, write_index
from scaleup.data.loader import check_heads, classes_of, eval_loader, train_loader
from scaleup.data.pack import write_shards
from scaleup.data.shapes import make_shapes
from scaleup.data.shards import Sample

INPUT = schema.Input(frames=4, size=[16, 16], fps=15)
HEADS = {"what": "shape", "how": "motion"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "shapes"
    return make_shapes(out, {"train": 17, "val": 11}, {"train": 13}, size=16, frames=6, processes=1)


@pytest.fixture
def data(made):
    """Two of three batches from the videos, one from the images."""
    augment = schema.Augment(randaugment_layers=1)
    videos = schema.Dataset(str(made["videos-train"].path), dict(HEADS), 2, augment)
    images = schema.Dataset(str(made["images-train"].path), {"what": "shape", "where": "position"}, 1, augment)
    return schema.Data({"videos": videos, "images": images}, batch=6, workers=0, max_bad=0.2)


def same(one, other):
    assert one.dataset == other.dataset and one.keys == other.keys and one.failures == other.failures
    assert torch.equal(one.pixels, other.pixels)
    assert one.labels.keys() == other.labels.keys()
    assert all(torch.equal(one.labels[head], other.labels[head]) for head in one.labels)


def test_batches_hold_what_the_samples_are(data, made):
    batches = list(train_loader(data, INPUT, 0, 6))
    assert Counter(batch.dataset for batch in batches) == {"videos": 4, "images": 2}
    for batch in batches:
        shards = made[f"{batch.dataset}-train"]
        assert batch.modality == shards.modality and batch.pixels.dtype == torch.uint8
        assert batch.pixels.shape == ((6, 3, 4, 16, 16) if batch.modality == "video" else (6, 3, 16, 16))
        for head, label in data.train[batch.dataset].heads.items():
            labels = {key: shards.labels[label][i] for i, key in enumerate(shards.keys)}
            assert batch.labels[head].dtype == torch.int64
            assert batch.labels[head].tolist() == [labels[key] for key in batch.keys]


def test_epochs_follow_one_another_without_gap(data):
    keys = [key for batch in train_loader(data, INPUT, 0, 51) if batch.dataset == "videos" for key in batch.keys]
    assert len(keys) == 34 * 6 and set(Counter(keys).values()) == {12}
    assert keys[:17] != keys[17:34]


def test_a_sample_is_augmented_anew_in_every_epoch(data):
    seen = {}
    for batch in train_loader(data, INPUT, 0, 12):
        for key, pixels in zip(batch.keys, batch.pixels, strict=True):
            seen.setdefault(key, []).append(pixels)
    again = [images for images in seen.values() if len(images) > 1]
    assert sum(not torch.equal(images[0], images[1]) for images in again) > 0.8 * len(again) > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers_or_on_where_a_run_resumes(data, workers):
    whole = list(train_loader(data, INPUT, 3, 9))
    resumed = list(train_loader(schema.Data(data.train, batch=6, workers=workers, max_bad=0.2), INPUT, 3, 9, start=4))
    for one, other in zip(whole[4:], resumed, strict=True):
        same(one, other)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_put_together_give_the_same_global_batch(data, world):
    ranks = [list(train_loader(data, INPUT, 3, 6, rank=rank, world=world)) for rank in range(world)]
    for whole, *parts in zip(train_loader(data, INPUT, 3, 6), *ranks, strict=True):
        assert {part.dataset for part in parts} == {whole.dataset}
        assert [key for part in parts for key in part.keys] == whole.keys
        assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)


def test_seeds_differ(data):
    one, other = (next(train_loader(data, INPUT, seed, 1)) for seed in (0, 1))
    assert one.keys != other.keys


def test_a_batch_that_ranks_cannot_share_is_refused(data):
    with pytest.raises(UserError, match="6 cannot be divided evenly by 4 ranks"):
        train_loader(data, INPUT, 0, 1, world=4)


def spoiled(made, tmp_path, bad):
    """Copies of the training videos of which those numbered in ``bad`` are garbage."""
    shards = made["videos-train"]
    samples = [shards.read(i) for i in range(len(shards))]
    for i in bad:
        samples[i] = Sample(samples[i].key, "mp4", b"garbage", samples[i].labels)
    return write_shards(samples, tmp_path / "spoiled", "video", shards.classes)


def spoiled_data(data, shards):
    data = copy.deepcopy(data)
    del data.train["images"]
    data.train["videos"].shards = str(shards.path)
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_samples_are_named_once_and_replaced(data, made, tmp_path, capsys, workers):
    shards = spoiled(made, tmp_path, [2, 3, 7])
    data = spoiled_data(data, shards)
    expected = list(train_loader(data, INPUT, 0, 9))
    capsys.readouterr()
    data.workers = workers
    batches = list(train_loader(data, INPUT, 0, 9))
    for one, other in zip(expected, batches, strict=True):
        same(one, other)
    bad = {shards.keys[i] for i in (2, 3, 7)}
    keys = Counter(key for batch in batches for key in batch.keys)
    assert all(len(batch.keys) == 6 for batch in batches)
    assert keys.keys() == set(shards.keys) - bad
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and all(
        any(f"'{key}' left out: not a readable video" in line for line in told) for key in bad
    )


def test_replacements_do_not_depend_on_ranks(data, made, tmp_path):
    data = spoiled_data(data, spoiled(made, tmp_path, [2, 3, 7]))
    ranks = [list(train_loader(data, INPUT, 0, 12, rank=rank, world=2)) for rank in range(2)]
    assert all(any(batch.failures for batch in batches) for batches in ranks)
    for whole, *parts in zip(train_loader(data, INPUT, 0, 12), *ranks, strict=True):
        assert [key for part in parts for key in part.keys] == whole.keys


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("bad, max_bad", [(range(4), 0.2), (range(17), 1.0), ([5], 0.0)])
def test_too_many_unreadable_samples_stop_the_run(data, made, tmp_path, bad, max_bad, workers):
    shards = spoiled(made, tmp_path, bad)
    data = spoiled_data(data, shards)
    data.max_bad, data.workers = max_bad, workers
    with pytest.raises(UserError, match=rf"^{len(bad)} of the 17 samples of dataset 'videos' cannot be read") as error:
        list(train_loader(data, INPUT, 0, 9))
    assert all(f"'{shards.keys[i]}'" in str(error.value) for i in bad)


def test_too_many_on_all_ranks_together_stop_each_of_them_at_the_same_step(data, made, tmp_path, capsys):
    """Half of them on each of two ranks: alone neither has too many."""
    shards = spoiled(made, tmp_path, range(6))
    data = spoiled_data(data, shards)
    data.max_bad = 5 / 17
    meeting, failed = threading.Barrier(2), [[], []]

    def run(rank):
        def joined(failures):
            failed[rank] = failures
            meeting.wait(60)
            both = [*failed[0], *failed[1]]
            meeting.wait(60)
            return both

        done = 0
        try:
            for _ in train_loader(data, INPUT, 0, 30, rank=rank, world=2, joined=joined):
                done += 1
        except UserError as error:
            return done, str(error)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    assert first == second and first[0] > 0
    assert first[1].startswith("6 of the 17 samples of dataset 'videos' cannot be read")
    told = [line.split("'")[3] for line in capsys.readouterr().err.splitlines()]
    assert sorted(told) == sorted(shards.keys[i] for i in range(6)), "each is named once, by the rank that met it"
    for rank in range(2):
        batches = list(islice(train_loader(data, INPUT, 0, 30, rank=rank, world=2), first[0] + 1))
        assert 0 < len({failure.source for batch in batches for failure in batch.failures}) < 6


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_sample_is_evaluated_exactly_once(made, world, workers):
    shards = made["videos-val"]  # 11 samples: none of the numbers divides them
    batches = [
        batch
        for rank in range(world)
        for batch in eval_loader(shards, HEADS, INPUT, "2x1", batch=2, workers=workers, rank=rank, world=world)
    ]
    found = {key: i for batch in batches for i, key in enumerate(batch.keys)}
    assert sorted(key for batch in batches for key in batch.keys) == sorted(shards.keys) == sorted(found)
    for batch in batches:
        assert batch.pixels.shape[1:] == (2, 3, 4, 16, 16)
        labels = {key: shards.labels["motion"][i] for i, key in enumerate(shards.keys)}
        assert batch.labels["how"].tolist() == [labels[key] for key in batch.keys]


def test_what_cannot_be_evaluated_is_reported(made, tmp_path, capsys):
    shards = spoiled(made, tmp_path, [0, 1, 5])
    batches = list(eval_loader(shards, HEADS, INPUT, batch=2, workers=0))
    failed = [failure.source for batch in batches for failure in batch.failures]
    assert failed == [shards.keys[i] for i in (0, 1, 5)]
    assert sorted(failed + [key for batch in batches for key in batch.keys]) == sorted(shards.keys)
    assert capsys.readouterr().err.count("not evaluated") == 3
    assert batches[0].keys == [] and len(batches[0].pixels) == 0


def test_images_are_evaluated_with_crops_alone(made):
    batch = next(eval_loader(made["images-train"], {}, INPUT, "4x3", batch=5, workers=0))
    assert batch.pixels.shape == (5, 3, 3, 16, 16)


def test_heads_must_name_labels(made, data):
    with pytest.raises(UserError, match=r"head 'how' learns label 'motoin'.*nearest: 'motion'"):
        check_heads(made["videos-val"], {"how": "motoin"})
    data.train["images"].heads["x"] = "motion"
    with pytest.raises(UserError, match="head 'x' learns label 'motion'"):
        train_loader(data, INPUT, 0, 1)


def test_classes_of_every_head(data, made):
    classes = classes_of(data)
    assert {head: len(names) for head, names in classes.items()} == {"what": 8, "how": 6, "where": 16}
    data.train["images"].heads = {"how": "shape"}
    with pytest.raises(UserError, match="head 'how' has other classes in dataset 'images'"):
        classes_of(data)


def test_datasets_that_teach_nothing_are_refused(data, made, tmp_path):
    data.train["images"].heads = {}
    with pytest.raises(UserError, match="has no heads; name one with data.train.images.heads={HEAD: LABEL}, of its"):
        train_loader(data, INPUT, 0, 1)
    (tmp_path / "empty").mkdir()
    write_index(tmp_path / "empty", Index("image", made["images-train"].classes, 0, [], []))
    data.train["images"].shards = str(tmp_path / "empty")
    with pytest.raises(UserError, match="dataset 'images' has no samples: '.*/empty' is empty"):
        train_loader(data, INPUT, 0, 1)


def test_shards_that_are_not_there_are_refused(data):
    data.train["images"].shards = "nowhere"
    with pytest.raises(UserError, match="'nowhere' is not a shard directory"):
        train_loader(data, INPUT, 0, 1)


def test_mirroring_what_is_named_by_its_side_is_warned_of(data, capsys):
    classes_of(data)
    warned = capsys.readouterr().err
    assert warned.count("mirrored") == 1 and "head 'how' has classes such as 'left'" in warned
    data.train["videos"].augment = schema.Augment(flip=False)
    classes_of(data)
    assert "mirrored" not in capsys.readouterr().err


def test_a_key_that_is_no_text_is_damage_of_the_index(data, made, tmp_path):
    shards = spoiled(made, tmp_path, [])
    data = spoiled_data(data, shards)
    columns = (shards.path / "index.columns").read_bytes()
    (shards.path / "index.columns").write_bytes(columns.replace(b"video-", b"vide\xff-"))
    with pytest.raises(UserError, match="index.columns' is damaged: the rows of 000000.tar have changed"):
        list(train_loader(data, INPUT, 0, 3))
