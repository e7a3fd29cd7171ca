import os
import socket

import pytest

from scaleup.common.errors import UserError
from scaleup.data.encode import Encoding
from scaleup.data.pack import pack
from scaleup.data.sources import kind_of, read_source
from scaleup.data.storage import walk


def touched(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def labels(listing, root):
    """Paths below root of the files that are kept, and their labels."""
    return {item.path.relative_to(root).as_posix(): item.label for item in listing.items if not item.reason}


def reasons(listing, root):
    return {item.path.relative_to(root).as_posix(): item.reason for item in listing.items if item.reason}


def test_what_is_hidden_is_left_out_and_named_once(tmp_path):
    touched(tmp_path, "run/a.mp4", "jump/b.MP4", ".hidden/c.mp4", "run/.ipynb_checkpoints/d.mp4", "run/deep/._a.mp4")
    touched(tmp_path, "__MACOSX/run/a.mp4", "jump/@eaDir/b.mp4", "jump/Thumbs.db", "run/desktop.ini", ".DS_Store")
    listing = read_source(tmp_path)
    assert labels(listing, tmp_path) == {"run/a.mp4": "run", "jump/b.MP4": "jump"}
    assert listing.classes == ["jump", "run"]
    names = [".DS_Store", ".hidden", "__MACOSX", "jump/@eaDir", "jump/Thumbs.db", "run/.ipynb_checkpoints"]
    names += ["run/deep/._a.mp4", "run/desktop.ini"]
    assert reasons(listing, tmp_path) == dict.fromkeys(names, "is hidden")


def test_a_source_that_is_itself_hidden_is_read(tmp_path):
    touched(tmp_path, ".cache/clips/run/a.mp4")
    assert labels(read_source(tmp_path / ".cache/clips"), tmp_path) == {".cache/clips/run/a.mp4": "run"}


def test_links_to_folders_are_followed_once(tmp_path):
    source = tmp_path / "source"
    touched(source, "run/a.mp4", "jump/b.mp4")
    touched(tmp_path, "disk/more/c.mp4", "disk/class/d.mp4")
    (source / "jump/again").symlink_to(tmp_path / "disk/more")
    (source / "jump/more").symlink_to(tmp_path / "disk/more")
    (source / "jump/run").symlink_to("../run")
    (source / "jump/up").symlink_to("..")
    (source / "run/loop").symlink_to(tmp_path / "source")
    (source / "walk").symlink_to(tmp_path / "disk/class")
    (source / "a link").symlink_to(source / "run")  # sorts first, but the folder itself comes first
    (tmp_path / "disk/more/back").symlink_to(tmp_path / "disk")
    listing = read_source(source)
    assert labels(listing, source) == {
        "jump/again/c.mp4": "jump",
        "jump/b.mp4": "jump",
        "run/a.mp4": "run",
        "walk/d.mp4": "walk",
    }
    twice, above = "links to a folder that is listed already", "links to a folder that contains it"
    assert reasons(listing, source) == {
        "a link": twice,
        "jump/more": twice,
        "jump/run": twice,
        "jump/up": above,
        "run/loop": above,
        "jump/again/back": above,
    }


def test_links_to_files_are_files_and_broken_ones_are_named(tmp_path):
    touched(tmp_path, "source/run/a.mp4", "annex/.objects/b")
    (tmp_path / "source/run/b.mp4").symlink_to(tmp_path / "annex/.objects/b")
    (tmp_path / "source/run/gone.mp4").symlink_to("../../annex/gone.mp4")
    (tmp_path / "source/run/round.mp4").symlink_to("round.mp4")
    listing = read_source(tmp_path / "source")
    assert labels(listing, tmp_path / "source") == {"run/a.mp4": "run", "run/b.mp4": "run"}
    assert reasons(listing, tmp_path / "source") == {
        "run/gone.mp4": "links to '../../annex/gone.mp4', which does not exist",
        "run/round.mp4": "is a link that cannot be followed: Too many levels of symbolic links",
    }


def test_files_of_other_kinds_and_without_a_class_are_named(tmp_path):
    touched(
        tmp_path, "run/a.mp4", "run/b.mp4", "run/still.jpg", "jump/c.mp4", "notes/read.txt", "beside.mp4", "list.csv"
    )
    touched(tmp_path, "jump/noending", "jump/archive.zip")
    (tmp_path / "empty/deep").mkdir(parents=True)
    listing = read_source(tmp_path)
    assert listing.classes == ["jump", "run"] and listing.modality == "video" and len(labels(listing, tmp_path)) == 3
    ending, beside = "is not a file of videos by its extension", "is not in a class folder, so it has no class"
    assert reasons(listing, tmp_path) == {
        "beside.mp4": beside,
        "list.csv": beside,
        "run/still.jpg": ending,
        "notes/read.txt": ending,
        "jump/noending": ending,
        "jump/archive.zip": ending,
        "empty": "is a class folder without files",
    }


def test_images_and_videos_in_like_numbers_are_refused_with_both_named(tmp_path):
    touched(tmp_path, "run/a.mp4", "run/b.mp4", "run/c.mp4", "run/a.jpg", "run/b.jpg")
    with pytest.raises(UserError, match=r"has image and video files \(2, such as '.*a.jpg' and 3, such as '.*a.mp4'\)"):
        read_source(tmp_path)


def test_a_flat_folder_is_refused_and_says_what_there_is(tmp_path):
    touched(tmp_path, "a.mp4", "b.mp4", ".c/d.mp4")
    with pytest.raises(UserError, match="has no class folders with files; it needs .*/CLASS/FILE; .*c: is hidden"):
        read_source(tmp_path)


def test_pipes_and_sockets_are_never_opened(tmp_path):
    touched(tmp_path, "run/a.mp4")
    os.mkfifo(tmp_path / "run/pipe.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "run/socket.mp4"))
        assert reasons(read_source(tmp_path), tmp_path) == {
            "run/pipe.mp4": "is not a file but a pipe, a socket or a device",
            "run/socket.mp4": "is not a file but a pipe, a socket or a device",
        }
    (tmp_path / "list.txt").write_text("run/pipe.mp4 0\nrun/b.mp4 0\n")
    touched(tmp_path, "run/b.mp4")
    (tmp_path / "run/empty.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 2 files can be read"):
        pack(read_source(tmp_path / "list.txt"), tmp_path / "out", Encoding(), processes=1)


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    touched(tmp_path, "run/a.mp4", "secret/b.mp4")
    scan = os.scandir

    def refused(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert reasons(read_source(tmp_path), tmp_path) == {"secret": "cannot be read: Permission denied"}


def test_names_that_are_no_text_can_be_told(tmp_path):
    touched(tmp_path, "run/a.mp4", os.fsdecode(b"run/caf\xe9.mp4"), os.fsdecode(b"caf\xe9/b.mp4"))
    listing = read_source(tmp_path)
    assert listing.classes == ["run"] and len(labels(listing, tmp_path)) == 2
    assert list(reasons(listing, tmp_path).values()) == ["the name of its class is not text in UTF-8"]


def test_shards_that_were_packed_into_the_source_are_no_class(tmp_path):
    touched(tmp_path, "run/a.mp4", "out/000000.tar", "out/index.json", ".out.partial/000000.tar")
    listing = read_source(tmp_path)
    assert kind_of(tmp_path) == "folder" and listing.classes == ["run"]
    assert reasons(listing, tmp_path) == {"out": "is a directory of shards", ".out.partial": "is hidden"}


def test_folders_may_lie_deep(tmp_path):
    deep = tmp_path / "run"
    for _ in range(400):
        deep /= "d"
    touched(deep, "a.mp4")
    assert [each.path for each in walk(tmp_path)] == [deep / "a.mp4"]
