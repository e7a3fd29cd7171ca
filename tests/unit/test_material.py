"""Real material out of packages: what is fetched, and what is said when something is not as noted."""

import gzip
import hashlib
import re
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from real import material, packages
from real.material import fetch_material
from real.packages import Item, Package, list_packages
from scaleup.common.errors import UserError

pytest.importorskip("onnx")
from test_dinov2_weights import small, write  # noqa: E402

PACKAGES = {  # name -> files of it, by the place that apt or pip finds them in; and what they are in the material
    "vit==1": {"models/vit.onnx": "dinov2_s14.safetensors"},
    "films-doc": {"usr/a.avi": "films/a.avi", "usr/b.mp4.gz": "films/b.mp4", "usr/sea.jpg": "photos/sea.jpg"},
    "fonts": {"usr/Emoji.ttf": "emoji.ttf", "usr/sky.png": "photos/sky.png"},
}


class Registry:
    """What pip, apt-get and dpkg do, with packages that are zip files in memory: {package: {path: bytes}}."""

    def __init__(self, contents: dict[str, dict[str, bytes]]) -> None:
        self.contents = contents
        self.lists = False  # whether apt-get knows its packages
        self.calls: list[str] = []
        self.killed_by = ""  # a command that is killed before it ends

    def __call__(self, command: Sequence[str], cwd: Path, **_: object) -> subprocess.CompletedProcess:
        words = " ".join(command).partition("-m ")[2] or " ".join(command)
        self.calls.append(words)
        error = self.error(words, cwd)
        if self.killed_by and self.killed_by in words:
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, bool(error), "", error)

    def error(self, words: str, cwd: Path) -> str:
        name = words.split()[-1]
        if words.startswith("dpkg"):
            with zipfile.ZipFile(cwd / words.split()[2]) as archive:
                archive.extractall(cwd / name)
        elif name == "update":
            self.lists = True
        elif name not in self.contents or not (self.lists or words.startswith("pip")):
            return (
                f"W: a warning\nERROR: no {name} here\n" if words.startswith("pip") else f"E: Unable to locate {name}\n"
            )
        else:
            with zipfile.ZipFile(cwd / f"{name}.whl", "w") as archive:
                for path, data in self.contents[name].items():
                    archive.writestr(path, data)
        return ""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of PACKAGES; their files are noted as they are."""
    write(tmp_path / "vit.onnx", small())
    model = small()
    model.load_state_dict(material.read_weights(tmp_path / "vit.onnx", model))
    save_file(model.state_dict(), tmp_path / "weights")
    contents, noted = dict[str, dict[str, bytes]](), list[Package]()
    for name, files in PACKAGES.items():
        wanted = {path: (tmp_path / "weights").read_bytes() if "onnx" in path else path.encode() for path in files}
        contents[name] = {path: gzip.compress(data) if "gz" in path else data for path, data in wanted.items()}
        pairs = [(files[path], path, len(data), hashlib.sha256(data).hexdigest()) for path, data in wanted.items()]
        noted.append(Package(name, "pip" if "==" in name else "apt", 1000, 2000, tuple(Item(*pair) for pair in pairs)))
    contents["vit==1"] = {"models/vit.onnx": (tmp_path / "vit.onnx").read_bytes()}
    fake = Registry(contents)
    monkeypatch.setattr(packages.subprocess, "run", fake)
    monkeypatch.setattr(material, "list_packages", lambda: noted)
    monkeypatch.setattr(material.timm, "create_model", lambda _: model)
    return fake


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_is_noted_is_fetched_once(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = fetch_material(tmp_path / "real")
    files = content(tmp_path / "real")
    assert files.keys() == {name for names in PACKAGES.values() for name in names.values()}
    assert files["films/b.mp4"] == b"usr/b.mp4.gz" and result.films == tmp_path / "real" / "films"
    assert (
        files["photos/sea.jpg"] == (result.photos / "sea.jpg").read_bytes() and files["emoji.ttf"] == b"usr/Emoji.ttf"
    )
    assert result.emoji.exists() and load_file(result.weights)["pos_embed"].dtype == torch.float32
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(PACKAGES) + 1 and "films-doc: 1 kB to download" in lines[1]
    assert all("--only-binary=:all:" in call and "--no-deps" in call for call in registry.calls if "pip" in call)
    registry.calls.clear()
    assert fetch_material(tmp_path / "real") == result
    assert not registry.calls and content(tmp_path / "real") == files


@pytest.mark.parametrize("command", ["download --quiet", "download films-doc", "dpkg -x fonts"])
def test_a_killed_call_goes_on(registry: Registry, tmp_path: Path, command: str) -> None:
    fetch_material(tmp_path / "whole")
    registry.killed_by = command
    with pytest.raises(KeyboardInterrupt):
        fetch_material(tmp_path / "real")
    assert (tmp_path / "real" / material.WORK).exists()
    before = {name for name in content(tmp_path / "real") if material.WORK not in name}
    registry.calls, registry.killed_by = [], ""
    fetch_material(tmp_path / "real")
    assert content(tmp_path / "real") == content(tmp_path / "whole")
    again = {call.split()[-1] for call in registry.calls} & PACKAGES.keys()
    assert again == {name for name, files in PACKAGES.items() if not before & set(files.values())}


@pytest.mark.parametrize("name", ["dinov2_s14.safetensors", "films/a.avi", "emoji.ttf"])
def test_another_file_in_its_place_is_refused_and_stays(registry: Registry, tmp_path: Path, name: str) -> None:
    fetch_material(tmp_path / "real")
    before = content(tmp_path / "real")
    (tmp_path / "real" / name).write_bytes(b"other")
    found, noted = (hashlib.sha256(data).hexdigest() for data in (b"other", before[name]))
    with pytest.raises(UserError) as error:
        fetch_material(tmp_path / "real")
    assert f"'{tmp_path / 'real' / name}' has the sha256 {found}, and {noted} was expected; remove it" in str(
        error.value
    )
    assert content(tmp_path / "real") == before | {name: b"other"}


def test_another_file_in_a_package_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.contents["films-doc"]["usr/a.avi"] = b"other"
    with pytest.raises(
        UserError, match=r"'films/a.avi' of the package films-doc has the sha256 .*; use a machine with"
    ):
        fetch_material(tmp_path / "real")
    del registry.contents["films-doc"]["usr/a.avi"]
    with pytest.raises(UserError, match="'films/a.avi' of the package films-doc is not there as usr/a.avi"):
        fetch_material(tmp_path / "real")
    assert not (tmp_path / "real" / "films" / "a.avi").exists()


def test_photographs_that_differ_are_named_and_skipped(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    registry.contents["films-doc"]["usr/sea.jpg"] = b"a lake"
    del registry.contents["fonts"]["usr/sky.png"]
    fetch_material(tmp_path / "real")
    text = capsys.readouterr().err
    assert "'photos/sea.jpg' of the package films-doc has the sha256" in text
    assert "'photos/sky.png' of the package fonts is not there as usr/sky.png" in text
    assert not list((tmp_path / "real").glob("photos/*")) and "4 files of real material" in text
    registry.calls.clear()
    fetch_material(tmp_path / "real")
    assert not registry.calls and "left out: photos/sea.jpg, photos/sky.png" in capsys.readouterr().err


def test_a_photograph_that_was_changed_stays(registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place = fetch_material(tmp_path / "real").photos / "sky.png"
    place.write_bytes(b"other")
    fetch_material(tmp_path / "real")
    assert f"'{place}' has the sha256" in capsys.readouterr().err and place.read_bytes() == b"other"


def test_a_package_that_is_gone_loses_nothing(registry: Registry, tmp_path: Path) -> None:
    contents = registry.contents
    for gone, sentence in {
        "vit==1": r"pip download .* vit==1' failed \(ERROR: no vit==1 here\)",
        "fonts": "E: Unable",
    }.items():
        registry.contents = {name: files for name, files in contents.items() if name != gone}
        with pytest.raises(UserError, match=sentence):
            fetch_material(tmp_path / "real")
    assert len(content(tmp_path / "real")) == 4
    registry.contents, registry.calls = contents, []
    fetch_material(tmp_path / "real")
    assert {call.split()[-1] for call in registry.calls} == {"fonts", "unpacked"}


def test_half_a_download_is_a_sentence_and_the_next_call_goes_on(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Sequence[str], cwd: Path, **options: object) -> subprocess.CompletedProcess:
        result = registry(command, cwd, **options)
        for wheel in cwd.glob("*.whl") if "pip" in command else ():
            wheel.write_bytes(wheel.read_bytes()[: wheel.stat().st_size // 2])
        return result

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(UserError, match=r"the download of vit==1 is damaged \(.*\); run it again"):
        fetch_material(tmp_path / "real")
    monkeypatch.setattr(packages.subprocess, "run", registry)
    film = registry.contents["films-doc"]["usr/b.mp4.gz"]
    registry.contents["films-doc"]["usr/b.mp4.gz"] = film[: len(film) // 2]
    with pytest.raises(UserError, match=r"'films/b.mp4' of the package films-doc is damaged \(.*\); it is another rel"):
        fetch_material(tmp_path / "real")
    registry.contents["films-doc"]["usr/b.mp4.gz"] = film
    fetch_material(tmp_path / "real")
    assert len(content(tmp_path / "real")) == 6


def test_a_program_that_fills_the_disk_is_told_from_one_without_a_network(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1"]
    with pytest.raises(UserError, match=f"failed .*; run it again when there is room in '{tmp_path}' and in '/"):
        packages._run(command, tmp_path)


@pytest.mark.parametrize("program", ["apt-get", "dpkg"])
def test_without_a_program_of_debian_a_sentence_says_so(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    def run(command: Sequence[str], **options: object) -> subprocess.CompletedProcess:
        if command[0] == program:
            raise FileNotFoundError
        return registry(command, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(UserError, match=f"{program} is not on this machine; the films, .* are in packages of Debian"):
        fetch_material(tmp_path / "real")


def test_a_program_that_hangs_up_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'ls --colour' failed \(.*\); run it again"):
        packages._run(["ls", "--colour"], tmp_path)


def test_a_full_disk_is_seen_before_anything_is_downloaded(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = sum(item.bytes for package in material.list_packages() for item in package.items) + 3000
    for free, fits in ((need - 1, False), (need, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(0, 0, free))
        if fits:
            fetch_material(tmp_path / "real")
        else:
            with pytest.raises(UserError, match=r"the material needs .*B, and '.*real' has .*B free"):
                fetch_material(tmp_path / "real")
            assert not registry.calls


def test_a_folder_that_cannot_be_written_is_a_sentence(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("a file")
    with pytest.raises(UserError, match="the material cannot be written to"):
        fetch_material(tmp_path / "real")


def test_two_calls_at_once_do_not_disturb_each_other(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "PATIENCE", 0)
    (tmp_path / "real").mkdir()
    with (tmp_path / "real" / ".lock").open("a") as other:
        assert material.locked(other, 0)
        with pytest.raises(UserError, match="another process is fetching material"):
            fetch_material(tmp_path / "real")
    assert not registry.calls


def test_the_list_has_all_that_the_material_needs() -> None:
    items = [item for package in list_packages() for item in package.items]
    names = [item.name for item in items]
    assert len(set(names)) == len(names) and names.count("emoji.ttf") == names.count("dinov2_s14.safetensors") == 1
    assert sum(name.startswith("films/") for name in names) == 8 and sum(item.is_photo for item in items) == 64
    assert all(re.fullmatch("[0-9a-f]{64}", item.sha256) and item.bytes > 0 for item in items)
    assert all(item.bytes <= package.unpacked * 1.2 for package in list_packages() for item in package.items)
    assert {package.source for package in list_packages()} == {"pip", "apt"}
