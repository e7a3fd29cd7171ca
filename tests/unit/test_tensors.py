import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from scaleup.common import tensors
from scaleup.common.errors import UserError

STATE = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.tensor([1, 2, 3], dtype=torch.bfloat16)}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in STATE.items()
    )


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.model."])
@pytest.mark.parametrize("wrappings", [(), ("state_dict",), ("model",), ("module",), ("model_state_dict", "module")])
def test_wrappings_of_trainers_come_off(prefix: str, wrappings: tuple[str, ...], tmp_path: Path) -> None:
    content: Any = {prefix + name: value for name, value in STATE.items()}
    for wrapping in wrappings:
        content = {wrapping: content, "epoch": 3, "config": "{}"}
    torch.save(content, tmp_path / "last.ckpt")
    found, beside = tensors.read(tmp_path / "last.ckpt")
    assert same(found)
    assert not wrappings or beside["config"] == "{}"


def test_safetensors_and_what_is_written_beside(tmp_path: Path) -> None:
    save_file({f"model.{name}": value for name, value in STATE.items()}, tmp_path / "m.safetensors", {"config": "{}"})
    found, beside = tensors.read(tmp_path / "m.safetensors")
    assert same(found) and beside == {"config": "{}"}


@pytest.mark.parametrize("stretch", [1, 2**30])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_is_mapped_and_copied_tensor_by_tensor(
    kind: str, stretch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "STRETCH", stretch)
    path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pt")
    if kind == "safetensors":
        save_file({f"model.{name}": value for name, value in STATE.items()}, path)
    else:
        torch.save(
            {f"model.{name}": value for name, value in STATE.items()},
            path,
            _use_new_zipfile_serialization=kind == "zip",
        )
    file = tensors.File(path)
    assert same(file.mapped) and file.names == {name: f"model.{name}" for name in STATE}
    copies = dict(zip(STATE, file.copies(STATE), strict=True))
    assert same(copies) and all(tensor.data_ptr() % 16 == 0 for tensor in copies.values())
    assert all(copies[name].data_ptr() != file.mapped[name].data_ptr() for name in STATE)
    wide = dict(zip(STATE, file.copies(STATE, torch.float64), strict=True))
    assert all(
        tensor.dtype == torch.float64 and torch.equal(tensor, STATE[name].double()) for name, tensor in wide.items()
    )


def test_the_encoder_of_a_checkpoint_of_several_models_is_taken(tmp_path: Path) -> None:
    content = {
        "encoder": {f"module.{name}": value for name, value in STATE.items()},
        "predictor": {"weight": torch.ones(3)},
    }
    torch.save(content, tmp_path / "ijepa.pth.tar")
    assert same(tensors.read(tmp_path / "ijepa.pth.tar")[0])


def test_a_program_is_refused(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 3), torch.zeros(1, 2)).save(tmp_path / "clip.pt")
    with pytest.raises(
        UserError, match="clip.pt is a program .TorchScript., not a checkpoint; save only its state_dict"
    ):
        tensors.read(tmp_path / "clip.pt")


def test_a_header_whose_length_begins_like_a_web_page_is_read(tmp_path: Path) -> None:
    length = int.from_bytes(b" <", "little")
    header = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", length) + header + struct.pack("<f", 2.5))
    assert tensors.read(tmp_path / "m.safetensors")[0]["weight"].tolist() == [2.5]


class Code:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "evil.pt"
    torch.save({"state_dict": STATE, "code": Code(proof)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="is refused.*could run code; nothing was run"):
        tensors.read(path)
    path.write_bytes(pickle.dumps({"code": Code(proof), "padding": "x" * 64}))
    with pytest.raises(UserError):
        tensors.read(path)
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists()  # it would have


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has 0 bytes"),
        (b"short", "has 5 bytes"),
        (b"<!DOCTYPE html><html><head><title>Not found</title></head><body></body></html>", "is a web page"),
        (b"\n <html lang='en'><head><title>Not found</title></head><body></body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789\nsize 123456789012\n", "is "),
        (b"\0" * 1000, "is "),
        (bytes(range(256)) * 20, "is "),
    ],
)
def test_what_is_no_checkpoint_is_refused(content: bytes, words: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"file{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        tensors.read(tmp_path / f"file{suffix}")
    assert f"file{suffix}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, [1, 2], torch.zeros(100), {"epoch": "x" * 100}])
def test_a_checkpoint_without_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(UserError, match="holds|is a "):
        tensors.read(tmp_path / "last.pt")


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(UserError, match="there is no file"):
            tensors.read(path)


def test_two_models_in_one_file_are_refused(tmp_path: Path) -> None:
    torch.save({"model.weight": torch.zeros(3), "module.weight": torch.ones(3)}, tmp_path / "two.pt")
    with pytest.raises(UserError, match="has tensors of two models"):
        tensors.read(tmp_path / "two.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damage_is_refused_or_harmless_but_never_a_traceback(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pt")
    if kind == "safetensors":
        save_file(STATE, path, {"config": "{}"})
    else:
        torch.save({"state_dict": STATE, "epoch": 3}, path, _use_new_zipfile_serialization=kind == "zip")
    whole, draw, refused = path.read_bytes(), random.Random(1), 0
    for trial in range(60):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 3, 20))):
            content[draw.randrange(min(len(content), 700))] = draw.randrange(256)
        path.write_bytes(content[: draw.randrange(len(content))] if trial % 4 == 0 else content)
        try:
            tensors.hashes(tensors.read(path)[0])
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 15


def test_hashes_tell_type_shape_and_bytes_apart() -> None:
    zeros = torch.zeros(4)
    alike = [zeros, zeros.int(), zeros.view(2, 2), torch.zeros(5), torch.tensor([0, 0, 0, -0.0]), torch.zeros(())]
    digests = tensors.hashes({str(index): value for index, value in enumerate(alike)})
    assert len(set(digests.values())) == len(alike)
    base = torch.randn(4, 6)
    copies = tensors.hashes({"a": base.T, "b": base.T.contiguous(), "c": base.T.clone().requires_grad_()})
    assert len(set(copies.values())) == 1


def test_a_fingerprint_depends_on_names_and_content_alone() -> None:
    digests = tensors.hashes(STATE)
    assert tensors.fingerprint(digests) == tensors.fingerprint(dict(reversed(digests.items())))
    assert tensors.fingerprint(digests) != tensors.fingerprint({**digests, "bias": digests["weight"]})
    assert tensors.fingerprint(digests) != tensors.fingerprint(
        {"w" if k == "weight" else k: v for k, v in digests.items()}
    )
