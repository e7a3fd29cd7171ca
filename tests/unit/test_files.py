import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scaleup.errors import UserError
from scaleup.files import new_directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with new_directory(out) as directory:
        (directory / "file").write_text("content")
        assert not out.exists() and directory.parent == out.parent
    assert (out / "file").read_text() == "content" and names(out.parent) == ["out"]


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "out") as directory:
        (directory / "file").write_text("content")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_what_exists_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists.*--overwrite"), new_directory(tmp_path / "out"):
        pytest.fail("the work began")


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_is_overwritten_goes_only_at_the_end(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "directory":
        out.mkdir()
        (out / "old").write_text("old")
    else:
        out.write_text("old")
    with pytest.raises(ZeroDivisionError), new_directory(out, overwrite=True) as directory:
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"] and (out if kind == "file" else out / "old").read_text() == "old"
    with new_directory(out, overwrite=True) as directory:
        (directory / "new").write_text("new")
        assert (out if kind == "file" else out / "old").read_text() == "old"
    assert names(out) == ["new"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_refuses_is_one_sentence(code: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=os.strerror(code)), new_directory(tmp_path / "out") as directory:
        (directory / "file").write_text("content")
        raise OSError(code, os.strerror(code))
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(UserError), new_directory(tmp_path / "file" / "out"):
        pytest.fail("the work began")


def test_a_kill_before_the_end_leaves_the_old_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    code = (
        "import os, signal, sys; from scaleup.files import new_directory\n"
        "with new_directory(sys.argv[1], overwrite=True) as d:\n"
        "    (d / 'new').write_text('new'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path / "out") == ["old"]


def test_the_old_directory_is_set_aside_before_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    removed = []
    remove = shutil.rmtree

    def watch(path: Path, **options: bool) -> None:
        if Path(path, "old").exists():
            removed.append((tmp_path / "out" / "new").exists())
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", watch)
    with new_directory(tmp_path / "out", overwrite=True) as directory:
        (directory / "new").write_text("new")
    assert removed == [True]


def test_two_writers_at_once_do_not_share_a_directory(tmp_path: Path) -> None:
    meeting = threading.Barrier(2)
    found = []

    def write(name: str) -> None:
        with new_directory(tmp_path / "out", overwrite=True) as directory:
            meeting.wait(5)
            (directory / name).write_text(name)
            found.append(names(directory))
            meeting.wait(5)
            if name == "b":
                first.join()

    first, second = (threading.Thread(target=write, args=(name,)) for name in "ab")
    first.start(), second.start()
    first.join(), second.join()
    assert sorted(found) == [["a"], ["b"]] and names(tmp_path / "out") == ["b"]
