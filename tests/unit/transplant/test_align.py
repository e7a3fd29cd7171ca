"""Tubes through a linear map of image tokens: the map, the tokens that it gives, and what is said of them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from donors import large_directory, small_model
from safetensors.torch import load_file
from torch import Tensor

import scaleup
from scaleup.backbones.build import build
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.data.shapes import make_shapes
from scaleup.model.tubes import TubeSpec
from scaleup.outputs import svg_plots
from scaleup.outputs.conversion import export
from scaleup.transplants.adapted_model import plan, transplant
from scaleup.transplants.donor import Kernel, read
from scaleup.transplants.move import token_pairs
from scaleup.transplants.transplant_plan import Options
from scaleup.transplants.transplant_report import TransplantReport, lines

D, MEAN, STD = 48, [0.2, 0.5, 0.6], [0.3, 0.2, 0.4]  # width of the large model; what the small one is fed
GENERATOR = torch.Generator().manual_seed(0)
CLIP = torch.rand(1, 3, 16, 32, 40, generator=GENERATOR)
COARSE = torch.rand(24, 3, 16, 20, generator=GENERATOR)
IMAGES = F.interpolate(COARSE, (32, 40), mode="bilinear")  # smooth, as images are
TUBES = {"long": schema.Tube([8, 4, 4], [8, 8, 8]), "wide": schema.Tube([2, 8, 6], [4, 16, 12], [1, 0, 2])}
FOLDED = {
    "long": schema.Tube([8, 4, 4], [8, 8, 8], fold=[2, 1, 1]),
    "cut": schema.Tube([2, 4, 4], [4, 8, 8], fold=[1, 1, 2], channels=14),  # 28 channels, of which 18 stay
}


def fed(pixels: Tensor, mean: Any = MEAN, std: Any = STD) -> Tensor:
    return torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


def parents(path: Path, width: int = 18, tubes: dict[str, schema.Tube] = TUBES) -> tuple[str, str]:
    small_model(width, tubes).save_pretrained(path / "small")
    return str(path / "small"), str(large_directory(path / "large"))


def made(path: Path, *donors: str, out: str = "out", **options: Any) -> tuple[Any, TransplantReport]:
    small, large = donors or parents(path)
    report = transplant(small, large, path / out, Options(match="align", **options), CLIP, IMAGES)
    return scaleup.load(path / out), report


def patches(images: Tensor, weight: Tensor, bias: Tensor, top: int, left: int) -> Tensor:
    """One patch of each image: (B, c)."""
    h, w = weight.shape[2:]
    return torch.einsum("bihw,cihw->bc", images[:, :, top : top + h, left : left + w], weight) + bias


def slow_rows(path: Path, fold: tuple[int, int], size: int = 8) -> tuple[Tensor, Tensor]:
    """Tokens of both at every place: (B, N, h*w*d), (B, N, D); where both have patches of 8 and no fold, none is
    resized."""
    small, large = (load_file(path / name / "model.safetensors") for name in ("small", "large"))
    own, their = ([p[f"patch_embed.proj.{part}"].double() for part in ("weight", "bias")] for p in (small, large))
    h, w = fold[0] * size, fold[1] * size
    rows, columns = 32 // h, 40 // w
    images = IMAGES[..., : rows * h, : columns * w]
    resized = F.interpolate(images, (rows * size, columns * size), mode="bilinear", antialias=True)
    x, y = [], []
    for top in range(rows):
        for left in range(columns):
            places = [(top * h + a * size, left * w + b * size) for a in range(fold[0]) for b in range(fold[1])]
            x.append(torch.cat([patches(fed(images.double()), *own, *place) for place in places], 1))
            y.append(patches(fed(resized.double(), [0.5] * 3, [0.5] * 3), *their, top * size, left * size))
    return torch.stack(x, 1), torch.stack(y, 1)


def slow_map(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The ridge of standardised inputs, by its normal equations: weight and bias."""
    scaled = (x - x.mean(0)) / x.std(0, correction=0)
    weight = torch.linalg.solve(scaled.T @ scaled + penalty * torch.eye(x.shape[1]), scaled.T @ (y - y.mean(0)))
    weight = weight / x.std(0, correction=0)[:, None]
    return weight, y.mean(0) - x.mean(0) @ weight


def slow_tokens(held: dict[str, Tensor], name: str, spec: TubeSpec, width: int) -> Tensor:
    """The small model's tokens of a tube, its places concatenated: (1, N, width), in float64."""
    weight, bias = (held[f"tubes.{name}.{part}"].double() for part in ("weight", "bias"))
    x, (kt, kh, kw), tokens = fed(CLIP.double()), spec.kernel, []
    axes = [axis.tolist() for axis in spec.places(CLIP.shape[2:])]  # type: ignore[arg-type]
    for ts in axes[0]:
        for hs in axes[1]:
            for ws in axes[2]:
                seen = [x[:, :, t : t + kt, h : h + kh, w : w + kw] for t in ts for h in hs for w in ws]
                at = [torch.einsum("bithw,cithw->bc", each, weight) + bias for each in seen]
                tokens.append(torch.cat(at, 1)[:, :width])
    return torch.stack(tokens, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("width", "tubes", "fold"),
    [(18, TUBES, (1, 1)), (60, TUBES, (1, 1)), (18, TUBES, (2, 2)), (18, FOLDED, (1, 1))],
    ids=["narrow", "too wide", "folded on top", "folded by the small model"],
)
def test_every_tube_token_is_the_map_of_the_small_models(
    width: int, tubes: dict[str, schema.Tube], fold: tuple[int, int], tmp_path: Path
) -> None:
    model, report = made(tmp_path, *parents(tmp_path, width, tubes), fold=fold)
    x, y = slow_rows(tmp_path, fold)
    kept = torch.arange(len(IMAGES)) % 8 != 7
    rows = x[kept].flatten(0, 1), y[kept].flatten(0, 1)
    found = report.align
    assert found.rows == len(rows[0]) and (found.images, found.held_out) == (24, 3)
    weight, bias = slow_map(*rows, found.penalty * found.rows)
    held = load_file(tmp_path / "small/model.safetensors")
    for name in tubes:
        tube = model.tokenizer.tubes[name]
        wanted = slow_tokens(held, name, tube.spec, len(weight)) @ weight + bias
        tokens = tube(fed(CLIP, [0.5] * 3, [0.5] * 3))
        rounding = 1e-5 * wanted.abs().max().item()
        torch.testing.assert_close(tokens.double(), wanted, rtol=0, atol=rounding)
        assert report.tubes[name].token_max_abs_diff < rounding
        assert report.tubes[name].tokens == tokens.shape[1]
    assert report.image_max_abs_diff == 0 and report.gate.closed_max_abs_diff == 0


def test_the_map_is_measured_on_images_left_out_and_its_penalty_is_the_best_by_gcv(tmp_path: Path) -> None:
    _, report = made(tmp_path)
    x, y = slow_rows(tmp_path, (1, 1))
    kept = torch.arange(len(IMAGES)) % 8 != 7
    (x, held_x), (y, held_y) = ((each[kept].flatten(0, 1), each[~kept].flatten(0, 1)) for each in (x, y))
    errors = {}
    for penalty in len(x) * 10.0 ** torch.linspace(-6, 2, 25, dtype=torch.float64):
        scaled = (x - x.mean(0)) / x.std(0, correction=0)
        hat = scaled @ torch.linalg.inv(scaled.T @ scaled + penalty * torch.eye(x.shape[1])) @ scaled.T + 1 / len(x)
        errors[penalty.item()] = (y - hat @ y).square().sum().item() / (len(x) - hat.trace().item()) ** 2
    penalty = min(errors, key=errors.__getitem__)
    weight, bias = slow_map(x, y, penalty)
    mapped, found = held_x @ weight + bias, report.align
    assert found.penalty == pytest.approx(penalty / len(x))
    r2 = 1 - (held_y - mapped).square().sum() / (held_y - held_y.mean(0)).square().sum()
    assert found.r2 == pytest.approx(r2.item(), rel=1e-4) and 0.3 < found.r2 < 1
    assert found.rms_mapped == pytest.approx(mapped.square().mean().sqrt().item(), rel=1e-4)
    assert found.rms_backbone == pytest.approx(held_y.square().mean().sqrt().item(), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("patch", "fold"), [((8, 8), (1, 1)), ((4, 8), (1, 1)), ((16, 10), (1, 1)), ((4, 4), (2, 3))])
def test_tokens_of_one_place_see_one_piece_of_the_image(patch: tuple, fold: tuple, tmp_path: Path) -> None:
    """Whatever the sizes of patches: an image of which one piece is lit is seen by one token of either model."""
    large = build(str(large_directory(tmp_path / "large", pre_norm=True, reg_tokens=2)), {}, (32, 40), "pretrained")
    kernel = Kernel(TubeSpec("patch", (1, *patch), (1, *patch)), torch.randn(6, 3, 1, *patch), torch.randn(6), ())
    h, w = patch[0] * fold[0], patch[1] * fold[1]
    columns = 40 // w
    dark = torch.zeros(1, 3, 32, 40)
    for row, column in ((0, 0), (32 // h - 1, columns - 1)):
        lit = dark.clone()
        lit[..., row * h + h // 2 - 1 : row * h + h // 2 + 1, column * w + w // 2 - 1 : column * w + w // 2 + 1] = 1
        for before, after in zip(
            *(token_pairs(kernel, schema.Input(mean=MEAN, std=STD), large, each, (1, *fold)) for each in (dark, lit)),
            strict=True,
        ):
            assert before.shape == after.shape and before.shape[1] == (32 // h) * columns
            changed = (after - before).abs().amax((0, 2)) > 1e-4
            assert changed.nonzero().flatten().tolist() == [row * columns + column]
    if (h, w) == (8, 8):  # nothing is resized
        wanted = large.stem.patch_embed.proj(lit[..., -8:, -8:] * 2 - 1)
        torch.testing.assert_close(after[0, -1], wanted.flatten(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_where_the_small_tokens_say_all_of_a_patch_the_map_says_it_too(tmp_path: Path) -> None:
    """A small model as wide as a patch has pixels: its tube of one frame, its patch, becomes the backbone's own."""
    tubes = {"patch": schema.Tube([1, 8, 8], [8, 8, 8])}
    small = small_model(192, tubes)
    tube, proj = small.tokenizer.tubes["patch"], small.tokenizer.stem.patch_embed.proj
    tube.kernel.copy_(proj.weight[:, :, None])
    tube.bias.copy_(proj.bias)
    small.save_pretrained(tmp_path / "small")
    noise = torch.rand(64, 3, 32, 40, generator=GENERATOR)
    donors = str(tmp_path / "small"), str(large_directory(tmp_path / "large"))
    report = transplant(*donors, tmp_path / "out", Options(match="align"), CLIP, noise)
    assert report.align.r2 > 0.999
    model = scaleup.load(tmp_path / "out")
    x = fed(CLIP, [0.5] * 3, [0.5] * 3)
    own = model.tokenizer.stem(x[:, :, 0])[:, 1:] - model.tokenizer.stem.pos_embed[:, 1:]
    tokens = model.tokenizer.tubes["patch"](x)[:, :20]
    assert (tokens - own).abs().max() < 0.05 * own.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("fold", [(1, 1), (2, 1)])
def test_it_comes_back_as_a_delta_and_in_full(fold: tuple[int, int], tmp_path: Path) -> None:
    model, report = made(tmp_path, fold=fold)
    wanted = model.forward_features(CLIP * 2 - 1)
    assert torch.equal(model.forward_features(CLIP * 2 - 1), wanted)
    export(tmp_path / "out", "full", tmp_path / "full")
    assert torch.equal(scaleup.load(tmp_path / "full").forward_features(CLIP * 2 - 1), wanted)
    entry = model.config.tubes["long"]
    assert (entry.channels, entry.fold, entry.summed) == (D, [1, *fold], fold != (1, 1))
    count = sum(tensor.numel() for tensor in model.tokenizer.tubes.state_dict().values())
    assert report.parameters.tubes == count
    if fold != (1, 1):
        with pytest.raises(UserError, match=r"tubes.long.weight is \(48, 6, 8, 4, 4\).* belong"):
            plan(str(tmp_path / "full"), "vit_b", Options())


def test_what_is_planned_is_what_is_made_and_said(tmp_path: Path) -> None:
    donors = parents(tmp_path)
    planned = plan(*donors, Options(match="align", fold=(1, 2)))
    _, report = made(tmp_path, *donors, fold=(1, 2))
    assert all(asdict(planned.tubes[name]).items() <= asdict(tube).items() for name, tube in report.tubes.items())
    assert planned.parameters == report.parameters and planned.tokens == report.tokens
    assert "18 channels at 1x1x2 places aligned to 48" in "\n".join(lines(planned))
    said = "\n".join(lines(report))
    assert f"R^2 {report.align.r2:.3f} on 3 of 24 images" in said and "NOT EXACT" not in said
    fates = report.accounting.tensors
    assert fates["small/tubes.long.weight"] == fates["small/tubes.wide.bias"] == "aligned"
    assert fates["small/patch_embed.proj.weight"] == "left" and fates["backbone/patch_embed.proj.weight"] == "kept"


@torch.no_grad()
def test_the_control_has_the_scale_of_what_is_aligned(tmp_path: Path) -> None:
    donors = parents(tmp_path)
    real, random = (made(tmp_path, *donors, out=str(tubes), random_tubes=tubes)[0] for tubes in (False, True))
    for name in TUBES:
        tokens = [model.tokenizer.tubes[name](CLIP * 2 - 1) for model in (real, random)]
        assert tokens[0].square().mean().item() == pytest.approx(tokens[1].square().mean().item(), rel=1e-3)
        assert not torch.allclose(*tokens)


def test_images_are_read_from_shards_of_either_kind(tmp_path: Path) -> None:
    make_shapes(tmp_path / "data", {"val": 9}, {"val": 10}, size=16, frames=10)
    donors, options = parents(tmp_path), Options(match="align", size=(32, 40))
    videos, images = tmp_path / "data/videos-val", tmp_path / "data/images-val"
    seen = {
        "images": transplant(*donors, tmp_path / "a", options, None, images).align,
        "frames": transplant(*donors, tmp_path / "b", options, None, videos).align,
        "clips": transplant(*donors, tmp_path / "c", options, videos).align,
    }
    assert [found.images for found in seen.values()] == [10, 9, 9]
    assert seen["frames"] == seen["clips"] != seen["images"]


@pytest.mark.parametrize(
    ("options", "images", "words"),
    [
        ({"match": "align"}, None, "--match align fits a map on images, and none were given; say where with --images"),
        ({"match": "align"}, IMAGES[:7], "7 images could be read, and --match align needs 8 at least"),
        ({"match": "align", "exact": True}, IMAGES, "--channels exact is about folds"),
        ({"match": "align", "fold": (5, 1)}, IMAGES, "'long' folds 5 places|5x1 patches of 8x8 pixels do not fit"),
        ({}, IMAGES, "--images is for --match align"),
        ({"fold": (1, 2)}, None, "--fold is for --match align"),
        ({"match": "align", "fold": (0, 2)}, IMAGES, "--fold 0 2 is not two whole numbers of at least 1"),
        ({"match": "algn"}, IMAGES, "unknown match 'algn'; allowed are fold, align; nearest: 'align'"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, images: Tensor | None, words: str, tmp_path: Path) -> None:
    donors = parents(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        transplant(*donors, tmp_path / "out", Options(**options), None, images)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_page_draws_the_kernels_of_all_places(tmp_path: Path) -> None:
    """A kernel of 8 frames at 2 places, and one of 2 frames: 16 and 4 frames of which each has a column of its own."""
    model, _ = made(tmp_path, fold=(1, 2))
    drawn = svg_plots.kernels(model)
    assert list(drawn) == ["patches", "long", "wide"] and all("8 of 48 channels" in drawn[name] for name in drawn)


def test_folds_of_the_small_model_take_no_other_on_top(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tube 'long' is folded 2x1x1 in the small model; leave out --fold"):
        made(tmp_path, *parents(tmp_path, tubes=FOLDED), fold=(1, 2))


def test_the_patch_of_the_public_layout_is_its_fourth_kernel(tmp_path: Path) -> None:
    weight, biases = torch.randn(6, 3, 8, 8, 8), torch.randn(4, 6)
    state = {f"sparse_tubes_tokenizer.conv_proj_{name}": each for name, each in (("weight", weight), ("bias", biases))}
    torch.save(state, tmp_path / "public.ckpt")
    patch = read(tmp_path / "public.ckpt").patch
    assert patch is not None and patch.spec.kernel == (1, 16, 16) and torch.equal(patch.bias, biases[3])
    torch.testing.assert_close(patch.weight, F.interpolate(weight, (1, 16, 16), mode="trilinear"))


def test_a_small_model_without_patches_is_refused(tmp_path: Path) -> None:
    small, large = parents(tmp_path)
    state = load_file(f"{small}/model.safetensors")
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("patch_embed")}
    torch.save(rest, f"{small}/rest.pt")
    with pytest.raises(UserError, match="has no patches that are one convolution"):
        made(tmp_path, f"{small}/rest.pt", large)
