import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from donors import TUBES, small_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from scaleup.common.errors import UserError
from scaleup.model.tubes import TubeSpec, resize_kernel
from scaleup.transplants import donor as donors_on_disk
from scaleup.transplants.adapted_model import transplant
from scaleup.transplants.donor import LIGHTNING_TUBES, Donor, read, write
from scaleup.transplants.transplant_plan import Options


def assert_same(donor: Donor, wanted: dict[str, tuple[Tensor, Tensor]]) -> None:
    assert [kernel.spec for kernel in donor.kernels] == [
        TubeSpec(name, tuple(t.kernel), tuple(t.stride), tuple(t.offset)) for name, t in TUBES.items()
    ]
    for kernel in donor.kernels:
        weight, bias = wanted[kernel.spec.name]
        assert torch.equal(kernel.weight, weight) and torch.equal(kernel.bias, bias)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, tuple[Tensor, Tensor]]]:
    model = small_model()
    model.save_pretrained(tmp_path / "small")
    return tmp_path / "small", {n: (t.weight.detach(), t.bias.detach()) for n, t in model.tokenizer.tubes.items()}


def test_a_directory_and_its_file(saved: tuple, tmp_path: Path) -> None:
    directory, kernels = saved
    assert_same(read(directory), kernels)
    alone = (directory / "model.safetensors").rename(tmp_path / "alone.safetensors")
    donor = read(alone)  # what it was fed is written in the file
    assert_same(donor, kernels)
    assert donor.config.input.mean == [0.2, 0.5, 0.6]
    assert donor.config.to_json() == json.loads((directory / "config.json").read_text())


def test_what_a_small_model_was_trained_on_in_all_its_stages(saved: tuple) -> None:
    directory, _ = saved
    assert read(directory).data == []
    first, second = {"shards": "images"}, {"shards": "videos"}
    report = {"data": {"b": second}, "began_from": {"data": {"a": first}}}
    (directory / "report.json").write_text(json.dumps(report))
    assert read(directory).data == [second, first]


def test_tubes_alone_are_all_that_a_transplant_takes(saved: tuple, tmp_path: Path) -> None:
    directory, kernels = saved
    (directory / "report.json").write_text(
        json.dumps({"data": {"a": {"shards": "v", "samples": 7, "modality": "video"}}})
    )
    (tmp_path / "alone").mkdir()
    assert max(write(read(directory), tmp_path / "alone").values()) < 1e-3
    donor, whole = read(tmp_path / "alone"), read(directory)
    assert_same(donor, {name: (w.half().float(), b.half().float()) for name, (w, b) in kernels.items()})
    assert donor.patch and whole.patch and torch.equal(donor.patch.weight, whole.patch.weight.half().float())
    assert donor.config == whole.config and donor.data == whole.data
    assert not [name for name in donor.tensors if "block" in name or "head" in name]
    card = (tmp_path / "alone" / "README.md").read_text()
    assert donor.sha256 in card and "v (7 videos)" in card


def test_donors_of_scaleup_have_names(saved: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, kernels = saved
    (tmp_path / "own" / "donors").mkdir(parents=True)
    directory.rename(tmp_path / "own" / "donors" / "ti")
    monkeypatch.setattr(donors_on_disk, "OWN", tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    assert_same(read("donors/ti"), kernels)
    with pytest.raises(UserError, match="there is no donor 'donors/it'; allowed are .* donors/ti; .*'donors/ti'"):
        read("donors/it")


@pytest.mark.parametrize("width", [192, 320])
def test_donors_that_come_with_scaleup(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"donors/ti{width}"
    donor = read(name)
    assert {kernel.spec.name: tuple(kernel.weight.shape) for kernel in donor.kernels} == {
        "short": (width, 3, 8, 16, 16),
        "long": (width, 3, 16, 8, 8),
    }
    place = donors_on_disk.OWN / name
    assert donor.sha256 in (place / "README.md").read_text()
    assert sum(file.stat().st_size for file in place.iterdir()) < 21_000 * width
    report = transplant(name, "timm:test_vit", tmp_path / "adapted", Options(weights=None, size=(112, 112)))
    assert report.parents["small"].sha256 == donor.sha256


@pytest.mark.parametrize("name", ["last.ckpt", "last.pt"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("inner", ["disk", "training"])
def test_checkpoints_of_trainers(name: str, prefix: str, inner: str, saved: tuple) -> None:
    directory, kernels = saved
    state = load_file(directory / "model.safetensors") if inner == "disk" else small_model().state_dict()
    (directory / "model.safetensors").unlink()
    torch.save({"state_dict": {prefix + key: value for key, value in state.items()}, "epoch": 3}, directory / name)
    donor = read(directory / name)
    assert_same(donor, kernels)
    assert donor.tensors.keys() >= {"tubes.long.weight", "heads.shape.bias"}


def test_the_content_decides_the_hash(saved: tuple, tmp_path: Path) -> None:
    directory, _ = saved
    state = load_file(directory / "model.safetensors")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, directory / "last.pt")
    assert read(directory).sha256 == read(directory / "last.pt").sha256
    state["norm.bias"][0] += 1
    torch.save(state, directory / "last.pt")
    assert read(directory).sha256 != read(directory / "last.pt").sha256


def test_one_kernel_for_all_tubes(tmp_path: Path) -> None:
    model = small_model(interpolate=[4, 4, 4])
    model.save_pretrained(tmp_path / "small")
    tubes = model.tokenizer.tubes
    shared = tubes.shared.detach()
    assert_same(
        read(tmp_path / "small"), {n: (resize_kernel(shared, t.spec.kernel), t.bias.detach()) for n, t in tubes.items()}
    )


def lightning(width: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {
        "sparse_tubes_tokenizer.conv_proj_weight": torch.randn(width, 3, 8, 8, 8),
        "sparse_tubes_tokenizer.conv_proj_bias": torch.randn(4, width),
        "pos_embedding": torch.randn(1, 540, width),
        "encoder.layers.encoder_layer_0.ln_1.weight": torch.ones(width),
    }


@torch.no_grad()
def test_the_public_layout_gives_the_tokens_that_model_computes(tmp_path: Path) -> None:
    state = lightning()
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 0.1}}, tmp_path / "public.ckpt")
    donor = read(tmp_path / "public.ckpt")
    assert donor.tensors.keys() == state.keys() and donor.config.input.frames == 32
    x = torch.randn(1, 3, 32, 224, 224)
    weight, biases = state["sparse_tubes_tokenizer.conv_proj_weight"], state["sparse_tubes_tokenizer.conv_proj_bias"]
    geometry = [
        ((8, 8, 8), (16, 32, 32), (0, 0, 0)),
        ((16, 4, 4), (6, 32, 32), (4, 8, 8)),
        ((4, 12, 12), (16, 32, 32), (0, 16, 16)),
    ]
    for kernel, (size, stride, (t, h, w)), bias in zip(donor.kernels, geometry, biases[:3], strict=True):
        resized = weight if size == (8, 8, 8) else F.interpolate(weight, size, mode="trilinear")
        wanted = F.conv3d(x[:, :, t:, h:, w:], resized, bias, stride).flatten(2).mT
        columns = kernel.spec.columns(x)
        found = (kernel.weight.flatten(1) @ columns + kernel.bias[:, None]).mT
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert tuple(kernel.spec for kernel in donor.kernels) == LIGHTNING_TUBES


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sparse_tubes_tokenizer.conv_proj_bias": torch.zeros(3, 6)}, "are not one kernel"),
        ({"sparse_tubes_tokenizer.conv_proj_bias": None}, "conv_proj_bias"),
        ({"sparse_tubes_tokenizer.conv_proj_weight": torch.zeros(6, 3, 8, 8)}, "are not one kernel"),
        ({"sparse_tubes_tokenizer.conv_proj_weight": torch.zeros(6, 1, 8, 8, 8)}, "are not one kernel"),
    ],
)
def test_a_damaged_public_layout_is_refused(change: dict, words: str, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in (lightning() | change).items() if tensor is not None}
    torch.save(state, tmp_path / "public.ckpt")
    with pytest.raises(UserError, match=words):
        read(tmp_path / "public.ckpt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tubes.long.weight": None}, "lacks tubes.*of the tube 'long'"),
        ({"tubes.wide.bias": None}, "lacks tubes.wide.bias of the tube 'wide'"),
        ({"tubes.wide.bias": torch.zeros(7)}, r"with a bias \(7,\)"),
        ({"tubes.long.weight": torch.zeros(24, 3, 8, 4, 5)}, r"is \(24, 3, 8, 4, 5\).*8, 4, 4"),
        ({"tubes.long.weight": torch.zeros(24)}, r"is \(24,\)"),
    ],
)
def test_kernels_that_do_not_fit_are_refused(change: dict, words: str, saved: tuple) -> None:
    state = load_file(saved[0] / "model.safetensors") | change
    save_file({n: t for n, t in state.items() if t is not None}, saved[0] / "model.safetensors")
    with pytest.raises(UserError, match=words):
        read(saved[0])


def test_what_does_not_say_where_its_tubes_are_is_refused(tmp_path: Path) -> None:
    torch.save({"tubes.long.weight": torch.zeros(24, 3, 8, 4, 4)}, tmp_path / "lone.pt")
    with pytest.raises(UserError, match="put the small model's config.json beside it"):
        read(tmp_path / "lone.pt")
    for config, words in (
        ("{", "is not JSON"),
        ("[]", "format"),
        ('{"format": "scaleup/1"}', "tubes: is missing"),
        (3, "format"),
    ):
        torch.save({"tubes.long.weight": torch.zeros(24, 3, 8, 4, 4), "config": config}, tmp_path / "lone.pt")
        with pytest.raises(UserError, match=words):
            read(tmp_path / "lone.pt")


def test_a_model_without_tubes_and_a_delta_are_refused(saved: tuple) -> None:
    directory, _ = saved
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tubes": {}}))
    with pytest.raises(UserError, match="without tubes"):
        read(directory)
    (directory / "model.safetensors").rename(directory / "delta.safetensors")
    with pytest.raises(UserError, match="holds a delta"):
        read(directory)
