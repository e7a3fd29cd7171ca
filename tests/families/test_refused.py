"""What is no plain ViT is refused by its registered name, in a sentence that says why."""

import pytest
import timm
from support.marks import at_length

from scaleup.backbones.build import build
from scaleup.common.errors import UserError
from scaleup.outputs.backbone_table import table

REASONS = {
    "its windows are cut from a grid": ["swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr"],
    "a grid that shrinks from stage to stage": [
        *("hiera", "hieradet_sam2", "mvitv2", "coat", "davit", "pvt_v2", "pit", "twins", "nest"),
        *("levit", "tiny_vit", "visformer", "gcvit", "nextvit", "resnet", "convnext"),
    ],
    "a table with an entry for each pair of patches": ["beit", "vision_transformer_relpos"],
    "its attention works on windows of a grid, with a table": ["vision_transformer_sam"],
    "not images": ["naflexvit"],
    "its patches come from a convolutional network": ["vision_transformer_hybrid", "vitamin"],
    "its class token only joins in the last blocks": ["cait"],
    "distances in a grid of patches": ["convit"],
    "patches of two sizes": ["crossvit"],
    "the pixels inside each patch": ["tnt"],
    "its first blocks attend within windows": ["volo"],
    "its blocks convolve a grid": ["xcit"],
    "allowed are timm's VisionTransformer and Eva": ["deepseek_vit", "gemma4_vit", "qwen3_vit", "mlp_mixer"],
}
POST_NORM = ["timm:vit_base_patch16_rpn_224", "timm:eva02_enormous_patch14_clip_224", "open_clip:EVA02-E-14-plus"]


FIRST = [(modules[0], reason) for reason, modules in REASONS.items()]
OTHERS = [(module, reason) for reason, modules in REASONS.items() for module in modules[1:]]


@pytest.mark.parametrize(("module", "reason"), [*FIRST, *at_length(*OTHERS)])
def test_every_model_of_a_family_is_refused_with_the_reason(module: str, reason: str) -> None:
    names = [f"timm:{name}" for name in timm.list_models(module=module)]
    found = table([names[0], names[-1]], lambda note: None)
    assert not found.rows and len(found.refused) >= 2
    for name, sentence in found.refused.items():
        assert name in sentence and "not a plain ViT" in sentence and reason in sentence
        assert "\n" not in sentence


@pytest.mark.parametrize("name", POST_NORM)
def test_blocks_that_normalise_what_they_add_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}' .* \(post-norm\), so tubes and gate would get tokens of another"):
        build(name, {}, None, "meta")


@pytest.mark.parametrize("name", ["RN50", "convnext_base", "swin_base_patch4_window7_224", "ViTamin-S", "MobileCLIP-B"])
def test_towers_that_are_not_plain_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"'open_clip:{name}' is a .*, not a plain ViT: "):
        build(f"open_clip:{name}", {}, None, "meta")
