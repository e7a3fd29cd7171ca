import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scaleup.common import tensors
from scaleup.common.errors import UserError

STATE = {
    name: torch.full((5,), float(n)) for n, name in enumerate(["patch_embed.proj.weight", "norm.bias", "norm.weight"])
}
FIRST, SECOND = "model-00001-of-00002", "model-00002-of-00002"


def write(directory: Path, suffix: str = ".safetensors") -> Path:
    """The first tensor in one part, the others in a second; the index."""
    directory.mkdir(exist_ok=True)
    places = dict(zip(STATE, (FIRST, SECOND, SECOND), strict=True))
    for part in (FIRST, SECOND):
        own = {name: STATE[name] for name in STATE if places[name] == part}
        (save_file if suffix == ".safetensors" else torch.save)(own, directory / f"{part}{suffix}")
    index = directory / f"model{suffix}.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {name: f"{part}{suffix}" for name, part in places.items()}})
    )
    return index


@pytest.mark.parametrize("stretch", [1, 2**30])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_parts_are_one_file(suffix: str, stretch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "STRETCH", stretch)
    index = write(tmp_path, suffix)
    save_file(STATE, tmp_path / "whole.safetensors")
    file = tensors.File(index)
    assert file.safe == (suffix == ".safetensors") and file.names == {name: name for name in STATE}
    copies = dict(zip(STATE, file.copies(STATE), strict=True))
    assert tensors.hashes(copies) == tensors.hashes(tensors.read(tmp_path / "whole.safetensors")[0])
    assert all(copies[name].data_ptr() != file.mapped[name].data_ptr() for name in STATE)


def test_one_tensor_is_read_from_its_part(tmp_path: Path) -> None:
    index = write(tmp_path)
    (tmp_path / f"{FIRST}.safetensors").write_bytes(b"is not read")
    assert torch.equal(tensors.read_tensor(index, "norm.bias"), STATE["norm.bias"])
    names = {"bias": "norm.bias"}
    assert tensors.hashes_in(index, names, torch.float32) == tensors.hashes({"bias": STATE["norm.bias"]})


@pytest.mark.parametrize("part", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\0b", "a\\b"])
def test_parts_elsewhere_are_refused(part: str, tmp_path: Path) -> None:
    index = write(tmp_path / "model")
    shutil.copy(tmp_path / f"model/{FIRST}.safetensors", tmp_path / "other.safetensors")
    edit(index, {"norm.bias": part})
    with pytest.raises(
        UserError, match="model.safetensors.index.json names the file '.*'; allowed are files in the same folder"
    ):
        tensors.read(index)


def edit(index: Path, changes: dict[str, str | None]) -> None:
    content = json.loads(index.read_text())
    content["weight_map"] |= changes
    content["weight_map"] = {name: part for name, part in content["weight_map"].items() if part is not None}
    index.write_text(json.dumps(content))


def test_parts_that_are_not_what_the_index_says_are_refused(tmp_path: Path) -> None:
    index = write(tmp_path)
    edit(index, {"norm.bias": f"{FIRST}.safetensors"})
    with pytest.raises(UserError, match=f"says that 'norm.bias' is in {FIRST}.*, but it is in {SECOND}.safetensors"):
        tensors.read(index)
    edit(index, {"norm.bias": None})
    with pytest.raises(UserError, match=f"{SECOND}.safetensors holds 'norm.bias', which .*index.json does not name"):
        tensors.read(index)
    edit(index, {"norm.bias": f"{SECOND}.safetensors", "head.bias": f"{SECOND}.safetensors"})
    with pytest.raises(UserError, match="says that 'head.bias' is in .*, but no file has it"):
        tensors.read(index)
    edit(index, {"head.bias": None})
    save_file(STATE, tmp_path / f"{FIRST}.safetensors")
    with pytest.raises(UserError, match=f"it is in {FIRST}.safetensors and {SECOND}.safetensors"):
        tensors.read(index)
    (tmp_path / f"{FIRST}.safetensors").write_bytes(bytes(100))
    with pytest.raises(UserError, match=f"{FIRST}.safetensors is not a complete safetensors file"):
        tensors.read(index)
    (tmp_path / f"{FIRST}.safetensors").unlink()
    with pytest.raises(UserError, match=f"names the file '{FIRST}.safetensors', which is not in its folder; download"):
        tensors.read(index)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[" * 10**5, "cannot be read as JSON"),
        ('{"weight_map": {"a": "x.bin", "a": "y.bin"}}', "has the key 'a' twice"),
        *(
            (json.dumps(content), "is JSON without weights; allowed is the index")
            for content in ([], {}, {"weight_map": []})
        ),
        ('{"weight_map": {"a": 3}}', "is JSON without weights"),
        ('{"architectures": ["ViTModel"], "hidden_size": 768}', "is JSON without weights"),
    ],
)
def test_other_json_is_refused(content: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=words):
        tensors.read(tmp_path / "model.safetensors.index.json")
