"""Whole transplants: what is claimed in the report, measured here again and otherwise."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import timm
import torch
from donors import LARGE, large_directory, small_model
from safetensors.torch import load_file, save_file
from support.slow_tubes import slow_tokens
from torch import Tensor, nn

import scaleup
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.data.shapes import make_shapes
from scaleup.model.tokenizer import SINES
from scaleup.transplants.adapted_model import plan, transplant
from scaleup.transplants.move import scale_tubes
from scaleup.transplants.transplant_plan import Options
from scaleup.transplants.transplant_report import GateReport, TransplantReport, lines

FOLDS = {"none": 48, "two": 24, "four": 12, "three": 16, "cut": 18, "narrow": 60}  # widths of small models for 48
PIXELS = torch.rand(2, 3, 16, 32, 40, generator=torch.Generator().manual_seed(0))


def parents(tmp_path: Path, width: int = 24, **parts: Any) -> tuple[Path, Path]:
    small_model(width, **parts).save_pretrained(tmp_path / "small")
    return tmp_path / "small", large_directory(tmp_path / "large")


def moved(tmp_path: Path, *donors: Path, **options: Any) -> tuple[Any, TransplantReport]:
    small, large = donors or parents(tmp_path)
    report = transplant(str(small), str(large), tmp_path / "out", Options(**options))
    return scaleup.load(tmp_path / "out"), report


def rms(tokens: Tensor) -> float:
    return tokens.double().square().mean().sqrt().item()


def normalised(pixels: Tensor, mean: Any, std: Any) -> Tensor:
    return torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


def places(start: int, kernel: int, stride: int, fold: int, length: int) -> list[list[int]]:
    """Where the kernel must be, said once more: stride / fold apart, and moved back where it would leave the clip."""
    tokens = []
    for first in range(start, length - kernel + 1, stride):
        offsets = [round(place * stride / fold) for place in range(fold)]
        moved_back = max(0, first + offsets[-1] + kernel - length)
        tokens.append([first + offset - moved_back for offset in offsets])
    return tokens


@torch.no_grad()
@pytest.mark.parametrize("name", FOLDS)
def test_every_tube_token_is_what_the_small_models_kernel_gives_at_its_places(name: str, tmp_path: Path) -> None:
    tubes = {
        "long": schema.Tube([8, 4, 4], [8, 8, 8]),
        "wide": schema.Tube([2, 8, 6], [4, 16, 12], [1, 0, 2]),
    }
    small, large = parents(tmp_path, FOLDS[name], tubes=tubes)
    model, report = moved(tmp_path, small, large)
    held = load_file(small / "model.safetensors")
    x = normalised(PIXELS.double(), [0.2, 0.5, 0.6], [0.3, 0.2, 0.4])
    fed = normalised(PIXELS, model.config.input.mean, model.config.input.std)
    for key, tube in tubes.items():
        entry = report.tubes[key]
        weight, bias = (held[f"tubes.{key}.{part}"].double() for part in ("weight", "bias"))
        starts = zip(tube.offset, tube.kernel, tube.stride, entry.fold, x.shape[2:], strict=True)
        wanted = slow_tokens(x, weight, bias, [places(*axis) for axis in starts])[..., :48]
        found = model.tokenizer.tubes[key](fed)
        assert found.shape == wanted.shape == (2, entry.tokens, 48)
        rounding = 4e-6 * wanted.abs().max().item()  # float32 sums in another order, whatever the number of threads
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=rounding)
        assert entry.token_max_abs_diff < rounding
        assert entry.channels == FOLDS[name] and entry.exact == (48 % FOLDS[name] == 0)
        assert entry.dropped_channels == -48 % FOLDS[name]


@torch.no_grad()
@pytest.mark.parametrize("kwargs", [{}, {"reg_tokens": 2, "pre_norm": True, "init_values": 0.5, "global_pool": "avg"}])
def test_an_image_gives_what_the_image_model_gives(kwargs: dict, tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "small")
    large = large_directory(tmp_path / "large", **kwargs)
    model, report = moved(tmp_path, tmp_path / "small", large, gate_at=2)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=(32, 40), **LARGE, **kwargs).eval()
    vit.load_state_dict(load_file(large / "model.safetensors"))
    images = torch.randn(3, 3, 32, 40)
    wanted = vit.forward_head(vit.forward_features(images), pre_logits=True)
    assert torch.equal(model.forward_features(images), wanted) and report.image_max_abs_diff == 0
    assert report.gate.closed_max_abs_diff == 0


def test_the_report_says_what_it_must(tmp_path: Path) -> None:
    model, report = moved(tmp_path, gate_at=2)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == {
        **asdict(report),
        "seconds": ANY,
    }
    assert report.tubes.keys() == {"long", "wide"}
    assert report.tokens == model.tokenize(PIXELS).shape[1] == 1 + 2 * 20 + 2 * 20 + 4 * 20
    assert report.gate == GateReport(2, 4, closed_max_abs_diff=0, alpha_grad=report.gate.alpha_grad)
    assert report.gate.alpha_grad > 1e-4
    assert model.frozen_depth == 2 and model.arm.gate.alpha.item() == 0
    for parent in report.parents.values():
        assert parent.name and len(parent.sha256 or "") == 64
    assert report.seconds > 0 and report.peak_bytes > 1e8


def test_every_number_of_both_parents_is_accounted_for(tmp_path: Path) -> None:
    small, large = parents(tmp_path)
    _, report = moved(tmp_path, small, large)
    assert_accounted(report, small, large, new={"gate.alpha"})
    fates = report.accounting.tensors
    assert fates["small/tubes.long.weight"] == "folded" and fates["small/heads.shape.bias"] == "left"
    assert fates["backbone/head.weight"] == "left" and fates["backbone/pos_embed"] == "kept"


def assert_accounted(report: TransplantReport, small: Path, large: Path, new: set[str]) -> None:
    own, public = (load_file(path / "model.safetensors") for path in (small, large))
    wanted = {f"small/{name}" for name in own} | {f"backbone/{name}" for name in public}
    assert report.accounting.tensors.keys() == wanted | {f"adapted/{name}" for name in new}
    rows = report.accounting.summary
    for parent, held in (("small", own), ("backbone", public)):
        entries = [entry for row, entry in rows.items() if row.startswith(parent)]
        assert sum(entry.tensors for entry in entries) == len(held)
        assert sum(entry.numbers for entry in entries) == sum(tensor.numel() for tensor in held.values())


def test_a_model_of_ours_as_the_large_one_is_accounted_for_too(tmp_path: Path) -> None:
    small_model(24).save_pretrained(tmp_path / "small")
    small_model(48, tubes={"other": schema.Tube([4, 4, 4], [8, 8, 8])}).save_pretrained(tmp_path / "large")
    model, report = moved(tmp_path, tmp_path / "small", tmp_path / "large")
    assert_accounted(report, tmp_path / "small", tmp_path / "large", {"gate.alpha"})
    assert list(model.tokenizer.tubes) == ["long", "wide"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["cosine", "cosine_no_stride", "none", "backbone"])
def test_an_image_gives_what_a_large_model_of_ours_gives(kind: str, tmp_path: Path) -> None:
    small_model(24).save_pretrained(tmp_path / "small")
    large = small_model(48, positions=schema.Positions(kind, 0.3))
    large.save_pretrained(tmp_path / "large")
    model, report = moved(tmp_path, tmp_path / "small", tmp_path / "large")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.forward_features(images), large.forward_features(images))
    assert report.positions.kind == kind and report.image_max_abs_diff == 0


def test_tables_of_positions_that_cannot_move_are_refused(tmp_path: Path) -> None:
    small_model(24).save_pretrained(tmp_path / "small")
    small_model(48, positions=schema.Positions("learned")).save_pretrained(tmp_path / "large")
    with pytest.raises(UserError, match="has learned positions, which are not moved; choose others with --positions"):
        moved(tmp_path, tmp_path / "small", tmp_path / "large")
    moved(tmp_path, tmp_path / "small", tmp_path / "large", positions="cosine")


@torch.no_grad()
def test_scales_match_on_request(tmp_path: Path) -> None:
    small, large = parents(tmp_path)
    clip = PIXELS
    report = transplant(str(small), str(large), tmp_path / "as-is", Options(), clip)
    matched = transplant(str(small), str(large), tmp_path / "out", Options(match_scale=True), clip)
    model, plain = scaleup.load(tmp_path / "out"), scaleup.load(tmp_path / "as-is")
    fed = normalised(clip, model.config.input.mean, model.config.input.std)
    stem = model.tokenizer.stem
    own = stem(fed[:, :, 0])[:, 1:] - stem.pos_embed[:, 1:]
    target = rms(own)
    for name, tube in model.tokenizer.tubes.items():
        tokens, before = tube(fed), plain.tokenizer.tubes[name](fed)
        assert rms(tokens) == pytest.approx(target, rel=1e-4)
        assert matched.tubes[name].rms_backbone == pytest.approx(target, rel=1e-4)
        assert report.tubes[name].rms_source == pytest.approx(rms(before), rel=1e-4)
        factor = (tokens / before).median()
        torch.testing.assert_close(tokens, before * factor, rtol=1e-3, atol=1e-4)  # one factor, no more
        assert matched.tubes[name].token_max_abs_diff < 2e-5


@pytest.mark.parametrize(("factor", "said"), [(40, ["far stronger"]), (1, []), (1 / 40, ["far weaker"])])
def test_tokens_far_from_the_strength_of_patches_are_remarked_on(factor: float, said: list, tmp_path: Path) -> None:
    small, large = parents(tmp_path)
    clip = PIXELS
    found = transplant(str(small), str(large), tmp_path / "found", Options(), clip).tubes
    model = scaleup.load(small)
    scale_tubes(model, {n: factor * tube.rms_backbone / tube.rms_source for n, tube in found.items()})
    model.save_pretrained(small, overwrite=True)
    report = transplant(str(small), str(large), tmp_path / "out", Options(), clip)
    assert [words for words in ("far stronger", "far weaker") if words in " ".join(report.remarks)] == said
    times = {40: "long (40 times), wide (40 times)", 1 / 40: "long (1/40), wide (1/40)"}
    assert all(times[factor] in each and "--match-scale" in each for each in report.remarks)
    assert all(f"  {each}" in lines(report) for each in report.remarks)
    matched = transplant(str(small), str(large), tmp_path / "matched", Options(match_scale=True), clip)
    assert matched.remarks == []


@torch.no_grad()
@pytest.mark.parametrize("match_scale", [False, True])
def test_the_control_has_other_kernels_of_the_same_scale(match_scale: bool, tmp_path: Path) -> None:
    small, large = parents(tmp_path)
    made = {}
    for tubes in (False, True):
        options = Options(random_tubes=tubes, match_scale=match_scale)
        transplant(str(small), str(large), tmp_path / str(tubes), options, PIXELS)
        made[tubes] = scaleup.load(tmp_path / str(tubes))
    fed = normalised(PIXELS, made[True].config.input.mean, made[True].config.input.std)
    for name in ("long", "wide"):
        real, control = (made[tubes].tokenizer.tubes[name](fed) for tubes in (False, True))
        assert rms(control) == pytest.approx(rms(real), rel=1e-4)
        kernels = [made[tubes].tokenizer.tubes[name].weight.flatten() for tubes in (False, True)]
        assert torch.corrcoef(torch.stack(kernels))[0, 1].abs() < 0.1
    rest = [{n: t for n, t in made[tubes].state_dict().items() if ".tubes." not in n} for tubes in (False, True)]
    assert all(torch.equal(rest[0][name], rest[1][name]) for name in rest[0])


def test_a_dry_run_says_what_the_transplant_then_does(tmp_path: Path) -> None:
    small, large = parents(tmp_path)
    planned = plan(str(small), str(large), Options())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "small"]
    _, report = moved(tmp_path, small, large)
    assert planned.tokens == report.tokens and planned.parameters == report.parameters
    assert all(asdict(planned.tubes[name]).items() <= asdict(tube).items() for name, tube in report.tubes.items())
    assert plan(str(small), "vit_h", Options()).parameters.backbone > 6e8


@pytest.mark.parametrize("positions", ["cosine", "none", "learned", "relative", "cosine_no_stride"])
def test_other_positions_than_the_backbones_own(positions: str, tmp_path: Path) -> None:
    amplitude = 0.25 if positions in SINES else None
    model, report = moved(tmp_path, positions=positions, amplitude=amplitude)
    assert report.positions == schema.Positions(positions, amplitude or 1.0)
    assert report.accounting.tensors["backbone/pos_embed"] == "left"
    assert model.forward_features(PIXELS).shape == (2, 48)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"amplitude": math.inf}, "--amplitude inf is not a number above 0"),
        ({"amplitude": math.nan}, "--amplitude nan is not a number above 0"),
        ({"amplitude": 0.0}, "--amplitude 0.0 is not a number above 0"),
        ({"amplitude": 1.0, "positions": "none"}, "--amplitude is of sines, and positions none have none; allowed are"),
    ],
)
def test_an_amplitude_that_says_nothing_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        moved(tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_a_transplant_leaves_the_backbone_and_the_delta_is_small(tmp_path: Path) -> None:
    small, large = parents(tmp_path)
    moved(tmp_path, small, large)
    assert load_file(tmp_path / "out" / "delta.safetensors").keys() == {
        "gate.alpha",
        "tubes.long.weight",
        "tubes.long.bias",
        "tubes.wide.weight",
        "tubes.wide.bias",
    }


def test_weights_beside_an_architecture(tmp_path: Path) -> None:
    small, large = parents(tmp_path)
    bare = large_file_of(large, tmp_path / "bare.pth")
    model, report = moved(tmp_path, small, large, weights=str(bare))
    assert report.parents["backbone"].weights == str(bare) and report.image_max_abs_diff == 0


def large_file_of(directory: Path, path: Path) -> Path:
    state = {f"module.{name}": tensor for name, tensor in load_file(directory / "model.safetensors").items()}
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exact": True}, r"'long' emits 18 channels, .* width 48; tubes of .*would fit"),
        ({"gate_at": 0}, "--gate-at 0 does not fit .*; allowed are 1 to 4"),
        ({"gate_at": 5}, "--gate-at 5"),
        ({"positions": "cosin"}, "unknown positions 'cosin'.*nearest: 'cosine'"),
        ({"size": (4, 4), "weights": None}, "do not divide an input of 4x4; nearest are 8 or 16 high"),
        ({"weights": "nowhere.pth"}, "there is no file .*nowhere.pth"),
        ({"size": (24, 7), "weights": None}, "do not divide an input of 24x7; nearest are 24 high and 8 or 16 wide"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(options: dict, words: str, tmp_path: Path) -> None:
    small, large = parents(tmp_path, 18)
    with pytest.raises(UserError, match=words) as error:
        transplant(str(small), str(large), tmp_path / "out", Options(**options))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "small"]


def test_what_exists_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        transplant("nowhere", "nowhere", tmp_path / "out", Options())


def test_a_diverged_small_model_is_refused(tmp_path: Path) -> None:
    small, large = parents(tmp_path)
    state = load_file(small / "model.safetensors")
    nn.init.constant_(state["tubes.long.weight"], float("nan"))
    save_file(state, small / "model.safetensors", {"config": (small / "config.json").read_text()})
    with pytest.raises(UserError, match="the kernel of the tube 'long' is not finite"):
        transplant(str(small), str(large), tmp_path / "out", Options())


def test_scales_are_measured_on_clips_of_the_backbones_size(tmp_path: Path) -> None:
    make_shapes(tmp_path / "data", {"val": 2}, {}, size=16, frames=10)
    small, large = parents(tmp_path)
    options = Options(size=(32, 40))
    report = transplant(str(small), str(large), tmp_path / "out", options, tmp_path / "data/videos-val")
    made_up = transplant(str(small), str(large), tmp_path / "other", options)
    assert report.image_max_abs_diff == 0
    assert all(tube.rms_source != made_up.tubes[name].rms_source for name, tube in report.tubes.items())
