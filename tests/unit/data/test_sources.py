import io
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from scaleup.common.errors import UserError
from scaleup.data.decode import BadSample
from scaleup.data.hf_rows import Rows, read_dataset
from scaleup.data.items import Items
from scaleup.data.lists import read_classes
from scaleup.data.sources import kind_of, read_source
from scaleup.data.storage import Item


def touched(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def found(listing, root):
    """(path below root, label or the beginning of the reason)."""
    return [(str(item.path.relative_to(root)), item.label or item.reason) for item in listing.items]


def test_a_folder_per_class(tmp_path):
    touched(tmp_path, "n02/deep/b.JPEG", "n01/a.JPEG", "n01/.hidden", ".cache/x.JPEG")
    listing = read_source(tmp_path)
    assert found(listing, tmp_path) == [
        (".cache", "is hidden"),
        ("n01/.hidden", "is hidden"),
        ("n01/a.JPEG", "n01"),
        ("n02/deep/b.JPEG", "n02"),
    ]
    assert listing.modality == "image"
    assert listing.classes == ["n01", "n02"]


LINES = """clips/one.mp4 7
clips/with spaces in it.mp4 0
clips/two.mp4::3
plain 5

clips/no_label.mp4
../outside.mp4 1
clips/one.mp4 2
clips/nine.mp4 -1
"""


def test_a_list_of_paths_and_numbers(tmp_path):
    (tmp_path / "list.txt").write_text(LINES)
    listing = read_source(tmp_path / "list.txt", root=tmp_path / "root", classes=numbered(tmp_path, 8))
    assert found(listing, tmp_path / "root") == [
        ("clips/one.mp4", "class 7"),
        ("clips/with spaces in it.mp4", "class 0"),
        ("clips/two.mp4::3", "line 3 has '::' between path and label, but other lines have spaces"),
        ("plain", "does not exist, with or without an extension"),
        ("clips/no_label.mp4", "line 6 has no label after the path"),
        ("../outside.mp4", "its path is outside the folder of the files"),
        ("clips/one.mp4", "is listed twice"),
        ("clips/nine.mp4", "label '-1' means that there is no label"),
    ]


def numbered(tmp_path, count):
    (tmp_path / "classes.txt").write_text("".join(f"class {number}\n" for number in range(count)))
    return tmp_path / "classes.txt"


def test_labels_of_a_list_may_be_names_or_bare_numbers(tmp_path):
    (tmp_path / "names.txt").write_text("/abs/a.mp4::riding a bike\nb.mp4::abseiling\n")
    listing = read_source(tmp_path / "names.txt")
    assert listing.classes == ["abseiling", "riding a bike"]
    assert [str(item.path) for item in listing.items] == ["/abs/a.mp4", str(tmp_path / "b.mp4")]
    (tmp_path / "numbers.csv").write_text("a.mp4 2\nb.mp4 10\n")
    listing = read_source(tmp_path / "numbers.csv")
    assert listing.classes == [str(number) for number in range(11)]  # 10 after 9, not after 1
    assert [item.label for item in listing.items] == ["2", "10"]


def test_a_number_beyond_reason_makes_no_billion_classes(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mp4 999999999\n")
    listing = read_source(tmp_path / "list.txt")
    assert len(listing.classes) <= 100_000 and "is not one of the" in listing.items[1].reason


KINETICS = """label,youtube_id,time_start,time_end,split
riding a bike,abcDEF-_123,10,20,train
abseiling,0123456789a,0,10,val
abseiling,in_folder_1,1,11,train
,no_label_12,3,13,train
abseiling,bad_time_12,x,13,train
abseiling,../../../etc,3,13,train
abseiling,missing_123,100,110,train
"""


def test_kinetics(tmp_path):
    (tmp_path / "k.csv").write_text(KINETICS)
    touched(tmp_path, "abcDEF-_123_000010_000020.mp4", "abseiling/in_folder_1_000001_000011.mp4")
    listing = read_source(tmp_path / "k.csv", split="train")
    assert found(listing, tmp_path) == [
        ("abcDEF-_123_000010_000020.mp4", "riding a bike"),
        ("abseiling/in_folder_1_000001_000011.mp4", "abseiling"),
        ("no_label_12_000003_000013.mp4", "has no label"),
        ("bad_time_12.mp4", "times 'x' and '13' are not whole seconds"),
        ("../../../etc_000003_000013.mp4", "its path is outside the folder of the files"),
        ("missing_123_000100_000110.mp4", "abseiling"),  # found to be missing where it is read
    ]
    assert len(read_source(tmp_path / "k.csv").items) == 7
    with pytest.raises(UserError, match="lists no files in split 'tset'"):
        read_source(tmp_path / "k.csv", split="tset")
    (tmp_path / "k.csv").write_text(KINETICS.replace("riding a bike", '"riding a bike'))
    with pytest.raises(UserError, match="cannot be read as a source of kind 'kinetics'"):
        read_source(tmp_path / "k.csv")
    (tmp_path / "k.csv").write_text(KINETICS.replace("time_start", "time_strat"))
    with pytest.raises(UserError, match=r"no column 'time_start'.*nearest: 'time_strat'"):
        read_source(tmp_path / "k.csv")


def test_something_something(tmp_path):
    labels = {"Holding something": "0", "Pushing something from left to right": "1"}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    rows = [
        {"id": "78687", "label": "holding a bottle", "template": "Holding [something]", "placeholders": ["a bottle"]},
        {"id": "5", "label": "x", "template": "Pushing [something] from left to right"},
        {"id": "6", "label": "x", "template": "Pushing [something] from left to rigth"},
        {"id": "7"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    listing = read_source(tmp_path / "train.json", root=tmp_path / "videos")
    assert listing.classes == list(labels)
    pairs = found(listing, tmp_path / "videos")
    assert pairs[:2] == [("78687.webm", "Holding something"), ("5.webm", "Pushing something from left to right")]
    assert "nearest: 'Pushing something from left to right'" in pairs[2][1] and pairs[3][1] == "has no label"
    for wrong in ("{", "[1]", "[" * 100_000):
        (tmp_path / "train.json").write_text(wrong)
        with pytest.raises(UserError, match=r"train.json' (is not|cannot be read as JSON)"):
            read_source(tmp_path / "train.json")


def test_ucf101(tmp_path):
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 YoYo\n3 Archery\n")
    (tmp_path / "trainlist01.txt").write_text("ApplyEyeMakeup/v_a_g08_c01.avi 1\nYoYo/v_y.avi 2\n")
    (tmp_path / "testlist01.txt").write_text("YoYo/v_z.avi\n")
    train, test = (
        read_source(tmp_path / f"{split}list01.txt", root=tmp_path / "videos") for split in ("train", "test")
    )
    assert train.classes == test.classes == ["ApplyEyeMakeup", "YoYo", "Archery"]
    assert found(train, tmp_path / "videos")[0] == ("ApplyEyeMakeup/v_a_g08_c01.avi", "ApplyEyeMakeup")
    assert found(test, tmp_path / "videos") == [("YoYo/v_z.avi", "YoYo")]


def test_hmdb51(tmp_path):
    (tmp_path / "wave_test_split1.txt").write_text("a b.avi 1 \nc.avi 2 \nd.avi 0 \n")
    (tmp_path / "brush_hair_test_split1.txt").write_text("e.avi 1 \n")
    (tmp_path / "wave_test_split2.txt").write_text("a b.avi 2 \n")
    listing = read_source(tmp_path, root=tmp_path, split="train1")
    assert found(listing, tmp_path) == [("brush_hair/e.avi", "brush_hair"), ("wave/a b.avi", "wave")]
    assert found(read_source(tmp_path, root=tmp_path, split="test1"), tmp_path) == [("wave/c.avi", "wave")]
    with pytest.raises(UserError, match="train1 to train3"):
        read_source(tmp_path, split="train")


def test_sources_that_are_none_are_one_sentence(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    touched(tmp_path, "a.mp4", "a.tar", "a.zip", "secret/a.mp4")
    said = {
        "pipe": "is a pipe",
        "a.mp4": "is one file",
        "a.tar": "is one file",
        "a.zip": "is an archive that is not a tar",
    }
    for name, sentence in said.items():
        with pytest.raises(UserError, match=sentence):
            kind_of(tmp_path / name)

    def refused(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(UserError, match="secret' cannot be read: Permission denied"):
        kind_of(tmp_path / "secret")


def test_kinds_are_told_by_their_form(tmp_path):
    touched(tmp_path, "tars/000000.tar", "folder/class/a.png")
    assert [kind_of(tmp_path / name) for name in ("tars", "folder")] == ["tars", "folder"]
    with pytest.raises(UserError, match=r"'.*foldr' is neither a folder, nor a file.*nearest: 'folder'"):
        kind_of(tmp_path / "foldr")
    with pytest.raises(UserError, match=r"kind 'kinetic' is not one of .*nearest: 'kinetics'"):
        read_source(tmp_path / "folder", "kinetic")
    with pytest.raises(UserError, match="cannot be read as a source of kind 'kinetics'"):
        read_source(tmp_path / "folder", "kinetics")


@pytest.mark.parametrize("text", ["", "a\nb\na\n", "1 a\n3 b\n", "0 a\n0 b\n"])
def test_class_names_that_cannot_be_numbered_are_refused(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match="is not a list of class names"):
        read_classes(tmp_path / "classes.txt")


@pytest.mark.parametrize("content", ["[]", "{}", '{"a": "x"}', '{"a": 1, "b": 1}', '{"a": null}'])
def test_other_json_is_no_list_of_class_names(tmp_path, content):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(UserError, match="is not a list of class names"):
        read_classes(tmp_path / "classes.json")


def test_a_dataset_of_hugging_face_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert kind_of(Path("hf:owner/name")) == "hf"
    with pytest.raises(UserError, match=r"needs the package 'datasets': pip install 'scaleup\[hf\]'"):
        read_dataset("hf:owner/name")


def test_items_come_back_as_they_were():
    made = [
        Item(f"/a/{number}\udcff\ud800.mp4", "run" if number % 2 else "", "is hidden" * (number == 3))
        for number in range(7)
    ]
    kept = Items(iter(made))
    assert list(kept) == made and kept[-1] == made[-1] and len(kept) == 7 and not list(Items())
    with pytest.raises(IndexError):
        kept[7]


def test_a_row_without_a_file_is_left_out_and_a_file_without_an_ending_is_recognised(tmp_path, monkeypatch):
    png, bmp = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "png"), Image.new("RGB", (4, 4)).save(bmp, "bmp")
    cells = [None, {"bytes": None, "path": "gone.png"}, {"bytes": png.getvalue(), "path": None}]
    monkeypatch.setattr("scaleup.data.hf_rows._opened", lambda *_: [{"clip": cell} for cell in cells])
    read = Rows(("file.arrow",), "clip")
    for place in ("hf:name/train/0/0", "hf:name/train/1/gone.png"):
        with pytest.raises(BadSample, match="has no file"):
            read(Path(place))
    (tmp_path / "photo").write_bytes(png.getvalue())
    assert read(tmp_path / "photo") == read(Path("hf:name/train/2/2")) == ("png", png.getvalue())
    (tmp_path / "x.bmp").write_bytes(bmp.getvalue())
    with pytest.raises(BadSample, match="is bmp_pipe; allowed are avi, gif, jpg"):
        read(tmp_path / "x.bmp")
