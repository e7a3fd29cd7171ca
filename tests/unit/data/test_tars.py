import gzip
import io
import json
import os
import subprocess
import tarfile

import pytest
from PIL import Image
from support.tools import tool
from videos import numbered

from scaleup.common.errors import UserError
from scaleup.data.shards import Shards
from scaleup.data.sources import kind_of
from scaleup.data.storage import Failure
from scaleup.data.tars import index_tars
from scaleup.data.verify import verify

VIDEO = numbered(3)


def picture(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade % 256, 0, 0)).save(buffer, "jpeg")
    return buffer.getvalue()


def write_tar(path, members, format=tarfile.PAX_FORMAT):
    """``members``: pairs of name and bytes, or of name and a TarInfo's changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, dict):
                for key, value in data.items():
                    setattr(info, key, value)
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def downloaded(number, **fields):
    """A sample as img2dataset writes it."""
    key = f"{number:09d}"
    about = json.dumps({"label": f"class {number % 3}", "url": "x", "status": "success"} | fields).encode()
    return [(f"{key}.jpg", picture(number)), (f"{key}.json", about), (f"{key}.txt", b"a caption")]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_are_used_in_place(tmp_path, format):
    for shard in range(2):
        samples = [member for number in range(4) for member in downloaded(10 * shard + number)]
        write_tar(tmp_path / f"{shard:05d}.tar", samples, format)
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    counts = []
    shards = index_tars(tmp_path, processes=1, advance=counts.append)
    assert counts == [1, 1] and shards.modality == "image" and shards.failures == []
    assert shards.classes == {"label": ["class 0", "class 1", "class 2"]}
    for i, number in enumerate([0, 1, 2, 3, 10, 11, 12, 13]):
        sample = shards.read(i)
        assert (sample.key, sample.extension) == (f"{number:09d}", "jpg")
        assert sample.media == picture(number) and sample.labels == {"label": number % 3}
    assert verify(tmp_path, processes=1).problems == []
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")} == before
    first = (tmp_path / "index.json").read_bytes()
    with pytest.raises(UserError, match="index.json' exists"):
        index_tars(tmp_path, processes=1)
    index_tars(tmp_path, overwrite=True, processes=2)
    assert (tmp_path / "index.json").read_bytes() == first


def test_where_labels_are(tmp_path):
    members = [("a.mp4", VIDEO), ("a.cls", b"2\n"), ("a.json", b'{"label": 1, "action": "run"}'), ("a.txt", b" walk ")]
    write_tar(tmp_path / "0.tar", members)
    (tmp_path / "classes.txt").write_text("run\nwalk\nsit\n")
    for label, expected in ((None, 2), ("cls", 2), ("label", 1), ("action", 0), ("txt", 1)):
        shards = index_tars(tmp_path, label, tmp_path / "classes.txt", overwrite=True, processes=1)
        assert shards.modality == "video" and shards.read(0).labels == {"label": expected}
        assert shards.read(0).media == VIDEO
    with pytest.raises(UserError, match=r"no text or number 'actoin' in its .json; nearest: 'action'"):
        index_tars(tmp_path, "actoin", overwrite=True, processes=1)


GOOD = [("good.jpg", picture(1)), ("good.cls", b"0")]
BAD = {
    "no label": ([("a.jpg", picture(0))], "0.tar: a", "has no label: neither"),
    "no field": ([("a.jpg", picture(0)), ("a.json", b"{}")], "0.tar: a", "no text or number 'label'"),
    "other": (
        [("a.jpg", picture(0)), ("a.json", b'{"a": 1, "b": 2}')],
        "0.tar: a",
        "'label' in its .json; it has 'a', 'b'",
    ),
    "list": ([("a.jpg", picture(0)), ("a.json", b'{"label": [1, 2]}')], "0.tar: a", "label '[1, 2]' is several labels"),
    "truth": ([("a.jpg", picture(0)), ("a.json", b'{"label": true}')], "0.tar: a", "'label' in its .json but true"),
    "not a number": ([("a.jpg", picture(0)), ("a.json", b'{"label": NaN}')], "0.tar: a", "there is no label"),
    "half": (
        [("a.jpg", picture(0)), ("a.json", b'{"label": 0.5}')],
        "0.tar: a",
        "label '0.5' is not one of the 2 classes",
    ),
    "no text": (
        [("caf\udce9.jpg", picture(0)), ("caf\udce9.cls", b"0")],
        "0.tar: caf\\udce9.jpg",
        "its name is not text in UTF-8",
    ),
    "null": ([("a.jpg", picture(0)), ("a.json", b'{"label": null}')], "0.tar: a", "no text or number 'label'"),
    "empty label": ([("a.jpg", picture(0)), ("a.cls", b" ")], "0.tar: a", "its label is empty"),
    "out of range": ([("a.jpg", picture(0)), ("a.cls", b"2")], "0.tar: a", "label '2' is not one of the 2 classes"),
    "negative": ([("a.jpg", picture(0)), ("a.cls", b"-1")], "0.tar: a", "label '-1' means that there is no label"),
    "wrong JSON": ([("a.jpg", picture(0)), ("a.json", b"{'label': 1}")], "0.tar: a", "its .json is not JSON"),
    "two labels": (
        [("a.jpg", picture(0)), ("a.json", b'{"label": 1, "label": 2}')],
        "0.tar: a",
        "has two labels: 'label' is twice in its .json",
    ),
    "deep JSON": ([("a.jpg", picture(0)), ("a.json", b"[" * 200_000)], "0.tar: a", "its .json is not JSON"),
    "JSON list": ([("a.jpg", picture(0)), ("a.json", b"[1]")], "0.tar: a", "no text or number 'label'"),
    "no media": ([("a.cls", b"0")], "0.tar: a", "has 0 images"),
    "two media": ([("a.jpg", picture(0)), ("a.png", picture(1)), ("a.cls", b"0")], "0.tar: a", "has 2 images"),
    "duplicate": ([("a.jpg", picture(0)), ("a.jpg", picture(1)), ("a.cls", b"0")], "0.tar: a", "has two members .jpg"),
    "other case": ([("a.jpg", picture(0)), ("a.JPG", picture(1)), ("a.cls", b"0")], "0.tar: a", "has two members .JPG"),
    "dotted": ([("a.b.jpg", picture(0)), ("a.b.cls", b"0")], "0.tar: a", "has a dot in its name"),
    "pickle": (
        [("a.jpg", picture(0)), ("a.cls", b"0"), ("a.pyd", b"cos\nsystem\n")],
        "0.tar: a",
        "has a pickle (.pyd)",
    ),
    "up": ([("../a.jpg", picture(0)), ("../a.cls", b"0")], "0.tar: ../a.jpg", "its name is outside the tar"),
    "root": ([("/etc/a.jpg", picture(0))], "0.tar: /etc/a.jpg", "its name is outside the tar"),
    "link": (
        [("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})],
        "0.tar: a.jpg",
        "is not a file but a link",
    ),
    "no ending": ([("README", b"x")], "0.tar: README", "its name is not KEY.ENDING"),
    "no key": ([(".jpg", picture(0))], "0.tar: .jpg", "its name is not KEY.ENDING"),
    "empty": ([("a.jpg", b""), ("a.cls", b"0")], "0.tar: a", "not a readable image"),
    "HTML": ([("a.jpg", b"<html>404</html>" * 99), ("a.cls", b"0")], "0.tar: a", "not a readable image"),
    "pickled": ([("a.jpg", b"\x80\x04\x95cos\nsystem\n."), ("a.cls", b"0")], "0.tar: a", "not a readable image"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_a_sample_is_named_and_left_out(tmp_path, case):
    members, source, reason = BAD[case]
    write_tar(tmp_path / "0.tar", [*GOOD, *members, ("last.jpg", picture(2)), ("last.cls", b"1")])
    (tmp_path / "classes.txt").write_text("no\nyes\n")
    shards = index_tars(tmp_path, classes=tmp_path / "classes.txt", processes=1)
    assert sorted(shards.keys) == ["good", "last"]
    assert source in {failure.source for failure in shards.failures}
    assert all(reason in failure.reason for failure in shards.failures if failure.source == source)
    assert verify(tmp_path, processes=1).problems == []  # what the index names is not news


def test_keys_of_several_tars_and_folders(tmp_path):
    write_tar(
        tmp_path / "0.tar", [("./v1.0/a.jpg", picture(0)), ("./v1.0/a.cls", b"0"), ("dir", {"type": tarfile.DIRTYPE})]
    )
    write_tar(tmp_path / "1.tar", [("./v1.0/a.jpg", picture(1)), ("./v1.0/a.cls", b"0"), *GOOD])
    shards = index_tars(tmp_path, processes=1)
    assert shards.keys == ["./v1.0/a", "good"] and shards.read(0).media == picture(0)
    assert shards.failures == [Failure("1.tar: ./v1.0/a", "its key occurs in 0.tar already")]


NOT_TARS = {
    "zero bytes": b"",
    "zeros": bytes(10240),
    "HTML": b"<html><body>403 Forbidden</body></html>\n" * 300,
    "gzip": b"\x1f\x8b\x08\x00" + bytes(4000),
}


@pytest.mark.parametrize("case", NOT_TARS)
def test_what_is_no_tar_is_named(tmp_path, case):
    write_tar(tmp_path / "0.tar", GOOD)
    (tmp_path / "1.tar").write_bytes(NOT_TARS[case])
    shards = index_tars(tmp_path, processes=1)
    assert shards.keys == ["good"]
    assert [failure.source for failure in shards.failures] == ["1.tar"]
    assert verify(tmp_path, processes=1).problems == []


def test_one_tar_appended_to_another_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", GOOD)
    with (tmp_path / "0.tar").open("ab") as file:
        file.write(write_tar(tmp_path / "other", [("b.jpg", picture(0)), ("b.cls", b"0")]).read_bytes())
    shards = index_tars(tmp_path, processes=1)
    assert shards.keys == ["good"] and "damaged at byte" in shards.failures[0].reason


def test_a_size_below_zero_does_not_go_round_for_ever(tmp_path):
    data = bytearray(write_tar(tmp_path / "0.tar", [*GOOD, ("a.jpg", picture(0))]).read_bytes())
    header = data.index(b"a.jpg")
    data[header + 124 : header + 136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")  # size, base 256: -1024
    checksum = sum(data[header : header + 148]) + 8 * 32 + sum(data[header + 156 : header + 512])
    data[header + 148 : header + 156] = b"%06o\0 " % checksum
    (tmp_path / "0.tar").write_bytes(data)
    shards = index_tars(tmp_path, processes=1)
    assert shards.keys == ["good"] and "points backwards" in shards.failures[0].reason


def test_nothing_to_index_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="0 tars, and no images or videos"):
        index_tars(tmp_path, processes=1)
    write_tar(tmp_path / "0.tar", [("a.jpg", picture(0))])
    with pytest.raises(UserError, match="no sample in .* can be used; the first: has no label"):
        index_tars(tmp_path, processes=1)
    assert not (tmp_path / "index.json").exists()
    for source in (tmp_path / "nowhere", tmp_path / "0.tar"):
        with pytest.raises(UserError, match=rf"{source.name}' is not a readable folder of tars: (No such|Not a dir)"):
            index_tars(source, processes=1)


def test_an_index_in_place_is_what_training_reads(tmp_path):
    write_tar(tmp_path / "0.tar", [member for number in range(4) for member in downloaded(number)])
    index_tars(tmp_path, processes=1)
    shards = Shards.open(tmp_path)
    assert shards.name == tmp_path.name and len(shards) == 4 and shards.sizes == [4]


def test_a_kill_while_the_index_is_written_leaves_nothing_behind(tmp_path):
    write_tar(tmp_path / "0.tar", downloaded(0))
    kill = "import os, shutil; shutil.copyfileobj = lambda *_: os.kill(os.getpid(), 9)"  # columns are put together
    assert tool("make_shards", tmp_path, before=kill).returncode == -9
    index_tars(tmp_path, processes=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar", "index.columns", "index.json"]


@pytest.mark.parametrize("label", [b"3.0", b"03", b" 3\r\n", b"\xef\xbb\xbf3"])
def test_numbers_are_labels_however_they_are_written(tmp_path, label):
    write_tar(tmp_path / "0.tar", [("a.jpg", picture(0)), ("a.cls", label), ("b.jpg", picture(1)), ("b.cls", b"-1")])
    shards = index_tars(tmp_path, processes=1)
    assert shards.classes == {"label": ["0", "1", "2", "3"]} and shards.labels["label"].tolist() == [3]
    assert [failure.source for failure in shards.failures] == ["0.tar: b"]


def test_tars_that_cannot_be_opened_are_named(tmp_path):
    (tmp_path / "0.tar").symlink_to("gone.tar")
    os.mkfifo(tmp_path / "1.tar")
    with pytest.raises(UserError, match="0.tar' links to 'gone.tar', which does not exist"):
        index_tars(tmp_path, processes=1)
    write_tar(tmp_path / "2.tar", [("a.jpg", picture(0)), ("a.cls", b"0")])
    assert index_tars(tmp_path, ".cls", processes=1).labels["label"].tolist() == [0]
    failures = json.loads((tmp_path / "index.json").read_text())["failures"]
    assert [each["source"] for each in failures] == ["0.tar", "1.tar"]
    assert "is not a file but a pipe" in failures[1]["reason"]


@pytest.mark.parametrize("label", ["3", "3.0", '"3"', '"3.0"'])
def test_numbers_of_json_are_labels(tmp_path, label):
    write_tar(tmp_path / "0.tar", [("a.jpg", picture(0)), ("a.json", f'{{"label": {label}}}'.encode())])
    assert index_tars(tmp_path, processes=1).labels["label"].tolist() == [3]


def test_names_with_colons_braces_and_capitals_and_long_ones(tmp_path):
    keys = ["12:30/a:b", "{000,003}", "x" * 150 + "/" + "y" * 120, "a b", "\u00e9"]
    for number, format in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        members = [(f"{number}{key}.{e}", d) for key in keys for e, d in (("JPG", picture(0)), ("CLS", b"1"))]
        write_tar(tmp_path / f"a:{{{number}..3}} b.TAR", members, format)
    shards = index_tars(tmp_path, processes=1)
    assert shards.failures == [] and shards.keys == [f"{number}{key}" for number in range(2) for key in keys]
    assert verify(tmp_path, processes=1).problems == [] and shards.read(0).media == picture(0)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("b.tar.gz", "gunzip"),
        ("b.tgz", "gunzip"),
        ("b.tar.zst", "unzstd"),
        ("b.TAR.XZ", "unxz"),
        ("b.tar.bz2", "bunzip2"),
    ],
)
def test_compressed_tars_are_named_beside_others_and_alone(tmp_path, name, command):
    (tmp_path / name).write_bytes(b"x")
    said = f"is a compressed tar, which cannot be read in place; decompress it first: {command} '{name}'"
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=f"{name}' {said}"):
            index_tars(source, processes=1) if kind_of(source) == "tars" else None
    write_tar(tmp_path / "a.tar", GOOD)
    assert index_tars(tmp_path, processes=1).failures == [Failure(name, said)]


def test_a_tar_that_is_compressed_in_spite_of_its_name_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", GOOD)
    (tmp_path / "b.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    (failure,) = index_tars(tmp_path, processes=1).failures
    said = (
        "is compressed, although its name ends in .tar; decompress it first: mv 'b.tar' 'b.tar.gz'; gunzip 'b.tar.gz'"
    )
    assert failure == Failure("b.tar", said)


@pytest.mark.parametrize("format", ["gnu", "pax 0.0", "pax 0.1", "pax 1.0"])
def test_sparse_members_are_said_to_be_sparse(tmp_path, format):
    with (tmp_path / "hole.jpg").open("wb") as file:
        file.truncate(2**20)
        file.seek(2**20)
        file.write(b"x" * 4096)
    (tmp_path / "hole.cls").write_text("0")
    for name, data in [*GOOD, ("last.jpg", picture(2)), ("last.cls", b"1")]:
        (tmp_path / name).write_bytes(data)
    kind = ["--format=gnu"] if format == "gnu" else ["--format=pax", f"--sparse-version={format.split()[1]}"]
    files = ["good.jpg", "good.cls", "hole.jpg", "hole.cls", "last.jpg", "last.cls"]
    (tmp_path / "tars").mkdir()
    command = ["tar", "-c", "-S", *kind, "-f", str(tmp_path / "tars/0.tar"), "-C", str(tmp_path), *files]
    subprocess.run(command, check=True)
    shards = index_tars(tmp_path / "tars", processes=1)
    assert shards.keys == ["good", "last"]
    (failure,) = shards.failures
    assert failure.source == "0.tar: hole" and failure.reason.startswith(".jpg is sparse, stored without its zeros")
    assert verify(tmp_path / "tars", processes=1).problems == []


def test_class_folders_beside_tars_are_pointed_at(tmp_path):
    write_tar(tmp_path / "all.tar", [("run/a.jpg", picture(0))])
    write_tar(tmp_path / "run/a.jpg", [])
    with pytest.raises(
        UserError, match="the first: has no label.*it also has folders, such as 'run'; to pack these use --kind folder"
    ):
        index_tars(tmp_path, processes=1)
