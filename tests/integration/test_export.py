import errno
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from support import tools
from support.runs import copied

import scaleup
from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.data.shapes import CLASSES
from scaleup.model import adapter
from scaleup.model.adapter import KINDS, Adapt
from scaleup.model.build import fresh, load
from scaleup.model.tubevit import TubeViT
from scaleup.outputs import conversion
from scaleup.outputs.conversion import export, parity
from scaleup.outputs.programs import difference
from scaleup.transplants import donor
from scaleup.transplants.adapted_model import transplant
from scaleup.transplants.transplant_plan import Options

tool = partial(tools.tool, "export")


@pytest.fixture(scope="module")
def made(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transplanted model whose last block, gate and head have been changed, beside what it was made from."""
    place = tmp_path_factory.mktemp("export")
    described = recipe.load(tiny_path, ["model.positions.kind=backbone"]).model
    for name, seed in (("small", 1), ("large", 2)):
        fresh(described, {}, seed).save_pretrained(place / name)
    transplant(str(place / "small"), str(place / "large"), place / "moved", Options(gate_at=2))
    model = load(place / "moved").with_arm(2, True, CLASSES["video"])
    with torch.no_grad():
        model.arm.gate.alpha += 0.5  # type: ignore[union-attr]
        model.arm.blocks["2"].mlp.fc1.weight *= 1.1  # type: ignore[union-attr,operator]
    model.save_pretrained(place / "delta")
    return place


@pytest.fixture
def delta(made: Path, tmp_path: Path) -> Path:
    """That model; its base is ``tmp_path / "large"``."""
    return copied(made, tmp_path) / "delta"


def bits(model: TubeViT) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.named_tensors().items()}


def test_delta_to_full_and_back_bit_for_bit(delta: Path, tmp_path: Path) -> None:
    full, again = tmp_path / "full", tmp_path / "again"
    for source, kind, out in ((delta, "full", full), (full, "delta", again)):
        done = tool(source, "--to", kind, "--out", out, "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["image_max_abs_diff"] == result["video_max_abs_diff"] == 0
        assert result["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert bits(scaleup.load(full)) == bits(scaleup.load(delta)) == bits(scaleup.load(again))
    assert (again / "delta.safetensors").read_bytes() == (delta / "delta.safetensors").read_bytes()
    kept = load_file(delta / "delta.safetensors")
    assert {name.split(".")[0] for name in kept} == {"tubes", "gate", "blocks", "heads"}
    assert [name for name in kept if name.startswith("blocks")] == ["blocks.2.mlp.fc1.weight"]  # the rest is the base's


def test_a_full_model_needs_no_base_and_a_delta_its_own(delta: Path, tmp_path: Path) -> None:
    export(delta, "full", tmp_path / "full")
    whole = bits(scaleup.load(delta))
    moved = (tmp_path / "large").rename(tmp_path / "elsewhere") / "model.safetensors"
    assert bits(scaleup.load(tmp_path / "full")) == whole
    done = tool(delta, "--to", "full", "--out", tmp_path / "other")
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "other").exists()
    assert str(tmp_path / "large" / "model.safetensors") in done.stderr
    export(delta, "full", tmp_path / "other", base=str(moved))
    assert bits(scaleup.load(tmp_path / "other")) == whole
    with pytest.raises(UserError, match="sha256"):
        export(delta, "full", tmp_path / "wrong", base=str(tmp_path / "small" / "model.safetensors"))
    assert not (tmp_path / "wrong").exists()


def test_the_tubes_of_a_small_model_alone(delta: Path, tmp_path: Path) -> None:
    done = tool(tmp_path / "small", "--to", "tubes", "--out", tmp_path / "tubes", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0 < max(value for key, value in result.items() if key.endswith("_max_rel_diff")) < 1e-3
    assert result["bytes"] < (tmp_path / "small" / "model.safetensors").stat().st_size
    done = tool(delta, "--to", "tubes", "--out", tmp_path / "other")
    assert done.returncode == 2 and "tubes are moved from a whole small model" in done.stderr


@pytest.mark.parametrize("to", ["full", "tubes"])
def test_a_model_that_cannot_be_read_is_no_output_that_cannot_be_written(
    delta: Path, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    monkeypatch.setattr(conversion, "load", unreadable)
    monkeypatch.setattr(donor, "read", unreadable)
    with pytest.raises(PermissionError, match="'model.safetensors'"):
        export(delta, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_a_backbone_are_no_part_of_tubes(delta: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--base is for models on a backbone that has moved"):
        export(tmp_path / "small", "tubes", tmp_path / "out", base="elsewhere")


def test_an_unknown_target_is_named_with_the_nearest(delta: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown target 'detla'; allowed are delta, full.*'delta'"):
        export(delta, "detla", tmp_path / "out")


def test_what_exists_is_not_written_over(delta: Path, tmp_path: Path) -> None:
    before = (tmp_path / "small" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="exists"):
        export(delta, "full", tmp_path / "small")
    assert (tmp_path / "small" / "model.safetensors").read_bytes() == before
    export(delta, "full", tmp_path / "small", overwrite=True)
    assert scaleup.load(tmp_path / "small").config.gate


def test_a_model_without_a_public_base_has_no_delta(tmp_path: Path, delta: Path) -> None:
    with pytest.raises(UserError, match="no delta; allowed is --to full"):
        export(tmp_path / "small", "delta", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "wrong", "said"),
    [
        (lambda model: model.arm.heads["motion"], 1e-6, "1.0e-06"),
        (lambda model: model.arm.heads["motion"], float("nan"), "nan"),
        (lambda model: model.tokenizer.tubes["long"], float("nan"), "nan"),
    ],
    ids=["head", "head is no number", "tube is no number"],
)
def test_a_difference_is_an_error_and_not_a_number(
    part: Callable, wrong: float, said: str, delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last head, and a tube, which no image meets: what comes first is as it was."""

    def careless(model: TubeViT, *args: object, **kwargs: object) -> None:
        model = load(delta)
        part(model).bias.data[0] += wrong
        honest(model, *args, **kwargs)  # type: ignore[arg-type]

    honest = TubeViT.save_pretrained
    monkeypatch.setattr(TubeViT, "save_pretrained", careless)
    with pytest.raises(UserError, match=rf"differs from it by {said}; allowed is 0"):
        export(delta, "full", tmp_path / "out")


def test_parity_looks_at_images_and_videos_and_every_head(delta: Path) -> None:
    one, other = scaleup.load(delta), scaleup.load(delta)
    assert parity(one, other) == {"image": 0, "video": 0}
    next(iter(other.tokenizer.tubes.values())).bias.data += 1
    differences = parity(one, other)
    assert differences["image"] == 0 and differences["video"] > 0


@pytest.fixture
def adapted(request: pytest.FixtureRequest, delta: Path, tmp_path: Path) -> Path:
    """A transplanted model with a trained adapter of the kind that a test asks for."""
    template = load(tmp_path / "moved")
    model = template.with_arm(1, True, CLASSES["video"], adapt=Adapt(request.param, 2, 8.0))
    torch.manual_seed(0)
    for parameter in model.arm.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return model.save_pretrained(tmp_path / "adapted")


@pytest.mark.parametrize("adapted", KINDS, indirect=True)
def test_a_model_with_an_adapter_goes_from_delta_to_full_and_back(adapted: Path, tmp_path: Path) -> None:
    full, again = tmp_path / "full", tmp_path / "again"
    for source, kind, out in ((adapted, "full", full), (full, "delta", again)):
        result = export(source, kind, out)
        assert result.differences == {"image": 0, "video": 0} and not result.relative
        assert result.bytes == sum(file.stat().st_size for file in out.rglob("*.*"))
    assert bits(scaleup.load(full)) == bits(scaleup.load(adapted))
    for name in ("delta.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (again / name).read_bytes() == (adapted / name).read_bytes()


def test_outputs_that_are_all_zero_differ_by_an_absolute_amount() -> None:
    zero, some = {"head": torch.zeros(2, 3)}, {"head": torch.full((2, 3), 0.5)}
    assert difference(zero, some, relative=True) == 0.5 and difference(zero, zero, relative=True) == 0.0
    assert difference(some, zero, relative=True) == 1.0


@pytest.mark.parametrize("adapted", KINDS, indirect=True)
@pytest.mark.parametrize("to", ["delta", "full"])
def test_a_merged_model_computes_the_same_without_an_adapter(adapted: Path, to: str, tmp_path: Path) -> None:
    before, out = {path: path.read_bytes() for path in adapted.rglob("*.*")}, tmp_path / "merged"
    result = export(adapted, to, out, merge=True)
    assert result.relative and all(0 < result.differences[name] < 1e-5 for name in ("image", "video"))
    one, other = scaleup.load(adapted), scaleup.load(out)
    assert parity(one, other, relative=True) == result.differences
    assert other.config == replace(one.config, adapter=None) and not (out / "adapter").exists()
    plain = load(tmp_path / "moved").with_arm(1, True, CLASSES["video"]).eval()
    assert other.state_dict().keys() == plain.state_dict().keys()
    plain.arm.heads.load_state_dict(one.arm.heads.state_dict())
    assert max(parity(one, plain, relative=True).values()) > 0.05  # the adapter did something
    assert {path: path.read_bytes() for path in adapted.rglob("*.*")} == before


@pytest.mark.parametrize("adapted", ["lora"], indirect=True)
def test_a_merge_that_differs_is_an_error(adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(blocks: torch.nn.ModuleDict) -> None:
        honest(blocks)
        blocks["1"].mlp.fc1.weight.data *= 1.001  # type: ignore[union-attr,operator]

    honest = adapter.merge
    monkeypatch.setattr(adapter, "merge", careless)
    with pytest.raises(UserError, match=r"differs from it by .* of its size; allowed is 0.0001"):
        export(adapted, "full", tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("adapted", ["lora"], indirect=True)
def test_the_tool_merges_what_has_an_adapter(adapted: Path, delta: Path, tmp_path: Path) -> None:
    done = tool(adapted, "--to", "full", "--out", tmp_path / "out", "--merge")
    assert done.returncode == 0 and "read back: image max rel diff " in done.stdout, done.stderr
    assert scaleup.load(tmp_path / "out").config.adapter is None
    with pytest.raises(UserError, match="no adapter to merge; leave out --merge"):
        export(delta, "full", tmp_path / "other", merge=True)
    for to in ("tubes", "peft"):
        with pytest.raises(UserError, match=f"--merge is for targets that hold blocks; {to} holds none"):
            export(adapted, to, tmp_path / "other", merge=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("adapted", KINDS, indirect=True)
def test_peft_gets_the_adapter_alone(adapted: Path, tmp_path: Path) -> None:
    assert export(adapted, "peft", tmp_path / "out").differences == {"image": 0, "video": 0}
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (adapted / "adapter").iterdir()}
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "out"))
    assert config.peft_type == {"lora": "LORA", "dora": "LORA", "ia3": "IA3"}[scaleup.load(adapted).config.adapter.kind]


def test_a_model_without_an_adapter_has_nothing_for_peft(delta: Path, tmp_path: Path) -> None:
    done = tool(delta, "--to", "peft", "--out", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert (
        "holds an adapter, and this model has none; allowed are arms that trained with arm.adapt lora, dora, ia3"
        in (done.stderr)
    )
