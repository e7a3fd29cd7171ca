import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scaleup.common.errors import UserError
from scaleup.training.run_directory import Checkpoints


def content(step: int) -> dict[str, dict[str, Tensor]]:
    return {arm: {"arm/weight": torch.full((1000,), float(step)), "step/weight": torch.tensor(1.0)} for arm in "ab"}


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoints:
    """Checkpoints of steps 10 and 20."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (10, 20):
        checkpoints.save(step, {"step": step}, content(step))
    return checkpoints


def forked(work: Callable[[], object]) -> int:
    """How a process ends that does ``work``: its exit code, or minus the signal that killed it."""
    if not (pid := os.fork()):
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_newest_comes_back_bit_for_bit_and_two_are_kept(saved: Checkpoints) -> None:
    saved.save(30, {"step": 30}, content(30))
    newest = saved.newest()
    assert newest is not None and (newest.step, newest.state) == (30, {"step": 30})
    for arm, tensors in content(30).items():
        found = newest.tensors(arm)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert sorted(path.name for path in saved.directory.iterdir()) == ["step-00000020", "step-00000030"]


def test_no_checkpoint_is_no_mistake(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", 2).newest() is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["a.safetensors", "b.safetensors", "state.json", "manifest.json"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(
    saved: Checkpoints, capsys: pytest.CaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    damage(saved.directory / "step-00000020" / name)
    newest = saved.newest()
    assert newest is not None and newest.step == 10
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "step-00000020' is left out, its" in said.replace("it has", "its")
    assert name in said or name == "manifest.json"
    saved.clear(newest.step)
    assert [path.name for path in saved.directory.iterdir()] == ["step-00000010"]


def test_a_run_does_not_begin_anew_because_all_are_damaged(saved: Checkpoints) -> None:
    for directory in saved.directory.iterdir():
        truncate(directory / "state.json")
    with pytest.raises(UserError, match="none of the checkpoints in .* is whole; begin anew with --overwrite"):
        saved.newest()


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_one(
    saved: Checkpoints, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Killed before and after each call by which a save reaches the disk, until one save gets through."""
    real, ends = getattr(os, call), []
    for moment in range(20):
        for after in (False, True):
            left = [moment]

            def killing(*args: object, after: bool = after, left: list[int] = left, **kwargs: object) -> object:
                left[0] -= 1
                if left[0] < 0 and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                done = real(*args, **kwargs)
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            with monkeypatch.context() as patch:
                patch.setattr(os, call, killing)
                ends.append(forked(lambda: saved.save(30, {"step": 30}, content(30))))
            newest = saved.newest()
            assert newest is not None and newest.step in (20, 30)
            assert torch.equal(newest.tensors("a")["arm/weight"], content(newest.step)["a"]["arm/weight"])
            saved.clear(20)
            assert not [path for path in saved.directory.iterdir() if path.name.startswith(".")]
            if newest.step == 30:  # the save before it went: it keeps two
                shutil.rmtree(saved.directory)
                for step in (10, 20):
                    saved.save(step, {"step": step}, content(step))
        if ends[-1] == 0:
            break
    assert ends[-1] == 0 and ends.count(-signal.SIGKILL) >= 2


def test_a_full_disk_is_a_sentence_and_the_last_good_one_stays(saved: Checkpoints) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            saved.save(30, {"step": 30}, content(30))
        except UserError as error:
            (saved.directory.parent / "said").write_text(str(error))

    assert forked(limited) == 0
    assert "step-00000030' cannot be written: File too large" in (saved.directory.parent / "said").read_text()
    assert sorted(path.name for path in saved.directory.iterdir()) == ["step-00000010", "step-00000020"]
    newest = saved.newest()
    assert newest is not None and newest.step == 20


def test_what_the_disk_does_not_give_back_is_not_kept(saved: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaleup.training.run_directory.file_sha256", lambda path: "0" * 64)
    with pytest.raises(UserError, match="the disk gives back something else"):
        saved.save(30, {}, content(30))
    monkeypatch.undo()
    assert json.loads((saved.directory / "step-00000020" / "state.json").read_text()) == {"step": 20}
    assert not (saved.directory / "step-00000030").exists()
