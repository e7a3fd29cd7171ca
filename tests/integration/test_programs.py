"""Models as programs that need none of our code, and as timm's own."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from support import tools
from support.marks import at_length
from support.programs import only
from support.runs import copied

import scaleup
from scaleup.common.errors import UserError
from scaleup.config import recipe
from scaleup.config.schema import Recipe
from scaleup.data.shapes import CLASSES
from scaleup.model.adapter import Adapt
from scaleup.model.build import fresh, load
from scaleup.outputs import programs
from scaleup.outputs.conversion import export

tool = partial(tools.tool, "export")


@pytest.fixture(scope="module")
def made(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapted model of two heads with an open gate and tubes that fold."""
    changes = ["model.positions.kind=backbone", "model.tubes.long.fold=[1,2,1]", "model.backbone.kwargs.depth=2"]
    model = fresh(recipe.load(tiny_path, changes).model, {}, 0).with_arm(1, True, CLASSES["video"])
    model.arm.gate.alpha.data += 0.5  # type: ignore[union-attr]
    return model.save_pretrained(tmp_path_factory.mktemp("programs") / "saved")


@pytest.fixture
def saved(made: Path, tmp_path: Path) -> Path:
    return copied(made, tmp_path / "saved")


def samples(count: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def expected(saved: Path, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    model = scaleup.load(saved)
    with torch.no_grad():
        return {head: model(model.preprocess(pixels), head) for head in model.config.heads}


def test_a_program_runs_without_us_on_any_number_of_samples(saved: Path, tmp_path: Path) -> None:
    done = tool(saved, "--to", "torch", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["image_max_rel_diff"] < 1e-5 and result["video_max_rel_diff"] < 1e-5
    assert all(result[key][name] > 0 for key in ("seconds", "eager_seconds") for name in ("image", "video"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["seconds"] == result["seconds"]
    sizes = {name: (tmp_path / "out" / f"{name}.pt2").stat().st_size for name in ("image", "video")}
    assert report["program_bytes"] == sizes and report["model_bytes"] > 4 * 24 * 24
    code = """import sys, torch
outputs = []
for name, pixels in torch.load(sys.argv[1]).items():
    outputs.append(torch.export.load(f"out/{name}.pt2").module()(pixels))
torch.save(outputs, sys.argv[1])
assert not any(name.startswith("scaleup") for name in sys.modules)"""
    pixels = {"image": samples(5, 32, 32), "video": samples(5, 8, 32, 32)}
    torch.save(pixels, tmp_path / "clips.pt")
    subprocess.run([sys.executable, "-c", code, "clips.pt"], check=True, timeout=tools.SECONDS, cwd=tmp_path)
    for found, clips in zip(torch.load(tmp_path / "clips.pt"), pixels.values(), strict=True):
        for head, logits in expected(saved, clips).items():
            torch.testing.assert_close(found[head], logits, rtol=1e-5, atol=1e-6)
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert labels["heads"] == scaleup.load(saved).config.heads and labels["input"]["dtype"] == "uint8"
    assert labels["input"]["shapes"]["video"] == ["batch", 3, 8, 32, 32]


SHAPES = {"image": (32, 32), "video": (8, 32, 32)}


@pytest.mark.parametrize("kinds", [["video"], *at_length(["image", "video"])])
def test_onnxruntime_gives_the_same(
    saved: Path, tmp_path: Path, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    only(kinds, monkeypatch)
    result = export(saved, "onnx", tmp_path / "out")
    assert result.relative and result.differences["video"] < 1e-5
    for name, shape in ((kind, SHAPES[kind]) for kind in kinds):
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_inputs()] == ["pixels"]
        pixels = samples(3, *shape)
        found = session.run(list(CLASSES["video"]), {"pixels": pixels.numpy()})
        for head, values in zip(CLASSES["video"], found, strict=True):
            assert np.abs(values - expected(saved, pixels)[head].numpy()).max() < 1e-5


@pytest.mark.parametrize("to", at_length("torch", "onnx"))
def test_a_program_for_each_length_of_clips(saved: Path, tmp_path: Path, to: str) -> None:
    result = export(saved, to, tmp_path / "out", frames=[8, 11, 16])
    for length in (11, 16):  # 8 is the model's own
        assert result.costs is not None and result.costs.seconds[f"video_{length}"] > 0
        assert result.figures()[f"video_{length}_max_rel_diff"] < 1e-5
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {
        *("image", "video", "video_11", "video_16", "labels", "report")
    }
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert labels["input"]["shapes"]["video_11"] == ["batch", 3, 11, 32, 32]
    if to == "torch":
        pixels = samples(3, 11, 32, 32)
        found = torch.export.load(tmp_path / "out" / "video_11.pt2").module()(pixels)
        for head, logits in expected(saved, pixels).items():
            torch.testing.assert_close(found[head], logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "fold"),
    [("cosine", "[2,1,1]"), *at_length(("learned", "[1,3,1]"), ("relative", "[3,1,1]"), ("backbone", "[1,1,3]"))],
)
def test_one_program_for_every_length_of_a_span(
    tiny: Callable[..., Recipe], tmp_path: Path, kind: str, fold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places of tubes are not evenly spaced, and at some lengths the last token is moved back inside."""
    only(["video_8-13"], monkeypatch)
    described = tiny(
        f"model.positions.kind={kind}", f"model.tubes.long.fold={fold}", "model.backbone.kwargs.depth=2"
    ).model
    fresh(described, CLASSES["video"], 0).save_pretrained(tmp_path / "saved")
    result = export(tmp_path / "saved", "torch", tmp_path / "out", frames=["8-13"])
    assert result.differences["video_8-13"] < 1e-5
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert labels["input"]["shapes"]["video_8-13"] == ["batch", 3, "8-13", 32, 32]
    run = torch.export.load(tmp_path / "out" / "video_8-13.pt2").module()
    for length in range(8, 14):
        pixels = samples(1 + length % 2, length, 32, 32)
        for head, logits in expected(tmp_path / "saved", pixels).items():
            torch.testing.assert_close(run(pixels)[head], logits, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError, match="13"):
        run(samples(1, 14, 32, 32))


@pytest.mark.all
def test_onnxruntime_reads_every_length_of_a_span(saved: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    export(saved, "onnx", tmp_path / "out", frames=["8-12"])
    session = onnxruntime.InferenceSession(tmp_path / "out" / "video_8-12.onnx", providers=["CPUExecutionProvider"])
    for length in range(8, 13):
        pixels = samples(2, length, 32, 32)
        found = session.run(list(CLASSES["video"]), {"pixels": pixels.numpy()})
        for head, values in zip(CLASSES["video"], found, strict=True):
            assert np.abs(values - expected(saved, pixels)[head].numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ("6:12", "frames '6:12'; allowed are a length of clips (64) and spans"),
        ("1-8", "frames '1-8'; allowed are a length"),
        ("8-8", "frames '8-8'; allowed are a length"),
        ("3-12", "tube 'long' needs at least 4 along t"),
        ("7-12", "in clips of less than 8 frames a tube has one token in time, or places closer together"),
    ],
)
def test_spans_that_do_not_fit_are_refused_with_the_reason(
    tiny: Callable[..., Recipe], tmp_path: Path, frames: str, reason: str
) -> None:
    fresh(tiny("model.tubes.long.fold=[2,1,1]").model, {}, 0).save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match=re.escape(reason)):
        export(tmp_path / "saved", "torch", tmp_path / "out", frames=[frames])
    assert not (tmp_path / "out").exists()


def test_lengths_that_do_not_fit_are_refused_with_the_reason(saved: Path, tmp_path: Path) -> None:
    done = tool(saved, "--to", "torch", "--frames", 16, 3, "--out", tmp_path / "out")
    assert done.returncode == 2 and "tube 'long' needs at least 4 along t" in done.stderr
    with pytest.raises(UserError, match=r"--frames is for programs \(torch, onnx, aoti\)"):
        export(saved, "full", tmp_path / "out", frames=[16])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_program_is_compiled_ahead_of_time(saved: Path, tmp_path: Path) -> None:
    result = export(saved, "aoti", tmp_path / "out")
    assert result.differences["video"] < 1e-5
    pixels = samples(3, 8, 32, 32)
    found = torch._inductor.aoti_load_package(str(tmp_path / "out" / "video.pt2"))(pixels)
    for head, logits in expected(saved, pixels).items():
        torch.testing.assert_close(found[head], logits, rtol=1e-5, atol=1e-6)


def test_a_program_that_differs_is_an_error_and_nothing_stays(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = programs.Whole(load(saved))

    def careless(*_: object) -> Callable:
        return lambda pixels: {name: value + 0.01 * (name == "motion") for name, value in run(pixels).items()}

    monkeypatch.setattr(programs, "traced", lambda *_: None)
    form = programs.Form(".pt2", lambda traced, path, names: path.touch(), careless)
    monkeypatch.setitem(programs.FORMS, "torch", form)
    with pytest.raises(UserError, match=r"differs from it by .* of its size; allowed is 0\.0001"):
        export(saved, "torch", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"saved"}


@pytest.mark.all
def test_weights_beside_a_program_are_part_of_its_size(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ONNX keeps those of models above 2 GB."""
    honest = programs.FORMS["torch"]

    def write(traced: torch.export.ExportedProgram, path: Path, names: list[str]) -> None:
        honest.write(traced, path, names)
        path.with_name(f"{path.name}.data").write_bytes(bytes(1000))

    monkeypatch.setitem(programs.FORMS, "torch", honest._replace(write=write))
    costs = export(saved, "torch", tmp_path / "out").costs
    assert costs is not None
    assert costs.program_bytes == {
        name: (tmp_path / "out" / f"{name}.pt2").stat().st_size + 1000 for name in ("image", "video")
    }


@pytest.mark.all
def test_an_adapter_is_merged_into_a_program(saved: Path, tmp_path: Path) -> None:
    model = load(saved).with_arm(1, True, CLASSES["video"], adapt=Adapt("lora", 2, 8.0))
    for parameter in model.arm.parameters():
        parameter.data += 0.1 * parameter.requires_grad
    model.save_pretrained(tmp_path / "adapted")
    export(tmp_path / "adapted", "torch", tmp_path / "out")
    pixels = samples(2, 8, 32, 32)
    found = torch.export.load(tmp_path / "out" / "video.pt2").module()(pixels)
    for head, logits in expected(tmp_path / "adapted", pixels).items():
        torch.testing.assert_close(found[head], logits, rtol=1e-4, atol=1e-4)


def test_timm_loads_the_image_model(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    """Whose late block was trained; bit for bit, and with what it must be fed."""
    described = tiny("model.positions.kind=backbone", "model.input.mean=[0.4,0.5,0.6]").model
    model = fresh(described, {}, 0).with_arm(2, False, CLASSES["video"])
    model.arm.blocks["2"].mlp.fc1.weight.data *= 1.1  # type: ignore[union-attr,operator]
    model.save_pretrained(tmp_path / "saved")
    result = export(tmp_path / "saved", "timm", tmp_path / "out")
    figures = result.figures()
    assert figures["image_max_abs_diff"] == 0 and figures["seconds"]["image"] > 0 < figures["eager_seconds"]["image"]
    vit = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x, loaded = torch.randn(2, 3, 32, 32), scaleup.load(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(vit(x), loaded.forward_features(x))
    assert vit.pretrained_cfg["mean"] == [0.4, 0.5, 0.6] and tuple(vit.pretrained_cfg["input_size"]) == (3, 32, 32)


def test_what_timm_cannot_hold_is_refused_with_the_reason(
    saved: Path, tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"cannot hold this model: its gate is open \(tanh\(alpha\) = 0\.462\)"):
        export(saved, "timm", tmp_path / "out")
    fresh(tiny().model, {}, 0).save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match=r"cannot hold this model: its positions \(cosine\) are not the backbone's own"):
        export(tmp_path / "small", "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def weights(program: Path) -> int:
    """Bytes of the floating-point weights of an ONNX program."""
    onnx = pytest.importorskip("onnx")
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    return sum(each.ByteSize() for each in onnx.load(program).graph.initializer if each.data_type in floats)


@pytest.mark.all
def test_a_program_in_float16_is_half_as_large_and_says_how_far_it_is(saved: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    done = tool(saved, "--to", "onnx", "--half", "--out", tmp_path / "half")
    assert done.returncode == 0, done.stderr
    whole = sum(parameter.nbytes for parameter in scaleup.load(saved).parameters())
    assert weights(tmp_path / "half" / "video.onnx") < 0.6 * whole
    report = json.loads((tmp_path / "half" / "report.json").read_text())
    pixels = samples(3, 8, 32, 32)
    session = onnxruntime.InferenceSession(tmp_path / "half" / "video.onnx")
    outputs = dict(zip(CLASSES["video"], session.run(None, {"pixels": pixels.numpy()}), strict=True))
    assert {output.dtype for output in outputs.values()} == {np.dtype("float32")}
    for kind in ("image", "video"):
        assert 1e-5 < report[f"{kind}_max_rel_diff"] < 1e-2
    for head, logits in expected(saved, pixels).items():
        assert programs.difference({head: logits}, {head: torch.from_numpy(outputs[head])}, True) < 1e-2


@pytest.mark.parametrize("target", ["torch", "full", "timm"])
def test_float16_is_refused_for_other_targets(target: str, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--half is for onnx; {target} is written in the precision of the model"):
        export(saved, target, tmp_path / "out", half=True)
