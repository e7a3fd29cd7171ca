import io
import json
import tarfile

import pytest
from PIL import Image
from videos import numbered

from scaleup.data.shards import Shards
from scaleup.data.tars import index_tars
from scaleup.data.verify import verify
from scaleup.errors import UserError

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
    assert verify(tmp_path, processes=1) == []
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
    "null": ([("a.jpg", picture(0)), ("a.json", b'{"label": null}')], "0.tar: a", "no text or number 'label'"),
    "empty label": ([("a.jpg", picture(0)), ("a.cls", b" ")], "0.tar: a", "its label is empty"),
    "out of range": ([("a.jpg", picture(0)), ("a.cls", b"2")], "0.tar: a", "label '2' is none of the 2 classes"),
    "negative": ([("a.jpg", picture(0)), ("a.cls", b"-1")], "0.tar: a", "label '-1' is none of the 2 classes"),
    "wrong JSON": ([("a.jpg", picture(0)), ("a.json", b"{'label': 1}")], "0.tar: a", "its .json is not JSON"),
    "deep JSON": ([("a.jpg", picture(0)), ("a.json", b"[" * 200_000)], "0.tar: a", "its .json is not JSON"),
    "JSON list": ([("a.jpg", picture(0)), ("a.json", b"[1]")], "0.tar: a", "no text or number 'label'"),
    "no media": ([("a.cls", b"0")], "0.tar: a", "has 0 images"),
    "two media": ([("a.jpg", picture(0)), ("a.png", picture(1)), ("a.cls", b"0")], "0.tar: a", "has 2 images"),
    "duplicate": ([("a.jpg", picture(0)), ("a.jpg", picture(1)), ("a.cls", b"0")], "0.tar: a", "has two members .jpg"),
    "other case": ([("a.jpg", picture(0)), ("a.JPG", picture(1)), ("a.cls", b"0")], "0.tar: a", "has two members .JPG"),
    "dotted": ([("a.b.jpg", picture(0)), ("a.b.cls", b"0")], "0.tar: a", "has a dot in its name"),
    "pickle": ([("a.jpg", picture(0)), ("a.cls", b"0"), ("a.pyd", b"cos\nsystem\n")], "0.tar: a", "has a pickle, .pyd"),
    "up": ([("../a.jpg", picture(0)), ("../a.cls", b"0")], "0.tar: ../a.jpg", "its name leaves the tar"),
    "root": ([("/etc/a.jpg", picture(0))], "0.tar: /etc/a.jpg", "its name leaves the tar"),
    "link": (
        [("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})],
        "0.tar: a.jpg",
        "is no file but a link",
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
    assert source in {failure["source"] for failure in shards.failures}
    assert all(reason in failure["reason"] for failure in shards.failures if failure["source"] == source)
    assert verify(tmp_path, processes=1) == []  # what the index names is not news


def test_keys_of_several_tars_and_folders(tmp_path):
    write_tar(
        tmp_path / "0.tar", [("./v1.0/a.jpg", picture(0)), ("./v1.0/a.cls", b"0"), ("dir", {"type": tarfile.DIRTYPE})]
    )
    write_tar(tmp_path / "1.tar", [("./v1.0/a.jpg", picture(1)), ("./v1.0/a.cls", b"0"), *GOOD])
    shards = index_tars(tmp_path, processes=1)
    assert shards.keys == ["./v1.0/a", "good"] and shards.read(0).media == picture(0)
    assert shards.failures == [{"source": "1.tar: ./v1.0/a", "reason": "its key occurs in 0.tar already"}]


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
    assert [failure["source"] for failure in shards.failures] == ["1.tar"]
    assert verify(tmp_path, processes=1) == []


def test_one_tar_appended_to_another_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", GOOD)
    with (tmp_path / "0.tar").open("ab") as file:
        file.write(write_tar(tmp_path / "other", [("b.jpg", picture(0)), ("b.cls", b"0")]).read_bytes())
    shards = index_tars(tmp_path, processes=1)
    assert shards.keys == ["good"] and "damaged at byte" in shards.failures[0]["reason"]


def test_a_size_below_zero_does_not_go_round_for_ever(tmp_path):
    data = bytearray(write_tar(tmp_path / "0.tar", [*GOOD, ("a.jpg", picture(0))]).read_bytes())
    header = data.index(b"a.jpg")
    data[header + 124 : header + 136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")  # size, base 256: -1024
    checksum = sum(data[header : header + 148]) + 8 * 32 + sum(data[header + 156 : header + 512])
    data[header + 148 : header + 156] = b"%06o\0 " % checksum
    (tmp_path / "0.tar").write_bytes(data)
    shards = index_tars(tmp_path, processes=1)
    assert shards.keys == ["good"] and "points backwards" in shards.failures[0]["reason"]


def test_nothing_to_index_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="0 tars, and no images or videos"):
        index_tars(tmp_path, processes=1)
    write_tar(tmp_path / "0.tar", [("a.jpg", picture(0))])
    with pytest.raises(UserError, match="no sample in .* can be used; the first: has no label"):
        index_tars(tmp_path, processes=1)
    assert not (tmp_path / "index.json").exists()


def test_an_index_in_place_is_what_training_reads(tmp_path):
    write_tar(tmp_path / "0.tar", [member for number in range(4) for member in downloaded(number)])
    index_tars(tmp_path, processes=1)
    shards = Shards.open(tmp_path)
    assert shards.name == tmp_path.name and len(shards) == 4 and shards.sizes == [4]
