import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from scaleup.common import files
from scaleup.common.errors import UserError
from scaleup.common.files import growing_lines, locked, new_directory, partial_directory, refuse_existing, sync


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


@pytest.mark.parametrize("write", [new_directory, growing_lines])
def test_what_has_come_while_the_work_ran_is_not_replaced(write: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="out' exists"), write(tmp_path / "out"):
        (tmp_path / "out").write_text("theirs")
    assert (tmp_path / "out").read_text() == "theirs" and names(tmp_path) == ["out"]


def refused(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


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
        "import os, signal, sys; from scaleup.common.files import new_directory\n"
        "with new_directory(sys.argv[1], overwrite=True) as d:\n"
        "    (d / 'new').write_text('new'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path / "out") == ["old"]
    half, _ = names(tmp_path)
    for seconds, left in ((time.time(), [half, "out"]), (0, ["out"])):  # its process might be about to lock it
        os.utime(tmp_path / half, (seconds, seconds))
        with new_directory(tmp_path / "out", overwrite=True):
            pass
        assert names(tmp_path) == left


@pytest.mark.parametrize("locks", [True, False])
def test_what_others_are_writing_or_keep_is_not_taken_for_abandoned(
    locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:
        monkeypatch.setattr(fcntl, "flock", refused)
    (tmp_path / ".out-of-a-user").mkdir()
    with new_directory(tmp_path / "out", overwrite=True) as directory:
        os.utime(directory, (0, 0))
        os.utime(tmp_path / ".out-of-a-user", (0, 0))
        with new_directory(tmp_path / "out"):
            pass
        assert names(tmp_path) == sorted([directory.name, ".out-of-a-user", "out"])
    assert names(tmp_path) == [".out-of-a-user", "out"]


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


def test_a_file_system_without_permissions_holds_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "chmod", refused)
    with new_directory(tmp_path / "out") as directory:
        (directory / "file").write_text("content")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["file"]


@pytest.mark.parametrize("pieces", [True, False])
def test_a_file_system_that_renames_no_directories_holds_one(
    pieces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor files; what says that a directory is whole comes last."""
    rename, placed = os.rename, []

    def renamed(path: Path, to: Path) -> None:
        if Path(path).is_dir() or not pieces:
            refused()
        placed.append(Path(to).name)
        rename(path, to)

    monkeypatch.setattr(os, "rename", renamed)
    for content in ("old", "new"):
        with new_directory(tmp_path / "out", overwrite=True) as directory:
            for name in ("index.json", "within/000001.tar", "000000.tar"):
                (directory / name).parent.mkdir(exist_ok=True)
                (directory / name).write_text(content)
        assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["000000.tar", "index.json", "within"]
        assert (tmp_path / "out/within/000001.tar").read_text() == content
    assert not pieces or placed[-1] == "index.json"


def test_a_directory_that_another_process_has_put_there_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="File exists"), new_directory(tmp_path / "out") as directory:
        (directory / "file").write_text("ours")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("theirs")
        monkeypatch.setattr(Path, "exists", lambda _: False)  # it came after we had looked
    assert (tmp_path / "out" / "file").read_text() == "theirs"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
def test_missing_locks_are_said_once(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def flock(*_: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(files, "_without_locks", set())
    with (tmp_path / "file").open("w") as file:
        assert locked(file, 0) and locked(file, 0)
    said = f"the file system of '{tmp_path}' has no locks: two runs could write to the same place at once\n"
    assert capsys.readouterr().err == said


def test_a_lock_that_is_refused_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "file").open("w") as file, pytest.raises(UserError, match="'.*file' cannot be locked: Input/out"):
        locked(file, 0)


def test_what_cannot_be_synced_is_no_failure_but_a_full_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = errno.EINVAL

    def fsync(_: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    sync(0)
    code = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        sync(0)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_links_to_is_written(there: bool, tmp_path: Path) -> None:
    """Beside which the half-written directory lies too: a link may lead to a larger disk."""
    disk, out = tmp_path / "disk" / "set", tmp_path / "out"
    disk.mkdir(parents=True) if there else disk.parent.mkdir()
    out.symlink_to(disk)
    for write in (new_directory(out, there), partial_directory(out, "plan")):
        with write as directory:
            (directory / "new").write_text("new")
            assert directory.parent == disk.parent
        assert (
            names(out) == names(disk) == ["new"]
            and names(tmp_path) == ["disk", "out"]
            and names(disk.parent) == ["set"]
        )
        there = True


def test_what_a_killed_call_has_set_aside_does_not_stop_the_next(tmp_path: Path) -> None:
    out, aside = tmp_path / "out", tmp_path / ".out.partial-old"
    out.mkdir(), aside.mkdir()
    (aside / "older").write_text("older")
    with partial_directory(out, "plan") as directory:
        (directory / "new").write_text("new")
    assert names(out) == ["new"] and names(tmp_path) == ["out"]
    out.rename(aside)
    with partial_directory(out, "plan") as directory:
        (directory / "newer").write_text("newer")
    assert names(out) == ["newer"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("out", [".", "..", "/", "../here"])
def test_the_directory_in_which_a_tool_runs_is_not_replaced(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="the directory in which this runs"):
        refuse_existing(Path(out), overwrite=True)


def test_lines_below_a_file_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(UserError, match="Not a directory"), growing_lines(tmp_path / "file" / "lines"):
        pytest.fail("the work began")


def test_lines_do_not_take_the_place_of_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory; name a file"), growing_lines(tmp_path):
        pytest.fail("the work began")
