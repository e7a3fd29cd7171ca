"""What stands in the directory of a run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def weights(model: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a model's directory, by its name."""
    held = [load_file(file) for file in sorted(model.rglob("*.safetensors"))]
    return bytes_of({name: tensor for file in held for name, tensor in file.items()})


def bytes_of(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


def files(directory: Path) -> dict[Path, bytes]:
    """The bytes of every file below a directory, by its path there."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory): path.read_bytes() for path in paths}


def bits(run: Path, *arms: str) -> dict[str, bytes]:
    """The bytes of every tensor of the arms of a run (all of them, where none is named), by arm and name."""
    named = arms or sorted(path.parent.name for path in run.glob("*/config.json"))
    return {f"{arm}/{name}": content for arm in named for name, content in weights(run / arm).items()}


def metrics(run: Path) -> list[dict]:
    """The lines of a run, each of one step."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps(run: Path) -> list[int]:
    return [line["step"] for line in metrics(run)]


def losses(run: Path) -> list[float]:
    """Of the one arm of a run."""
    return [line["arms"]["model"]["loss"] for line in metrics(run)]


def copied(source: Path, target: Path) -> Path:
    """A directory of models and runs again at another place, which they also name in their files."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    for path in filter(Path.is_file, target.rglob("*")):
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            path.write_bytes(_renamed(content, str(source), str(target)))
        elif str(source).encode() in content:
            path.write_bytes(content.replace(str(source).encode(), str(target).encode()))
    return target


def _renamed(content: bytes, old: str, new: str) -> bytes:
    """The content of a safetensors file whose header names another place: its length, and the header filled up to 8."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip(b" ").replace(old.encode(), new.encode())
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]
