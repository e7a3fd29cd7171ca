import json
import os
import re
import shutil
import zlib
from threading import Barrier
from types import SimpleNamespace

import pytest
import webdataset
from support.indexes import make_older, whole_index
from support.runs import files

from scaleup.common.errors import UserError
from scaleup.data.decode import BadSample
from scaleup.data.pack import write_shards
from scaleup.data.shapes import make_shapes
from scaleup.data.shards import Sample, Shards
from scaleup.data.storage import Failure
from scaleup.data.verify import verify

CLASSES = {"label": ["no", "yes"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "shapes"
    return make_shapes(out, {"train": 5}, {"train": 7}, frames=4, processes=1)


@pytest.fixture
def shards(made, tmp_path):
    """Three tars of images, to be damaged."""
    images = made["images-train"]
    samples = (images.read(i) for i in range(len(images)))
    return write_shards(samples, tmp_path / "images", "image", images.classes, per_shard=3)


def test_random_access_equals_a_sequential_read_by_webdataset(shards):
    tars = [str(shards.path / name) for name in shards.files]
    assert len(tars) == 3
    sequential = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert len(sequential) == len(shards) == 7
    for i in reversed(range(7)):
        sample = shards.read(i)
        assert sequential[i]["__key__"] == sample.key
        assert sequential[i]["png"] == sample.media
        assert json.loads(sequential[i]["json"]) == {"labels": sample.labels}


def test_bytes_depend_on_the_samples_alone(shards, tmp_path):
    again = write_shards((shards.read(i) for i in range(7)), tmp_path / "again", "image", shards.classes, per_shard=3)
    assert files(again.path) == files(shards.path)
    assert again.list_sha256 == shards.list_sha256


def test_list_sha256_names_the_set_not_its_order(shards, tmp_path):
    backwards = write_shards((shards.read(i) for i in range(6, -1, -1)), tmp_path / "b", "image", shards.classes)
    fewer = write_shards((shards.read(i) for i in range(6)), tmp_path / "f", "image", shards.classes)
    assert backwards.list_sha256 == shards.list_sha256 != fewer.list_sha256


def test_existing_directory_is_refused_or_replaced_whole(tmp_path):
    one, two = (Sample(key, "png", b"x", {"label": 0}) for key in ("one", "two"))
    write_shards([one], tmp_path / "out", "image", CLASSES)
    with pytest.raises(UserError, match="exists"):
        write_shards([two], tmp_path / "out", "image", CLASSES)
    assert Shards.open(tmp_path / "out").keys == ["one"]
    assert write_shards([two], tmp_path / "out", "image", CLASSES, overwrite=True).keys == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_cut_short_leaves_what_was_there(tmp_path, error):
    def samples():
        yield Sample("new", "png", b"x", {"label": 0})
        raise error

    write_shards([Sample("old", "png", b"x", {"label": 0})], tmp_path / "out", "image", CLASSES)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        write_shards(samples(), tmp_path / "out", "image", CLASSES, overwrite=True)
    assert Shards.open(tmp_path / "out").keys == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "sample, said",
    [
        (Sample("a.b", "png", b"", {"label": 0}), "a.b"),
        (Sample("first", "png", b"", {"label": 0}), "twice"),
        (Sample("a", "mp4", b"", {"label": 0}), "mp4"),
        (Sample("a", "png", b"", {"label": 2}), "is 2, but there are 2 classes"),
        (Sample("a", "png", b"", {"label": [1]}), "is .1., but there are 2 classes"),
        (Sample("a", "png", b"", {"lable": 0}), "lable"),
    ],
)
def test_samples_that_do_not_fit_are_named(tmp_path, sample, said):
    with pytest.raises(UserError, match=said):
        write_shards([Sample("first", "png", b"", {"label": 0}), sample], tmp_path / "out", "image", CLASSES)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def older(shards):
    """With an index of an older version, all of it in JSON."""
    make_older(shards.path)
    return Shards.open(shards.path)


def edit(path, change):
    """Change the index as text, and its checksum with it."""
    index = path / "index.json"
    text = change("{" + index.read_text().partition(",")[2])
    if text.startswith("{"):
        text = f'{{"crc32":{zlib.crc32(text[1:].encode())},{text[1:]}'
    index.write_text(text)


def test_a_changed_index_is_refused_and_found(older):
    index = older.path / "index.json"
    index.write_text(re.sub(r'"shape":(\d)', lambda m: f'"shape":{(int(m[1]) + 1) % 8}', index.read_text(), count=1))
    with pytest.raises(UserError, match="index.json' is damaged: it has changed since it was written"):
        Shards.open(older.path)
    assert "it has changed since it was written" in verify(older.path, processes=1).problems[0]


OPENING = {
    "no directory": (lambda path: shutil.rmtree(path), "not a shard directory"),
    "no index": (lambda path: (path / "index.json").unlink(), "not a shard directory"),
    "not JSON": (lambda path: edit(path, lambda text: text[:-9]), "not JSON"),
    "a list": (lambda path: edit(path, lambda _: "[]"), "has format None"),
    "another format": (lambda path: edit(path, lambda text: text.replace("shards-1", "shards-9")), "shards-9"),
    "no key": (lambda path: edit(path, lambda text: text.replace('"key"', '"kez"')), "damaged"),
    "modality": (lambda path: edit(path, lambda text: text.replace('"image"', '"sound"')), "damaged"),
    "label": (lambda path: edit(path, lambda text: re.sub(r'"size":\d', '"size":4', text, count=1)), "has size 4 of 4"),
    "twice": (lambda path: edit(path, lambda text: text.replace("0-000001", "0-000000")), "-000000' occurs twice"),
    "outside": (lambda path: edit(path, lambda text: re.sub(r'"png":\[\d+', '"png":[99999', text)), "is not inside"),
    "before": (lambda path: edit(path, lambda text: re.sub(r'"png":\[\d+', '"png":[-1', text)), "is not inside"),
    "traversal": (
        lambda path: edit(path, lambda text: text.replace("000001.tar", "../1.tar")),
        "not the name of a file",
    ),
    "missing tar": (lambda path: (path / "000001.tar").unlink(), r"000001.tar' is missing"),
    "truncated": (lambda path: (path / "000001.tar").write_bytes(b"0" * 1024), r"000001.tar' has 1024 bytes"),
}


def test_several_tars_are_asked_for_their_size_at_a_time(shards, monkeypatch):
    """A disk that answers none of three before all are asked for."""
    asked, real = Barrier(3), os.stat
    monkeypatch.setattr("scaleup.data.shards.PART", 1)

    def stat(file):
        asked.wait(timeout=20)
        return real(file)

    monkeypatch.setattr("scaleup.data.shards.os", SimpleNamespace(stat=stat, path=os.path))
    assert len(Shards.open(shards.path)) == 7


@pytest.mark.parametrize("case", OPENING)
def test_open_refuses_what_is_not_whole(older, case):
    damage, said = OPENING[case]
    damage(older.path)
    with pytest.raises(UserError, match=said):
        Shards.open(older.path)


def hurt(shards, i, extension, change):
    """Change the bytes of one member in its tar, size kept."""
    entries = [(tar.file, entry) for tar in whole_index(shards.path).shards for entry in tar.samples]
    file, entry = entries[i]
    offset, size, _ = entry.members[extension]
    data = bytearray((shards.path / file).read_bytes())
    data[offset : offset + size] = change(bytes(data[offset : offset + size]))
    (shards.path / file).write_bytes(data)
    return file, entry.key


def test_one_flipped_bit_is_found_by_reading_and_by_verify(shards):
    file, key = hurt(shards, 4, "png", lambda data: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    with pytest.raises(BadSample, match=file):
        Shards.open(shards.path).read(4)
    assert Shards.open(shards.path).read(3).key != key
    problems = verify(shards.path, processes=1).problems
    assert f"{file}: sample '{key}': .png has changed since it was written" in problems
    assert not any(other in problem for problem in problems for other in shards.keys if other != key)


@pytest.mark.parametrize("kept", [0.95, 0.5, 512 * 3 / 10240, 0])
def test_a_truncated_tar_is_found_and_its_lost_samples_named(shards, kept):
    tar = shards.path / "000001.tar"
    tar.write_bytes(tar.read_bytes()[: int(tar.stat().st_size * kept)])
    problems = verify(shards.path, processes=1).problems
    assert any(re.match(r"000001.tar: \d+ bytes, not", problem) for problem in problems)
    lost = {key for key in shards.keys if any(f"'{key}'" in problem for problem in problems)}
    assert lost <= set(shards.keys[3:6]) and (kept > 0.9 or shards.keys[5] in lost)


def test_verify_names_a_missing_tar_and_checks_the_others(shards):
    (shards.path / "000000.tar").unlink()
    _, key = hurt(shards, 6, "json", lambda data: data.replace(b"shape", b"shabe"))
    problems = verify(shards.path, processes=1).problems
    assert "000000.tar: missing" in problems
    assert any("000002.tar" in problem and key in problem for problem in problems)


INDEX = {
    "duplicate key": (lambda text, keys: text.replace(keys[2], keys[1]), lambda keys: f"key '{keys[1]}' occurs 2"),
    "label out of range": (
        lambda text, keys: re.sub(r'"size":\d', '"size":9', text, count=1),
        lambda keys: f"'{keys[0]}': label 'size' is 9",
    ),
    "another label": (
        lambda text, keys: re.sub(r'"shape":(\d)', lambda m: f'"shape":{(int(m[1]) + 1) % 8}', text, count=1),
        lambda keys: f"'{keys[0]}': its .json has other labels",
    ),
    "offset": (
        lambda text, keys: re.sub(r'"png":\[(\d+)', lambda m: f'"png":[{int(m[1]) + 512}', text, count=1),
        lambda keys: f"'{keys[0]}': .png has no matching tar header",
    ),
    "count": (lambda text, keys: text.replace('"count":7', '"count":8'), lambda keys: "count is 8, but 7"),
    "shape": (lambda text, keys: text.replace('"members"', '"member"'), lambda keys: "index.json: damaged"),
}


@pytest.mark.parametrize("case", INDEX)
def test_verify_does_not_trust_the_index(older, case):
    change, said = INDEX[case]
    edit(older.path, lambda text: change(text, older.keys))
    assert any(said(older.keys) in problem for problem in verify(older.path, processes=1).problems)


def test_a_damaged_index_still_says_what_was_left_out(older):
    left_out = {"source": "a.png", "reason": "is empty: 0 bytes"}
    edit(older.path, lambda text: text.replace('"members"', '"member"').replace("[]", f"[{json.dumps(left_out)}]", 1))
    found = verify(older.path, processes=1)
    assert (found.samples, found.failures) == (7, [Failure(**left_out)])
    edit(older.path, lambda text: text.replace('"count":7', '"count":"7"').replace('"reason"', '"why"'))
    found = verify(older.path, processes=1)
    assert (found.samples, found.failures) == (0, []) and "damaged" in found.problems[-1]


def test_verify_finds_members_that_the_index_leaves_out(older):
    def without_first(text):
        index = json.loads(text)
        del index["shards"][0]["samples"][0]
        return json.dumps(index | {"count": 6})

    edit(older.path, without_first)
    assert any(
        f"'{older.keys[0]}.png' is not in the index" in problem for problem in verify(older.path, processes=1).problems
    )


def test_verify_finds_a_changed_byte_that_no_sample_reads(shards):
    tar = shards.path / "000002.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    first, second = verify(shards.path, processes=1).problems
    assert first == "000002.tar: its sha256 is not that of the index"
    assert second.startswith("000002.tar: cut off or damaged at byte")


def test_verify_decodes(tmp_path):
    write_shards([Sample("broken", "mp4", b"no video", {"label": 1})], tmp_path / "out", "video", CLASSES)
    assert [problem.split(":")[1].strip() for problem in verify(tmp_path / "out", processes=1).problems] == [
        "sample 'broken'"
    ]


def test_verify_is_content_with_whole_shards(made, shards):
    assert [verify(each.path, processes=1).problems for each in (*made.values(), shards)] == [[], [], []]
