"""What make prints and leaves where it installs; pip is played by a script."""

import runpy
import subprocess
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOISE = "WARNING: Location 'here' is ignored: it is neither a file nor a directory."
PIP = f"""#!/bin/sh
echo "$@" >> "$0.calls"
echo "{NOISE}" >&2
echo Collecting torch
"""


@pytest.fixture
def install() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "install.py"), run_name="install"))


def environment(folder: Path, ends: str) -> Path:
    """A complete one whose pip ends so."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PIP + ends)
    python.chmod(0o755)
    (folder / "installed").touch()
    return folder


def test_what_is_locked_is_installed_and_pip_does_not_chatter(
    install: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = environment(tmp_path / "made", "exit 0")
    assert install.main(folder, ["versions.txt"]) == 0
    assert (folder / "installed").exists()
    calls = (folder / "bin" / "python.calls").read_text().splitlines()
    assert len(calls) == 2 and all("--constraint versions.txt" in call for call in calls)
    said = capfd.readouterr()
    assert said.out.startswith(f"Installing into {folder}: 6 GB; ")
    assert (said.out.count("\n"), said.err) == (1, "")


def test_a_failure_is_shown_and_leaves_nothing_that_seems_complete(
    install: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = environment(tmp_path / "made", "echo 'ERROR: No space left on device' >&2; exit 3")
    assert install.main(folder, []) == 3
    assert not (folder / "installed").exists()
    said = capfd.readouterr().err
    assert "ERROR: No space left on device" in said and "is not complete" in said and NOISE not in said


@pytest.mark.parametrize("code", [0, 1])
def test_what_was_interrupted_begins_anew(
    install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Files of a package that pip takes for installed may be missing."""
    folder, made = tmp_path / "made", []

    def create(command: list[str]) -> int:
        made.append(command[1:])
        environment(folder, "exit 0")
        return code

    monkeypatch.setattr(subprocess, "call", create)
    assert install.main(folder, []) == code
    assert made == [["-m", "venv", "--clear", str(folder)]]


def test_the_step_and_the_packages_that_are_there_are_printed(
    install: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lib" / "python3.12" / "site-packages" / "torch-2.14.1.dist-info").mkdir(parents=True)
    turns = iter([False, True])
    install.report(deque(["Collecting timm"]), tmp_path, SimpleNamespace(wait=lambda seconds: next(turns)))
    assert capsys.readouterr().out.endswith(" s,   1 packages: Collecting timm\n")
