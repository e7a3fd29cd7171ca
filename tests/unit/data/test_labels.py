"""Labels that are several classes of a sample, or a number: from files of labels to shards and batches."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from support.indexes import whole_index

from scaleup.common.errors import UserError
from scaleup.data import labels
from scaleup.data.batches import collate
from scaleup.data.index import write_index, write_part
from scaleup.data.labels import as_array, split_label
from scaleup.data.pack import pack, write_shards
from scaleup.data.shards import Sample, Shards
from scaleup.data.sources import read_source
from scaleup.data.tars import index_tars
from scaleup.data.verify import verify

HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(picture())
    return tmp_path


def values(shards):
    """The label of each sample, by the name of its file."""
    return {shards.keys[i].split("-")[1]: shards.read(i).labels["label"] for i in range(len(shards))}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("3;17", ["3", "17"]),
        ("3,17", ["3", "17"]),
        ("3 17", ["3", "17"]),
        ("run | jump, high", ["run", "jump, high"]),
        ('["run; fast", 3]', ["run; fast", "3"]),
        ("[odd name", ["[odd name"]),
        ("['run', 'sit; down']", ["run", "sit; down"]),
        ('[null, "-1", 3]', ["3"]),
        ("-1", []),
        ("-1,3", ["3"]),
        ("", []),
    ],
)
def test_several_labels_in_a_text(text, labels):
    assert split_label(text) == labels


SEVERAL = {  # of four pictures: the text of a list
    "a cell": "path,label\na.png,run;jump\nb.png,\nc.png,jump;jump\nd.png,sit\n",
    "columns": "path,label,label_2\na.png,jump,run\nb.png,,\nc.png,jump,\nd.png,sit\n",
    "cells in columns": "path,label,label_2\na.png,jump;run,\nb.png,,\nc.png,jump,\nd.png,sit\n",
    "no header": "a.png,run,jump\nb.png,\nc.png,jump\nd.png,sit\n",
    "ones": "path,jump,run,sit\na.png,1,1,0\nb.png,0,0,0\nc.png,1,0,0\nd.png,0,0,1\n",
    "shares": "path,jump,run,sit\na.png,1.0,1.0,0.0\nb.png,0.0,0,0\nc.png,1,0,0\nd.png,0,0,1\n",
    "lines": "path,label\na.png,jump\na.png,run\nb.png,\nc.png,jump\nd.png,sit\n",
    "numbers": 'path,label\na.png,"0,1"\nb.png,\nc.png,0\nd.png,2\n',
    "JSON": '{"a.png": ["run", "jump"], "b.png": [], "c.png": ["jump"], "d.png": "sit"}',
    "null in JSON": '{"a.png": ["run", "jump"], "b.png": null, "c.png": [null, "jump"], "d.png": "sit"}',
}


@pytest.mark.parametrize("case", SEVERAL)
def test_several_labels_from_a_file(pictures, case):
    source = pictures / ("all.json" if case.endswith("JSON") else "list.csv")
    source.write_text(SEVERAL[case])
    shards = pack(read_source(source, labels="several"), pictures / "out", processes=1)
    assert shards.classes == {"label": ["0", "1", "2"] if case == "numbers" else ["jump", "run", "sit"]}
    assert not shards.failures and shards.kinds == {"label": "several"}
    assert values(shards) == {"a": [0, 1], "b": [], "c": [0], "d": [2]}
    assert not verify(shards.path).problems


@pytest.mark.parametrize("labels", ["one", "several"])
def test_what_is_no_label_in_json_is_no_class(pictures, labels):
    wrong = {"b.png": True, "c.png": {"name": "run"}, "d.png": ["run", False]}
    (pictures / "all.json").write_text(json.dumps({"a.png": "run", **wrong}))
    listing = read_source(pictures / "all.json", labels=labels)
    assert listing.classes == ["run"]
    allowed = "; allowed are text, a number, and a list of these"
    said = ["", *(f"its label has {value}{allowed}" for value in ("true", '{"name": "run"}', "false"))]
    assert [item.reason for item in listing.items] == said


@pytest.mark.parametrize(("cell", "part"), [("[true]", "true"), ("[True]", "true"), ("['run', b'sit']", "\"b'sit'\"")])
def test_what_is_no_label_in_a_list_of_a_cell_is_no_class(pictures, cell, part):
    (pictures / "list.csv").write_text(f"path\tlabel\na.png\trun\nb.png\t{cell}\n")
    listing = read_source(pictures / "list.csv", labels="several")
    assert listing.classes == ["run"]
    said = f"its label has {part}; allowed are text, a number, and a list of these"
    assert [item.reason for item in listing.items] == ["", said]


def test_a_column_names_its_class_as_it_is_written(pictures):
    (pictures / "list.csv").write_text("Path,Long Jump,Run\na.png,1,0\nb.png,0,1\n")
    assert read_source(pictures / "list.csv", labels="several").classes == ["Long Jump", "Run"]


def test_a_batch_has_several_labels_as_multi_hot_rows(pictures):
    (pictures / "list.csv").write_text("path,label\na.png,0;2\nb.png,\nc.png,1\nd.png,2\n")
    shards = pack(read_source(pictures / "list.csv", labels="several"), pictures / "out", processes=1)
    rows = [(i, torch.zeros(1)) for i in np.argsort(shards.keys)]
    labels = collate("x", shards, {"head": "label"}, rows, []).labels["head"]
    names = [shards.keys[i].split("-")[1] for i, _ in rows]
    expected = {"a": [1, 0, 1], "b": [0, 0, 0], "c": [0, 1, 0], "d": [0, 0, 1]}
    assert labels.dtype == torch.float32 and labels.tolist() == [expected[name] for name in names]


def test_numbers_are_labels(pictures):
    (pictures / "list.csv").write_text("path,label\na.png,1.5\nb.png,-2\nc.png,nan\nd.png,inf\n")
    shards = pack(read_source(pictures / "list.csv", labels="number"), pictures / "out", processes=1)
    assert values(shards) == {"a": 1.5, "b": -2.0} and shards.kinds == {"label": "number"}
    assert sorted(failure.reason for failure in shards.failures) == [
        "label 'inf' is not a finite number",
        "label 'nan' is not a finite number",
    ]
    labels = collate("x", shards, {"head": "label"}, [(0, torch.zeros(1)), (1, torch.zeros(1))], []).labels["head"]
    assert labels.dtype == torch.float32 and sorted(labels.tolist()) == [-2, 1.5]


def test_charades(tmp_path):
    (tmp_path / "Charades_v1_classes.txt").write_text("c000 Holding some clothes\nc001 Sitting\nc002 Taking a book\n")
    rows = ["A1,x,Hall,6,7,Yes,s,o,d,c002 11.90 21.20;c000 0.00 12.60,29", "B2,x,Hall,6,7,Yes,s,o,d,,30"]
    rows += ["C3,x,Hall,6,7,Yes,s,o,d,c02 1 2,30", "D4,x,Hall,6,7,Yes,s,o,d,c003 1.00 2.00,30"]
    (tmp_path / "train.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    listing = read_source(tmp_path / "train.csv")
    assert listing.classes == ["c000 Holding some clothes", "c001 Sitting", "c002 Taking a book"]
    assert [listing.labelling.value(item.label) for item in listing.items if not item.reason] == [[0, 2], []]
    assert [item.path.name for item in listing.items] == ["A1.mp4", "B2.mp4", "C3.mp4", "D4.mp4"]
    reasons = [item.reason for item in listing.items if item.reason]
    assert reasons == ["action 'c02 1 2' is not like 'c092 11.90 21.20'", "label '003' is not one of the 3 classes"]


def test_lists_in_tars(tmp_path):
    values = {"a": [2, 0], "b": [], "c": 1, "d": [7], "e": [0, True]}
    contents = {key: {"label": value} for key, value in values.items()}
    (tmp_path / "classes.txt").write_text("run\njump\nsit\n")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key, content in contents.items():
            for ending, data in (("png", picture()), ("json", json.dumps(content).encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    shards = index_tars(tmp_path, classes=tmp_path / "classes.txt", processes=1, labels="several")
    assert [shards.read(i).labels["label"] for i in range(3)] == [[0, 2], [], [1]]
    unknown, wrong = sorted((failure.reason for failure in shards.failures), reverse=True)
    assert unknown == "label '7' is not one of the 3 classes" and wrong.startswith("its label has true; allowed are")


@pytest.mark.parametrize(
    ("label", "kind", "reason"),
    [
        ([0, 3], "several", "has 3, but there are 3 classes"),
        ([0, -1], "several", "has -1, but there are 3 classes"),
        ([1, 1], "several", "names a class twice"),
        (1, "several", "is 1, but must be a list"),
        (float("nan"), "number", "is nan, which is not a finite number"),
        (float("inf"), "number", "is inf, which is not a finite number"),
        (1e39, "number", "which is not a finite number"),
        (10**400, "number", "which is not a finite number"),
        ("1", "number", "is 1, which is not a finite number"),
    ],
)
def test_labels_that_are_none_are_refused_when_they_are_written_and_read(tmp_path, label, kind, reason):
    classes, samples = {"label": ["a", "b", "c"]}, [Sample("k", "png", picture(), {"label": label})]
    with pytest.raises(UserError, match=f"label 'label' of sample 'k' .*{reason}"):
        write_shards(samples, tmp_path / "out", "image", classes, kinds={"label": kind})
    good = [0] if kind == "several" else 0.5
    write_shards(
        [Sample("k", "png", picture(), {"label": good})], tmp_path / "out", "image", classes, kinds={"label": kind}
    )

    index = whole_index(tmp_path / "out")
    index.shards[0].samples[0].labels["label"] = label
    with pytest.raises(ValueError, match=reason):
        write_index(tmp_path / "out", index)
    write_part(tmp_path / "out/index.json", index)  # as older versions wrote it
    with pytest.raises(UserError, match=f"index.json' is damaged: .*{reason}"):
        Shards.open(tmp_path / "out")
    assert any(reason in problem for problem in verify(tmp_path / "out").problems)


@pytest.mark.parametrize("part", [3, 2**18])
def test_counts_and_deviations_are_those_of_all_parts_together(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "PART", part)
    source = np.random.default_rng(0)
    numbers, others, classes = source.random(10) + 100, source.random(7), source.integers(0, 4, 20)
    lists = as_array([sorted({*source.integers(0, 4, 2).tolist()}) for _ in range(20)], "several")
    whole = np.concatenate([numbers, others])
    assert labels.mean_and_deviation([numbers, others]) == pytest.approx((whole.mean(), whole.std()))
    assert labels.mean_and_deviation([np.full(5, 0.1), np.full(4, 0.1)]) == (0.1, 0)
    weights = source.random(20)
    for column in (classes, lists):
        slow, weighted = np.zeros(6), np.zeros(6)
        for row, label in enumerate(column):
            for number in np.atleast_1d(label).astype(int):
                slow[number] += 1
                weighted[number] += weights[row]
        assert labels.class_counts(column, 6).tolist() == slow.tolist()
        assert labels.class_counts(column, 6, lambda *rows: weights[slice(*rows)]) == pytest.approx(weighted)


@pytest.mark.parametrize("wrong", [-1, 2, 2**50])
@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_label_that_is_no_class_is_not_counted(kind: str, wrong: int) -> None:
    column = as_array([0, 1, wrong] if kind == "one" else [[0], [1, wrong], []], kind)
    with pytest.raises(UserError, match=rf"label {wrong} is not one of 2 classes.*check_shards"):
        labels.class_counts(column, 2)


def test_no_label_at_all_is_counted():
    for factors in (None, lambda begin, end: np.ones(end - begin)):
        assert labels.class_counts(as_array([(), ()], "several"), 3, factors).tolist() == [0, 0, 0]
