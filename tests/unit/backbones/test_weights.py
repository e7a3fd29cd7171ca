import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clips
import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

from scaleup.backbones.build import build
from scaleup.checkpoint import hub as weight_files
from scaleup.common.errors import UserError
from scaleup.config import schema
from scaleup.model.build import fresh

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with clips.registered(tmp_path_factory.mktemp("configs")):
        yield


class Hub:
    """A cache as the hub's client keeps it, offline."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def holds(self, repo: str, directory: Path) -> None:
        at = self.cache / f"models--{repo.replace('/', '--')}"
        (at / "refs").mkdir(parents=True)
        (at / "refs" / "main").write_text("0" * 40)
        shutil.copytree(directory, at / "snapshots" / ("0" * 40))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Hub(tmp_path / "hub")


def trained(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(7)
    vit = timm.create_model(name, **kwargs)
    for tensor in vit.parameters():
        nn.init.normal_(tensor, 0.1, 0.3)
    return vit.eval()


@torch.no_grad()
def assert_same(name: str, kwargs: dict[str, Any], size: Any, place: str, library: Any) -> None:
    """What the library has at that size is what we have, number by number; and so is what it computes."""
    backbone = build(name, kwargs, size, place)
    own, theirs = backbone.state_dict(), library.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in own.items()) and backbone.weights == place
    x = torch.randn(1, 3, *backbone.size, generator=torch.Generator().manual_seed(0))
    expected = library.eval().forward_head(library.forward_features(x), pre_logits=True)
    assert torch.equal(backbone.source.eval() and backbone.features(x), expected)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_small_patch16_224.augreg_in21k", (48, 80)),
        ("vit_small_patch14_dinov2.lvd142m", (56, 84)),
        ("vit_small_patch14_reg4_dinov2.lvd142m", None),
        ("vit_base_patch16_siglip_224.webli", (80, 64)),
        ("vit_base_patch16_siglip_gap_224.webli", (224, 224)),
        ("vit_base_patch16_clip_quickgelu_224.openai", (112, 48)),
        ("deit3_small_patch16_224.fb_in1k", (64, 48)),
        ("flexivit_small.1200ep_in1k", (64, 96)),
        ("eva02_base_patch16_clip_224.merged2b", (64, 96)),
        ("eva02_small_patch14_224.mim_in22k", (70, 56)),
        ("vit_small_patch16_dinov3.lvd1689m", (64, 96)),
        ("vit_pe_core_tiny_patch16_384.fb", (64, 96)),
    ],
)
@pytest.mark.parametrize("safe", [True, False])
def test_public_weights_of_timm_are_what_timm_makes_of_them(
    name: str, size: Any, safe: bool, hub: Hub, tmp_path: Path
) -> None:
    save_for_hf(trained(name.split(".")[0], **SMALL), tmp_path / "saved", safe_serialization=safe)
    hub.holds(timm.get_pretrained_cfg(name).hf_hub_id, tmp_path / "saved")
    words = {**SMALL, "num_classes": 0}
    library = timm.create_model(name, pretrained=True, **words, **({"img_size": size} if size else {}))
    assert_same(f"timm:{name}", SMALL, size, "pretrained", library)


@pytest.mark.parametrize("prefix", ["hf-hub:", "timm:hf-hub:"])
def test_a_hub_id_in_timms_layout(prefix: str, hub: Hub, tmp_path: Path) -> None:
    save_for_hf(trained("test_vit", num_classes=3, img_size=(64, 96)), tmp_path / "saved", safe_serialization="both")
    hub.holds("me/vit", tmp_path / "saved")
    backbone = build(f"{prefix}me/vit", {}, None, "pretrained")
    assert backbone.name == "timm:test_vit" and backbone.size == (64, 96) and backbone.weights == "hf-hub:me/vit"
    assert backbone.file is not None and backbone.file.is_relative_to(hub.cache)
    library = timm.create_model("hf-hub:me/vit", pretrained=True, num_classes=0)
    assert_same(backbone.name, backbone.kwargs, backbone.size, str(backbone.weights), library)  # what config.json keeps


def test_a_hub_id_in_open_clips_layout_beside_another_librarys(hub: Hub, tmp_path: Path) -> None:
    own = clips.directory("clip", tmp_path / "saved")
    (own / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"], "projection_dim": 24}))
    save_file({"vision_model.weight": torch.zeros(30)}, own / "model.safetensors")
    hub.holds("me/clip", own)
    backbone = build("hf-hub:me/clip", {}, None, "pretrained")
    assert backbone.name == "open_clip:tiny-clip" and backbone.mean == (0.1, 0.2, 0.3)
    assert backbone.file is not None and backbone.file.name == "open_clip_model.safetensors"
    assert torch.equal(backbone.state_dict()["conv1.weight"], load_file(backbone.file)["visual.conv1.weight"])


@pytest.mark.parametrize("file", ["", "open_clip_pytorch_model.bin", "epoch_3.bin"])
def test_public_weights_of_open_clip(file: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", {"best": {"hf_hub": f"me/clip/{file}"}})
    saved = clips.directory("clip", tmp_path / "saved", safe=file == "")
    if file == "epoch_3.bin":
        (saved / "open_clip_pytorch_model.bin").rename(saved / file)
    hub.holds("me/clip", saved)
    model = open_clip.create_model("tiny-clip", "best", force_image_size=(32, 48))
    backbone = build("open_clip:tiny-clip/best", {}, (32, 48), "pretrained")
    assert backbone.name == "open_clip:tiny-clip/best" and backbone.weights == "pretrained"
    theirs = model.visual.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in backbone.state_dict().items())
    vit = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    other = build("timm:vit_base_patch16_clip_224", vit, (32, 32), "open_clip:tiny-clip/best")  # as timm converts them
    assert torch.equal(other.state_dict()["patch_embed.proj.weight"], theirs["conv1.weight"])


def test_one_of_our_own_models_on_a_hub(hub: Hub, tmp_path: Path) -> None:
    settings = schema.Model(schema.Backbone("timm:test_vit"), input=schema.Input(frames=4, size=[64, 64]))
    fresh(settings, {}, 3).save_pretrained(tmp_path / "own")
    hub.holds("me/own", tmp_path / "own")
    backbone = build("hf-hub:me/own", {}, None, "pretrained")
    assert backbone.size == (64, 64) and backbone.weights == "hf-hub:me/own"


def test_a_directory_says_what_its_positions_were_made_for(tmp_path: Path) -> None:
    save_for_hf(trained("test_vit", num_classes=3, img_size=(64, 96)), tmp_path / "vit", safe_serialization=True)
    backbone = build(str(tmp_path / "vit"), {}, (96, 96), "pretrained")
    library = timm.create_model(f"local-dir:{tmp_path / 'vit'}", pretrained=True, num_classes=0, img_size=(96, 96))
    assert_same(backbone.name, backbone.kwargs, (96, 96), str(backbone.weights), library)
    json.dumps(backbone.kwargs)


@pytest.mark.parametrize("place", ["{}", "local-dir:{}", "{}/model.safetensors"])
def test_weights_may_be_a_directory(place: str, tmp_path: Path) -> None:
    vit = trained("test_vit", num_classes=3)
    save_for_hf(vit, tmp_path / "vit", safe_serialization=True)
    backbone = build("timm:test_vit", {}, None, place.format(tmp_path / "vit"))
    assert backbone.weights == str(tmp_path / "vit" / "model.safetensors")
    assert torch.equal(backbone.state_dict()["norm.bias"], vit.norm.bias)


def test_the_origin_of_each_tensor_is_known(tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in trained("test_vit", num_classes=3).state_dict().items()}
    state["model.norm.bias"] = state["model.norm.bias"].half()
    path = tmp_path / "vit.safetensors"
    save_file(state, path)
    backbone = build("timm:test_vit", {}, (64, 96), str(path))
    own, held = backbone.state_dict(), load_file(path)
    assert backbone.file == path and own.keys() - backbone.origin.keys() == {"pos_embed"}  # resampled
    assert all(torch.equal(own[name], held[there].float()) for name, there in backbone.origin.items())
    assert own["norm.bias"].dtype == torch.float32
    torch.save(state, tmp_path / "vit.bin")
    unknown = build("timm:test_vit", {}, (64, 96), str(tmp_path / "vit.bin"))
    assert unknown.origin == {} and unknown.file is None


def peak(reset: bool = False) -> int:
    """Bytes of memory, at most since the last reset, mapped pages of files included."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not say")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_weights_are_never_in_memory_twice(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaleup.common.tensors.STRETCH", 2**24)
    kwargs, path = {"embed_dim": 768, "depth": 6, "num_heads": 2}, tmp_path / f"vit{suffix}"
    state = timm.create_model("test_vit", **kwargs).state_dict() | {"text": torch.zeros(2**25)}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    size = sum(tensor.nbytes for name, tensor in state.items() if name != "text")
    assert size > 1.4e8
    del state
    before = peak(reset=True)
    monkeypatch.setattr(
        "scaleup.backbones.timm.arrange", lambda vit, found: ({k: found[k] for k in vit.state_dict()}, {})
    )
    backbone = build("timm:test_vit", kwargs, None, str(path))
    assert peak() - before < 1.3 * size
    assert backbone.state_dict()["blocks.5.mlp.fc1.weight"].data_ptr() % 64 == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "timm:vit_small_patch16_224.augreg_in21k",
            r"hf-hub:timm/vit_small_patch16_224.augreg_in21k \(model.safetensors\)",
        ),
        ("timm:vit_huge_patch14_gap_224.in1k_ijepa", "https://.*IN1K-vit.h.14-300e.pth.tar"),
        ("open_clip:ViT-H-14/laion2b_s32b_b79k", "hf-hub:laion/CLIP-ViT-H-14-laion2B-s32B-b79K .open_clip_model.safet"),
        ("hf-hub:me/nothing", r"hf-hub:me/nothing \(config.json\)"),
        ("timm:hf-hub:me/nothing@v1", r"hf-hub:me/nothing \(config.json\)"),
    ],
)
def test_offline_one_sentence_says_what_was_tried_and_nothing_is(
    name: str, words: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: tried.append(address) or [])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=f"the file {words}.*not in the cache.*could not be fetched.*--weights"
    ) as error:
        build(name, {}, None, "pretrained")
    assert "\n" not in str(error.value) and "HF_HUB_OFFLINE" in str(error.value)
    assert tried == []


def test_a_hub_that_does_not_answer_is_asked_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    server = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            calls.append(connection)  # before the client hears of its end
            connection.close()

    threading.Thread(target=refuse, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weight_files, "hf_hub_url", lambda *_, **__: f"http://127.0.0.1:{server.getsockname()[1]}/file")
    with pytest.raises(UserError, match=r"hf-hub:timm/test_vit.r160_in1k \(model.safetensors\) is not in the cache"):
        build("timm:test_vit", {}, None, "pretrained")
    server.close()
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("vit_huge_patch14_224", None, "unknown backbone .*nearest: .*'timm:vit_huge_patch14_224'"),
        ("ViT-H-14", None, "unknown backbone .*nearest: .*'open_clip:ViT-H-14'"),
        ("dinov4_l", None, "unknown backbone 'dinov4_l'.*nearest: 'dinov[23]_l', 'dinov[23]_l', '"),
        ("timm:eva02_larg_patch14_224", None, "unknown timm model .*nearest: 'eva02_large_patch14_224', '.*', '"),
        ("timm:vit_base_patch16_224.may", None, "unknown weights 'may' .*allowed are .*mae.*nearest: .*'mae'"),
        ("timm:vit_giant_patch14_224", "pretrained", "no public weights of 'vit_giant_patch14_224'; nearest: "),
        ("timm:test_vit", "nowhere.bin", "there is no file nowhere.bin"),
        ("local-dir:nowhere", "pretrained", "there is no file nowhere"),
        ("hf-hub:a/b/c", "pretrained", "'a/b/c' is not a hub id; allowed is owner/name"),
        (
            "timm:vit_base_patch16_224",
            {"size": (224, 230)},
            "patches of 16x16.*224x230; nearest are 224 high and 224 or 240 wide",
        ),
        (
            "timm:vit_base_patch14_dinov2",
            {"size": (8, 28)},
            "patches of 14x14.*8x28; nearest are 14 or 28 high and 28 wide",
        ),
        ("timm:resnet18", {"size": (64, 64)}, "is a ResNet, not a plain ViT: its blocks work on a grid"),
    ],
)
def test_what_is_not_there_is_refused(name: str, place: Any, words: str, hub: Hub) -> None:
    given = place if isinstance(place, dict) else {"size": None, "weights": place}
    with pytest.raises(UserError, match=words) as error:
        build(name, {}, **({"weights": "meta"} | given))
    assert "\n" not in str(error.value)


def test_a_size_that_is_the_models_own_is_taken_whatever_its_patches() -> None:
    assert build("timm:vit_so400m_patch14_siglip_384", {"depth": 1}, (384, 384), "meta").size == (384, 384)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    save_for_hf(trained("test_vit"), tmp_path / "vit", safe_serialization=True)
    (tmp_path / "vit" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has none of model.safetensors, pytorch_model.bin"):
        build(str(tmp_path / "vit"), {}, None, "pretrained")


def test_a_directory_of_another_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"]}')
    with pytest.raises(UserError, match="describes an unknown model"):
        build(str(tmp_path), {}, None, "pretrained")


def test_a_file_of_another_model_is_refused_with_both_sides(tmp_path: Path) -> None:
    save_file(trained("vit_small_patch16_dinov3", **SMALL).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="it lacks pos_embed, .*qkv.bias; it has besides .*gamma_.* and 2 more$"):
        build("timm:vit_small_patch16_224", SMALL, None, str(tmp_path / "vit.safetensors"))
