from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clips
import open_clip
import pytest
import timm
import torch
from torch import Tensor

from scaleup.backbones.backbone import Backbone
from scaleup.backbones.build import build
from scaleup.common import tensors
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.model.build import fresh, load

NAMES = [*clips.TOWERS, *clips.TIMM]


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with clips.registered(tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("files")
    return {name: clips.saved(name, directory / f"{name}.safetensors") for name in NAMES}


def images(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def parts(backbone: Backbone, x: Tensor) -> Tensor:
    """The parts, one after the other; blocks are told of rotary angles."""
    h = backbone.stem.eval()(x)
    h = backbone.stem.norm_pre(h)
    rope = backbone.stem.rope_grid()
    for block in backbone.blocks:
        h = block.eval()(h) if rope is None else block.eval()(h, rope=rope)
    return backbone.tail.eval()(h)


@pytest.mark.parametrize("oblong", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_gives_bit_for_bit_what_open_clip_gives(name: str, oblong: bool, files: dict[str, Path]) -> None:
    own = build(f"open_clip:tiny-{name}", {}, None, "meta").size
    if name == "sines" and oblong:
        pytest.skip("sines of a square alone")
    size = (own[0] * 3 // 2, own[1]) if oblong else own
    model = open_clip.create_model(f"tiny-{name}", str(files[name]), force_image_size=size if oblong else None)
    backbone = build(f"open_clip:tiny-{name}", {}, size if oblong else None, str(files[name]))
    assert backbone.size == size and backbone.source.eval() is not model
    with torch.no_grad():
        expected = clips.library_tower(model)(images(size))
        assert torch.equal(parts(backbone, images(size)), expected)
        assert torch.equal(backbone.features(images(size)), expected)
    assert expected.shape == (2, backbone.tail.embed_dim) and expected.abs().max() > 0


@pytest.mark.parametrize("oblong", [False, True])
@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("ViT-B-16-SigLIP", 0.5),
        ("ViT-B-16-SigLIP2/webli", 0.5),
        ("EVA02-B-16/merged2b_s8b_b131k", open_clip.constants.OPENAI_DATASET_MEAN[0]),
        ("PE-Core-B-16/meta", 0.5),
        ("MobileCLIP2-L-14", open_clip.constants.OPENAI_DATASET_MEAN[0]),
        ("vit_medium_patch16_gap_256", open_clip.constants.OPENAI_DATASET_MEAN[0]),
    ],
)
def test_registered_towers_that_are_timm_models(
    name: str, mean: float, oblong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    vision = open_clip.get_model_config(name.split("/")[0])["vision_cfg"]
    with monkeypatch.context() as patch:
        patch.setattr(open_clip.timm_model.timm, "create_model", partial(timm.create_model, **small))
        tower = open_clip.model._build_vision_tower(16, vision)
    torch.manual_seed(1)
    for tensor in tower.parameters():
        torch.nn.init.normal_(tensor, 0.1, 0.3)
    torch.save({f"visual.{key}": tensor for key, tensor in tower.state_dict().items()}, tmp_path / "clip.bin")
    size = tower.image_size
    if oblong:
        size = (size[0] - 28, size[1] + 14) if "14" in name else (size[0] - 32, size[1] + 16)
        tower.set_input_size(size)
    backbone = build(f"open_clip:{name}", small, size if oblong else None, str(tmp_path / "clip.bin"))
    expected = clips.library_tower(SimpleNamespace(visual=tower))
    with torch.no_grad():
        assert torch.equal(parts(backbone, images(size)), expected(images(size)))
    assert backbone.size == size and backbone.mean[0] == mean


@pytest.mark.parametrize("name", ["clip", "coca", "token"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_of_a_whole_model_only_the_vision_tower_is_read(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = clips.saved(name, tmp_path / f"whole{suffix}"), []
    copies = tensors.File.copies
    monkeypatch.setattr(
        tensors.File, "copies", lambda file, names, *rest: copies(file, read.extend(names) or names, *rest)
    )
    backbone = build(f"open_clip:tiny-{name}", {}, None, str(path))
    assert read and all(each.startswith("visual.") for each in read)
    assert len(read) >= len(backbone.state_dict()) - 1  # all but what the library converts
    expected = {"token": {"head.weight", "head.bias"}}.get(name, {"proj"})
    assert backbone.left.keys() == expected


def test_the_tower_may_stand_alone_in_a_file(files: dict[str, Path], tmp_path: Path) -> None:
    visual = {
        k.removeprefix("visual."): t for k, t in tensors.read(files["clip"])[0].items() if k.startswith("visual.")
    }
    torch.save(visual, tmp_path / "visual.bin")
    alone = build("open_clip:tiny-clip", {}, None, str(tmp_path / "visual.bin"))
    whole = build("open_clip:tiny-clip", {}, None, str(files["clip"]))
    assert tensors.hashes(alone.state_dict()) == tensors.hashes(whole.state_dict())


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("name", ["clip", "quickgelu", "coca", "custom", "average"])
def test_open_clips_own_directories(name: str, safe: bool, tmp_path: Path) -> None:
    path = clips.directory(name, tmp_path / "own", safe)
    model = open_clip.create_model(f"local-dir:{path}")
    for place in (str(path), f"local-dir:{path}", f"open_clip:local-dir:{path}"):
        backbone = build(place, {}, None, "pretrained")
        assert backbone.name == f"open_clip:tiny-{name}" and backbone.kwargs == {}
        assert backbone.mean == (0.1, 0.2, 0.3) and backbone.std == (0.4, 0.5, 0.6)
    again = build(backbone.name, backbone.kwargs, backbone.size, backbone.weights)
    with torch.no_grad():
        expected = clips.library_tower(model)(images(backbone.size))
    assert torch.equal(parts(again, images(backbone.size)), expected)


def test_a_directory_of_an_unregistered_model_is_one_that_is_registered_with_changes(tmp_path: Path) -> None:
    path = clips.directory("clip", tmp_path / "own")
    text = (path / "open_clip_config.json").read_text().replace('"layers": 2', '"layers": 2, "ls_init_value": null')
    (path / "open_clip_config.json").write_text(text.replace('"embed_dim": 24', '"embed_dim": 24, "quick_gelu": true'))
    with_gelu = build(str(path), {}, None, "pretrained")
    assert with_gelu.name == "open_clip:tiny-quickgelu" and with_gelu.kwargs == {}
    (path / "open_clip_config.json").write_text(text.replace('"head_width": 16', '"head_width": 8'))
    changed = build(str(path), {}, None, "pretrained")
    assert changed.name == "open_clip:tiny-clip" and changed.kwargs == {"head_width": 8} and changed.num_heads == 4
    again = build(changed.name, changed.kwargs, changed.size, changed.weights)
    assert torch.equal(parts(again, images((32, 32))), parts(changed, images((32, 32))))


def test_the_activation_is_the_configurations_or_the_weights(files: dict[str, Path], monkeypatch: Any) -> None:
    tags = {
        "fast": {"quick_gelu": True, "mean": (0.3,) * 3, "std": (0.2,) * 3},
        "exact": {"mean": (0.1,) * 3, "std": (0.4,) * 3},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", tags)
    built = {tag: build(f"open_clip:tiny-clip/{tag}", {}, None, str(files["clip"])) for tag in tags}
    quick = build("open_clip:tiny-quickgelu", {}, None, str(files["clip"]))
    x = images((32, 32))
    assert torch.equal(parts(built["fast"], x), parts(quick, x)) and not torch.equal(
        parts(built["exact"], x), parts(quick, x)
    )
    assert built["exact"].mean == (0.1,) * 3 and built["exact"].std == (0.4,) * 3
    assert build("open_clip:tiny-clip", {}, None, "meta").mean == (0.3,) * 3  # of the first tag
    assert build("open_clip:tiny-coca", {}, None, "meta").mean == open_clip.constants.OPENAI_DATASET_MEAN


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "words"),
    [
        ("ViT-H-41", {}, None, "unknown open_clip model 'ViT-H-41'; nearest: 'ViT-H-16', 'ViT-H-14', "),
        (
            "ViT-H-14/laion2b",
            {},
            None,
            "unknown weights 'laion2b' of .*allowed are laion2b_s32b_b79k, .*nearest: 'laion2b_s32",
        ),
        ("RN50", {}, None, "'open_clip:RN50' is a ModifiedResNet, not a plain ViT: its blocks work on a grid"),
        ("convnext_tiny", {}, (64, 64), "'open_clip:convnext_tiny' is a ConvNeXt, not a plain ViT: its blocks"),
        ("ViTamin-S", {}, None, "'open_clip:ViTamin-S' is a .*: its patches come from a convolutional network"),
        ("MobileCLIP-S1", {}, None, "'open_clip:MobileCLIP-S1' is a FastVit, not a plain ViT: its blocks"),
        ("EVA02-E-14", {}, None, "'open_clip:EVA02-E-14' is an Eva, not a plain ViT: .*post-norm"),
        ("tiny-clip", {"pos_embed": "none"}, None, "'open_clip:tiny-clip' always adds its own positions"),
        ("tiny-clip", {"layer": 3}, None, "has no setting 'layer'; allowed are layers, .*nearest: 'layers'"),
        ("tiny-clip", {"head_width": 10}, None, "cannot build 'open_clip:tiny-clip' with .*divi"),
        ("tiny-clip", {"pool_type": "none"}, None, "pools to a sequence"),
        (
            "tiny-clip",
            {},
            (36, 32),
            "patches of 8x8, which do not divide .* 36x32; nearest are 32 or 40 high and 32 wide",
        ),
        ("tiny-token", {}, (160, 165), "patches of 16x16, which .* nearest are 160 high and 160 or 176 wide"),
        (
            "tiny-projected",
            {"timm_pool": "map"},
            None,
            "cannot build 'open_clip:tiny-projected' with .*attention pooling",
        ),
        ("tiny-sines", {}, (32, 40), "cannot build 'open_clip:tiny-sines' with .*square"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, kwargs: dict, size: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        build(f"open_clip:{name}", kwargs, size, "meta")
    assert "\n" not in str(error.value)


def test_weights_without_a_tag_are_refused_with_the_tags() -> None:
    with pytest.raises(UserError, match="does not name weights; give open_clip:ViT-H-14/TAG: laion2b_s32b_b79k, "):
        build("open_clip:ViT-H-14", {}, None, "pretrained")


def test_a_file_of_another_model_is_refused_with_both_sides(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="it lacks ln_pre.weight, ln_pre.bias$"):
        build("open_clip:tiny-clip", {}, None, str(files["clipa"]))
    with pytest.raises(UserError, match=r"it has besides ln_pre\.\w+, ln_pre\.\w+$"):
        build("open_clip:tiny-clipa", {}, None, str(files["clip"]))
    with pytest.raises(UserError, match=r"it differs in .*\(32,\) where \(48,\) belongs,.* belongs and \d+ more"):
        build("open_clip:tiny-clip", {"width": 48}, None, str(files["clip"]))
    with pytest.raises(UserError, match="it lacks .*; it has besides|does not have the weights of this model"):
        build("open_clip:tiny-clip", {}, None, str(files["token"]))


@pytest.mark.parametrize("name", ["clip", "coca", "pe"])
def test_a_model_on_a_tower_trains_and_comes_back(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    size = list(build(f"open_clip:tiny-{name}", {}, None, "meta").size)
    settings = schema.Model(
        backbone=schema.Backbone(f"open_clip:tiny-{name}", {}, str(files[name])),
        input=schema.Input(frames=4, size=size),
        frames=schema.Frames(stride=2),
        tubes={"long": schema.Tube([4, 8, 8], [4, 16, 16])},
        positions=schema.Positions("backbone", 0.1),
    )
    whole = fresh(settings, {"shape": ["a", "b"]}, 3)
    model = whole.with_arm(1, True, {"shape": ["a", "b"]}).eval()
    assert model.arm.gate is not None
    clip, image = torch.randn(1, 3, 4, *size), images((size[0], size[1]))
    with torch.no_grad():
        backbone = build(f"open_clip:tiny-{name}", {}, None, str(files[name]))
        assert torch.equal(model.forward_features(image), backbone.source.eval() and backbone.features(image))
    model(clip).sum().backward()
    assert model.arm.gate.alpha.grad is not None and model.arm.gate.alpha.grad.abs() > 0
    last = [p for block in model.arm.blocks.values() for p in block.parameters()]
    assert last and all(p.grad is not None for p in last)
    model.save_pretrained(tmp_path / "full", kind="full")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "full")(clip), model(clip))
