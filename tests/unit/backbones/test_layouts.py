"""Models of transformers, made small and at random: timm's model with their weights gives what they give."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clips
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scaleup.backbones.backbone import Backbone
from scaleup.backbones.build import build
from scaleup.common.errors import UserError

COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
THEIRS = COMMON | {"intermediate_size": 64}
OURS = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
DINO = COMMON | {"mlp_ratio": 2}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
DECODER = {f"decoder_{word}": value for word, value in TEXT.items() if word != "vocab_size"}
TANH = {"hidden_act": "gelu_pytorch_tanh"}
NO_BIAS = {"num_register_tokens": 4, "query_bias": False, "value_bias": False}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}


def clip() -> Any:
    text = TEXT | {"bos_token_id": 0, "eos_token_id": 1}
    return transformers.CLIPConfig(vision_config=THEIRS, text_config=text, projection_dim=8)


MODELS = {  # class, its configuration, the model of timm, changes to that
    "ViT": ("ViTModel", lambda: transformers.ViTConfig(**THEIRS), "vit_base_patch16_224", {}),
    "ViT, classifier": (
        "ViTForImageClassification",
        lambda: transformers.ViTConfig(**THEIRS),
        "vit_base_patch16_224",
        {},
    ),
    "DeiT": (
        "DeiTForImageClassificationWithTeacher",
        lambda: transformers.DeiTConfig(**THEIRS),
        "deit_base_distilled_patch16_224",
        {},
    ),
    "MAE": (
        "ViTMAEForPreTraining",
        lambda: transformers.ViTMAEConfig(**THEIRS, **DECODER, mask_ratio=0.0),
        "vit_base_patch16_224.mae",
        {},
    ),
    "DINOv2": ("Dinov2Model", lambda: transformers.Dinov2Config(**DINO), "vit_base_patch14_dinov2", {}),
    "DINOv2, classifier": (
        "Dinov2ForImageClassification",
        lambda: transformers.Dinov2Config(**DINO),
        "vit_base_patch14_dinov2",
        {},
    ),
    "DINOv2-g": (
        "Dinov2Model",
        lambda: transformers.Dinov2Config(**DINO, use_swiglu_ffn=True),
        "vit_giant_patch14_dinov2",
        {"mlp_ratio": 3},
    ),
    "DINOv2, registers": (
        "Dinov2WithRegistersModel",
        lambda: transformers.Dinov2WithRegistersConfig(**DINO),
        "vit_base_patch14_reg4_dinov2",
        {},
    ),
    "CLIP, vision": (
        "CLIPVisionModelWithProjection",
        lambda: transformers.CLIPVisionConfig(**THEIRS),
        "vit_base_patch16_clip_quickgelu_224",
        {},
    ),
    "CLIP": ("CLIPModel", clip, "vit_base_patch16_clip_quickgelu_224", {}),
    "SigLIP": (
        "SiglipVisionModel",
        lambda: transformers.SiglipVisionConfig(**THEIRS, **TANH),
        "vit_base_patch16_siglip_224.v2_webli",
        {"act_layer": "gelu_tanh"},
    ),
    "DINOv3": (
        "DINOv3ViTModel",
        lambda: transformers.DINOv3ViTConfig(**THEIRS, **NO_BIAS),
        "vit_base_patch16_dinov3",
        {},
    ),
    "DINOv3, biases": (
        "DINOv3ViTModel",
        lambda: transformers.DINOv3ViTConfig(**THEIRS, num_register_tokens=4),
        "vit_base_patch16_dinov3_qkvb",
        {},
    ),
    "DINOv3, gated": (
        "DINOv3ViTModel",
        lambda: transformers.DINOv3ViTConfig(**THEIRS, **NO_BIAS, **GATED),
        "vit_huge_plus_patch16_dinov3",
        {},
    ),
}


def made(kind: str) -> Any:
    name, config, _, _ = MODELS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name)(config())
    for tensor in model.parameters():
        nn.init.normal_(tensor, 0.02, 0.2)
    return model.eval()


def weights(model: Any, way: str, directory: Path) -> Path:
    """As transformers saves them (the names that are on hubs), and as the tensors are named in memory."""
    if way == "saved":
        model.save_pretrained(directory)
        return directory / "model.safetensors"
    torch.save({"model": {f"module.{name}": t for name, t in model.state_dict().items()}}, directory / "m.pt")
    return directory / "m.pt"


def built(kind: str, path: Path) -> Backbone:
    _, _, name, changes = MODELS[kind]
    return build(f"timm:{name}", OURS | changes, (32, 32), str(path))


@torch.no_grad()
def tokens(model: Any, images: Tensor) -> Tensor:
    """All tokens after the final norm."""
    inner = next(
        (getattr(model, part) for part in ("vision_model", "vit", "deit", "dinov2") if hasattr(model, part)), model
    )
    unshuffled = {"noise": torch.arange(16.0).expand(len(images), -1)} if "MAE" in type(model).__name__ else {}
    found = inner(images, **unshuffled).last_hidden_state
    return inner.post_layernorm(found) if "CLIP" in type(model).__name__ else found


@pytest.mark.parametrize("way", ["saved", "in memory"])
@pytest.mark.parametrize("kind", MODELS)
def test_features_are_those_of_transformers(kind: str, way: str, tmp_path: Path) -> None:
    model, images = made(kind), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    path = weights(model, way, tmp_path)
    backbone = built(kind, path)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.source.eval().forward_features(images), tokens(model, images), rtol=1e-5, atol=1e-5
        )
    given = load_file(path).values() if way == "saved" else model.state_dict().values()
    held = sum(tensor.numel() for tensor in [*backbone.state_dict().values(), *backbone.left.values()])
    kept = sum(tensor.numel() for tensor in given)
    assert held == kept - (32 if "registers" in kind else 0)  # the class token has its position in it


@pytest.mark.parametrize("kind", MODELS)
def test_a_tensor_that_is_not_known_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    path = weights(made(kind), "saved", tmp_path)
    state = load_file(path)
    block = next(name for name in state if ".1." in name and "text" not in name and "decoder" not in name)
    before = block.split(".1.")[0]
    save_file(state | {f"{before}.1.unheard_of.weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match="it has besides .*unheard_of.weight"):
        built(kind, path)
    save_file({name: tensor for name, tensor in state.items() if name != block}, path)
    with pytest.raises(UserError, match="does not have the weights of this model: it lacks blocks.1"):
        built(kind, path)


def test_biases_of_a_model_without_are_left_out_where_they_are_zero(tmp_path: Path) -> None:
    model = made("DINOv3, biases")
    for layer in model.state_dict():
        if layer.endswith(("q_proj.bias", "v_proj.bias")):
            model.get_parameter(layer).data.zero_()
    path = weights(model, "saved", tmp_path)
    assert sum("bias" in name for name in built("DINOv3", path).left) == 4
    state = load_file(path)
    next(tensor for name, tensor in state.items() if name.endswith("q_proj.bias"))[3] = 1
    save_file(state, path)
    with pytest.raises(UserError, match="it has besides blocks.0.attn.q_bias"):
        built("DINOv3", path)


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[None]:
    with clips.registered(tmp_path):
        yield


@pytest.mark.parametrize("kind", ["CLIP", "CLIP, vision"])
def test_open_clips_towers_read_them_too(kind: str, registered: None, tmp_path: Path) -> None:
    path = weights(made(kind), "saved", tmp_path)
    words = {
        "width": 32,
        "layers": 2,
        "head_width": 16,
        "mlp_ratio": 2.0,
        "patch_size": 8,
        "embed_dim": 8,
        "quick_gelu": True,
    }
    backbone = build("open_clip:tiny-clip", words, (32, 32), str(path))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.features(images), built(kind, path).features(images), rtol=1e-5, atol=1e-5)
    assert "visual_projection.weight" in backbone.left


def test_a_directory_of_transformers_needs_the_architectures_name(tmp_path: Path) -> None:
    made("ViT").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="describes an unknown model.*; give timm:NAME, and .* as its weights"):
        build(str(tmp_path), {}, None, "pretrained")
    assert build("timm:vit_base_patch16_224", OURS, (32, 32), str(tmp_path)).file == tmp_path / "model.safetensors"


def test_a_file_tells_which_alias_it_is_of(tmp_path: Path) -> None:
    config = transformers.ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    assert build(str(tmp_path / "model.safetensors"), {}, None, "pretrained").name == "timm:vit_tiny_patch16_224"
