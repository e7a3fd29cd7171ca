"""The index in columns: what is mapped, what is checked and when, and older indexes."""

import hashlib
import json
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.indexes import make_older, whole_index
from support.runs import files
from support.tools import tool

from scaleup.common.errors import UserError
from scaleup.data import columns as files_of_columns
from scaleup.data import table
from scaleup.data.columns import Ragged, text, write_columns
from scaleup.data.index import Index, convert, list_sha256, write_index
from scaleup.data.pack import write_shards
from scaleup.data.shards import Sample, Shards
from scaleup.data.storage import Directory, Remote
from scaleup.data.verify import verify

LABELS: dict[str, Any] = {"one": 1, "many": [0, 2], "none": [], "size": 0.25}
KINDS = {"many": "several", "none": "several", "size": "number"}
CLASSES = {"one": ["a", "b"], "many": ["a", "b", "c"], "none": ["a"], "size": ["value"]}


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Three tars with labels of every kind."""
    samples = (Sample(f"clip{n}ä", "png", bytes(n), LABELS | {"one": n % 2, "size": n / 4}) for n in range(7))
    return write_shards(samples, tmp_path / "out", "image", CLASSES, 3, kinds=KINDS)


def change(path: Path, **values: Any) -> None:
    """Change index.json, and its checksum with it."""
    content = json.loads((path / "index.json").read_bytes()) | values
    del content["crc32"]
    rest = json.dumps(content, separators=(",", ":"))[1:]
    (path / "index.json").write_text(f'{{"crc32":{zlib.crc32(rest.encode())},{rest}')


def test_all_that_was_written_is_read_and_nothing_of_it_when_it_opens(shards: Shards) -> None:
    assert shards.keys[1:3] == ["clip1ä", "clip2ä"] and list(shards.keys) == [f"clip{n}ä" for n in range(7)]
    sample = shards.read(5)
    assert (sample.media, sample.labels) == (bytes(5), LABELS | {"one": 1, "size": 1.25})
    assert [list(each) for each in shards.labels["many"]] == [[0, 2]] * 7 and shards.labels["none"][-1] == ()
    assert shards.labels["many"][np.array([0, -1])].tolist() == [(0, 2), (0, 2)]
    assert isinstance(shards.labels["one"].base, np.memmap)  # of which no page is in memory before it is used
    again = pickle.loads(pickle.dumps(shards))
    assert again.read(6) == shards.read(6) and len(pickle.dumps(shards)) < 500


def test_an_older_index_is_read_and_converted_without_a_loss(shards: Shards) -> None:
    before, samples = files(shards.path), [shards.read(i) for i in range(7)]
    make_older(shards.path)
    older = Shards.open(shards.path)
    assert [older.read(i) for i in range(7)] == samples and older.list_sha256 == shards.list_sha256
    done = tool("check_shards", shards.path, "--convert")
    assert done.returncode == 1 and done.stdout.startswith(f"{shards.path}: its index is converted\n")  # no pictures
    assert [Shards.open(shards.path).read(i) for i in range(7)] == samples
    after = files(shards.path)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name.name != "index.json")
    assert not convert(shards.path)


def test_a_large_older_index_names_the_command(shards: Shards, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(table, "LARGE", 6)
    make_older(shards.path)
    Shards.open(shards.path)
    assert f"tools/check_shards.py {shards.path} --convert makes one that opens at once" in capsys.readouterr().err


def test_every_bit_of_the_columns_counts(shards: Shards) -> None:
    """A flipped one is found where its tar is first read, and by verify."""
    path, layout = shards.path / "index.columns", json.loads((shards.path / "index.json").read_bytes())["columns"]
    whole = path.read_bytes()
    for name, (dtype, rows, begin) in layout.items():
        for row in {0, rows - 1} if rows else ():
            damaged = bytearray(whole)
            damaged[begin + row * np.dtype(dtype).itemsize] ^= 1
            path.write_bytes(damaged)
            opened = Shards.open(shards.path)
            with pytest.raises(UserError, match=f"index.columns' is damaged: the rows of 00000{2 if row else 0}.tar"):
                [opened.read(i) for i in ((6,) if row else (0,))]
            if name != "keys":
                assert any(each.startswith("index.columns: the rows of 00000") for each in problems(shards))


def problems(shards: Shards) -> list[str]:
    return verify(shards.path, processes=1).problems


@pytest.mark.parametrize("damage", ["cut", "missing", "half"])
def test_columns_that_are_not_whole_are_named(shards: Shards, damage: str) -> None:
    path = shards.path / "index.columns"
    if damage == "missing":
        path.unlink()
        match = said = "^'[^']*/index.columns' cannot be read: No such file"
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
        match = said = r"^'[^']*/index.columns' has \d+ bytes; its index says \d+$"
    else:
        columns = json.loads((shards.path / "index.json").read_bytes())["columns"]
        del columns["keys ends"]
        change(shards.path, columns=columns)
        match, said = "index.json' is damaged: it has no 'keys ends'$", "^index.json: damaged"
    with pytest.raises(UserError, match=match):
        Shards.open(shards.path)
    assert re.search(said, problems(shards)[-1])


def test_rows_that_contradict_the_index_are_named(shards: Shards) -> None:
    change(shards.path, classes=CLASSES | {"one": ["a"]})
    assert Shards.open(shards.path).labels["one"].max() == 1
    with pytest.raises(UserError, match="sample 'clip1ä' has one 1 of 1 classes"):
        Shards.open(shards.path).read(0)
    index = whole_index(shards.path)
    index.shards[1].samples[2].members["json"][0] = index.shards[1].bytes - 10
    index.classes = CLASSES
    write_index(shards.path, index)
    assert Shards.open(shards.path).read(0).key == "clip0ä"
    with pytest.raises(UserError, match="sample 'clip5ä' is not inside 000001.tar"):
        Shards.open(shards.path).read(3)


def test_a_write_that_is_cut_short_leaves_the_older_index(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    make_older(shards.path)
    before = files(shards.path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_of_columns.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        convert(shards.path)
    assert files(shards.path) == before


@pytest.mark.parametrize("call", ["list_sha256", "_write"])
def test_a_write_that_ends_early_leaves_the_index_before(
    shards: Shards, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its columns and its index.json, which belong together."""
    before, index = files(shards.path), whole_index(shards.path)
    index.count -= len(index.shards.pop().samples)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"scaleup.data.index.{call}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_index(shards.path, index)
    assert files(shards.path) == before


def test_a_sample_without_a_medium_is_named(shards: Shards) -> None:
    index = whole_index(shards.path)
    index.shards[1].samples[2].members = {"json": [0, 0, 0]}
    with pytest.raises(ValueError, match="sample 'clip5ä' has no image: json"):
        write_index(shards.path, index)


def test_parts_are_written_below_one_another_and_lists_keep_their_ends(tmp_path: Path) -> None:
    parts = [
        {"a ends": np.array(ends, int), "a": np.frombuffer(word.encode(), "u1"), "b": np.full(len(ends), 0.5)}
        for ends, word in (([], ""), ([1, 3], "xyz"), ([0, 0, 2], "uv"))
    ]
    layout = write_columns(tmp_path / "columns", parts)
    near = files_of_columns.open_columns(Directory(tmp_path), "columns", layout)
    far = files_of_columns.open_columns(Remote(f"file://{tmp_path}"), "columns", layout)
    for columns in (near, far):
        words = Ragged(columns, "a", text)
        assert list(words) == ["x", "yz", "", "", "uv"] == words[:] and words[-1] == "uv" and words[1:3] == ["yz", ""]
        assert np.asarray(columns["b"]).tolist() == columns["b"][[0, 4, 1, 2, 3]].tolist() == [0.5] * 5
        assert columns["a ends"][2] == 3 and len(columns["a"]) == 5 and columns["a"][5:].tolist() == []
        with pytest.raises(IndexError):
            words[5]


def test_an_index_of_no_samples_opens(tmp_path: Path) -> None:
    write_index(tmp_path, Index("image", CLASSES, 0, [], [], KINDS))
    shards = Shards.open(tmp_path)
    assert len(shards) == 0 and list(shards.keys) == [] and len(shards.labels["size"]) == 0


@pytest.mark.parametrize("count", [0, 1, 3, 4, 11])
def test_a_hash_of_the_keys_sorts_a_few_at_a_time(count, monkeypatch):
    keys = [f"{number * 7 % 11:02d}\n\u00e4 {number}" for number in range(count)]
    monkeypatch.setattr("scaleup.data.index.SORTED", 4)
    whole = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    assert list_sha256(iter(keys)) == whole and list_sha256(reversed(keys)) == whole


def test_rows_beyond_reading_do_not_end_the_check(shards: Shards) -> None:
    """Members whose ending, offset or size is a number that cannot be."""
    path, layout = shards.path / "index.columns", json.loads((shards.path / "index.json").read_bytes())["columns"]
    whole, begin = path.read_bytes(), layout["members"][2]
    for number in range(3):
        damaged = bytearray(whole)
        damaged[begin + 8 * number + 6] ^= 0x7F
        path.write_bytes(damaged)
        found = problems(shards)
        assert "index.columns: the rows of 000000.tar have changed since they were written" in found
        assert not any(each.startswith("index.json: damaged") for each in found)
        if number:
            assert any("sample 'clip0ä': .png has no matching tar header" in each for each in found)


def test_an_address_that_does_not_answer_is_not_damage(shards: Shards) -> None:
    far = Shards.open(f"file://{shards.path}")
    (shards.path / "index.columns").unlink()
    with pytest.raises(UserError, match=r"^'file://\S*index.columns' cannot be read: "):
        far.read(0)
