"""Small models of open_clip's own classes, registered under names of their own and saved as they are distributed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip import factory
from open_clip.push_to_hf_hub import save_for_hf
from safetensors.torch import save_file
from torch import nn

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 5, "vocab_size": 7, "width": 8, "heads": 2, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {  # name -> what differs from a plain CLIP
    "clip": {},
    "quickgelu": {"quick_gelu": True},
    "clipa": {"vision_cfg": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}},
    "coca": {
        "vision_cfg": {
            "attentional_pool": True,
            "attn_pooler_queries": 4,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        }
    },
    "scaled": {"vision_cfg": {"ls_init_value": 0.1, "patch_dropout": 0.5}},
    "custom": {"vision_cfg": {"qk_norm": True, "scale_heads": True, "scale_attn": True, "scale_fc": True}},
    "sines": {"vision_cfg": {"pos_embed_type": "sin_cos_2d"}},
}
TIMM: dict[str, dict[str, Any]] = {  # the same for towers that are timm models
    "pe": {"timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map", "timm_proj": "none"},
    "token": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None},
    "average": {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": None},
    "reset": {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"},
    "projected": {"timm_model_name": "test_vit2", "timm_pool": "", "timm_proj": "mlp"},
}


def config(name: str) -> dict[str, Any]:
    """A configuration as open_clip's own files hold it."""
    changes = TOWERS.get(name, {})
    vision = {**VISION, **changes.get("vision_cfg", {})} if name in TOWERS else {"image_size": 160, **TIMM[name]}
    made = {
        "embed_dim": 24,
        "vision_cfg": vision,
        "text_cfg": TEXT,
        **({} if name in TOWERS else {"custom_text": True}),
    }
    return made | {key: value for key, value in changes.items() if key != "vision_cfg"}


@contextmanager
def registered(directory: Path) -> Iterator[None]:
    """``open_clip:tiny-NAME`` for all of them, for a while."""
    for name in (*TOWERS, *TIMM):
        (directory / f"tiny-{name}.json").write_text(json.dumps(config(name)))
    open_clip.add_model_config(directory)
    yield
    factory._MODEL_CONFIG_PATHS.remove(directory)
    for name in (*TOWERS, *TIMM):
        factory._MODEL_CONFIGS.pop(f"tiny-{name}")


def trained(name: str) -> Any:
    """A whole model, text tower included, no tensor as it was drawn."""
    torch.manual_seed(3)
    model = open_clip.create_model(f"tiny-{name}")
    for tensor in model.parameters():
        nn.init.normal_(tensor, 0.1, 0.3)
    return model


def saved(name: str, path: Path) -> Path:
    state = trained(name).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}, "epoch": 3}, path)
    return path


def directory(name: str, path: Path, safe: Any = True) -> Path:
    """As open_clip saves for a hub; with a quirk of its own in the configuration."""
    model = trained(name)
    open_clip.model.set_model_preprocess_cfg(model, {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)})
    tokenizer = SimpleNamespace(save_pretrained=lambda _: None)
    save_for_hf(model, tokenizer, config(name), path, safe_serialization=safe)
    return path


def library_tower(model: Any) -> nn.Module:
    """The vision tower of a whole model as the library has it, short of its projection."""
    visual = model.visual.eval()
    if hasattr(visual, "trunk"):
        visual.trunk.reset_classifier(0)
        return visual.trunk
    visual.proj, visual.output_tokens = None, False
    return visual
