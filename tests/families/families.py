"""The families of plain ViTs that are proven, each by a real registered class that has been made small.

Depth, width and heads are changed, everything else stays: what makes a family are its own switches.
"""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from scaleup.backbones.backbone import Backbone
from scaleup.backbones.build import build
from scaleup.common import tensors
from scaleup.config import schema
from scaleup.model.build import describe
from scaleup.model.tubevit import TubeViT

SMALL: dict[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 4}
TUBES = {
    "long": schema.Tube([4, 4, 4], [4, 16, 16]),
    "folded": schema.Tube([2, 6, 4], [4, 16, 24], [0, 3, 1], fold=[2, 1, 1]),
}
FRAMES, FRAME_STRIDE = 8, 4
AMPLITUDE = 0.5
HEADS = {"motion": ["left", "right", "up"]}


class Family(NamedTuple):
    """Its title in docs/families.md, the library's name of one of its models, and what is made smaller beyond SMALL."""

    title: str
    name: str
    changes: dict[str, Any] = {}  # noqa: RUF012 - never written to

    @property
    def id(self) -> str:
        return self.name.split(":")[1]

    @property
    def rotary(self) -> bool:
        return any(word in self.name.lower() for word in TURNED)


TURNED = ("eva02", "dinov3", "lingbot", "_pe_", "pe-core", "_rope_", "sapiens2")
FAMILIES = [
    Family("ViT (augreg, in21k)", "timm:vit_base_patch16_224.augreg_in21k"),
    Family("MAE", "timm:vit_base_patch16_224.mae"),
    Family("DINO", "timm:vit_small_patch8_224.dino"),
    Family("ViT, average pool", "timm:vit_base_patch16_gap_224"),
    Family("ViT with registers", "timm:vit_medium_patch16_reg4_gap_256"),
    Family("ViT-SO150M, attention pool", "timm:vit_so150m_patch16_reg4_map_256"),
    Family("FlexiViT", "timm:flexivit_small"),
    Family("DeiT", "timm:deit_small_patch16_224"),
    Family("DeiT, distilled", "timm:deit_small_distilled_patch16_224"),
    Family("DeiT-III (layer scale)", "timm:deit3_small_patch16_224"),
    Family("CLIP (pre-norm, bias-free patches)", "timm:vit_base_patch16_clip_224.laion2b"),
    Family("CLIP, quickgelu", "timm:vit_base_patch16_clip_quickgelu_224.openai"),
    Family("DINOv2", "timm:vit_small_patch14_dinov2"),
    Family("DINOv2-g (SwiGLU)", "timm:vit_giant_patch14_dinov2", {"embed_dim": 96}),
    Family("DINOv2 with registers", "timm:vit_small_patch14_reg4_dinov2"),
    Family("SigLIP (attention pool)", "timm:vit_base_patch16_siglip_224.webli"),
    Family("SigLIP, average pool", "timm:vit_base_patch16_siglip_gap_224"),
    Family("SigLIP 2", "timm:vit_so400m_patch16_siglip_256.v2_webli"),
    Family("TIPSv2", "timm:vit_base_patch14_reg1_tipsv2"),
    Family("AIMv2 (RMSNorm)", "timm:aimv2_large_patch14_224"),
    Family("I-JEPA", "timm:vit_huge_patch14_gap_224.in22k_ijepa"),
    Family("RADIO v3", "timm:vit_base_patch16_radio_v3"),
    Family("InternViT", "timm:vit_intern300m_patch14_448"),
    Family("BEiT-3", "timm:beit3_base_patch16_224"),
    Family("Parallel, 18x2", "timm:vit_small_patch16_18x2_224"),
    Family("Parallel, xp", "timm:vit_base_patch16_xp_224"),
    Family("Parallel, pwee", "timm:vit_pwee_patch16_reg1_gap_256"),
    Family("Parallel, differential, dpwee", "timm:vit_dpwee_patch16_reg1_gap_256"),
    Family("EVA-01", "timm:eva_giant_patch14_224"),
    Family("EVA-01 CLIP", "timm:eva_giant_patch14_clip_224"),
    Family("EVA-02", "timm:eva02_small_patch14_224"),
    Family("EVA-02 CLIP", "timm:eva02_base_patch16_clip_224"),
    Family("DINOv3", "timm:vit_small_patch16_dinov3"),
    Family("DINOv3 plus (SwiGLU)", "timm:vit_small_plus_patch16_dinov3"),
    Family("DINOv3, qkv bias", "timm:vit_small_patch16_dinov3_qkvb"),
    Family("LingBot", "timm:vit_small_patch16_lingbot"),
    Family("PE core", "timm:vit_pe_core_base_patch16_224"),
    Family("PE spatial", "timm:vit_pe_spatial_base_patch16_512"),
    Family("PE lang", "timm:vit_pe_lang_large_patch14_448"),
    Family("PE lang, no class token", "timm:vit_pe_lang_gigantic_patch14_448"),
    Family("RoPE-ViT, axial", "timm:vit_small_patch16_rope_224"),
    Family("RoPE-ViT, axial and learned", "timm:vit_small_patch16_rope_ape_224"),
    Family("RoPE-ViT, mixed", "timm:vit_small_patch16_rope_mixed_224"),
    Family("RoPE-ViT, mixed and learned", "timm:vit_small_patch16_rope_mixed_ape_224"),
    Family("ViT with rotary positions and registers", "timm:vit_medium_patch16_rope_reg1_gap_256"),
    Family("Sapiens2 (grouped queries)", "timm:vit_base_patch16_sapiens2", {"num_kv_heads": [4, 2]}),
    Family("CLIP ViT-H", "open_clip:ViT-H-14"),
    Family("CLIP ViT-bigG", "open_clip:ViT-bigG-14"),
    Family("CLIP, quickgelu", "open_clip:ViT-B-32-quickgelu"),
    Family("CLIP, layer scale", "open_clip:ViT-M-16-alt"),
    Family("CLIPA (average pool)", "open_clip:ViT-H-14-CLIPA"),
    Family("CoCa (attention pool)", "open_clip:coca_ViT-L-14"),
    Family("SigLIP", "open_clip:ViT-B-16-SigLIP"),
    Family("SigLIP 2", "open_clip:ViT-B-16-SigLIP2-256"),
    Family("EVA-01 CLIP", "open_clip:EVA01-g-14"),
    Family("EVA-02 CLIP", "open_clip:EVA02-L-14"),
    Family("PE core", "open_clip:PE-Core-B-16"),
]
ROTARY = [family for family in FAMILIES if family.rotary]


class Stored:
    """A family's model in the library's own files, with weights of which no two tensors are alike."""

    kwargs: dict[str, Any] = {}  # noqa: RUF012 - what the files do not say of the architecture

    def __init__(self, family: Family, directory: Path) -> None:
        self.family, self.directory = family, directory
        self.patch = self._patch()
        self.size, self.oblong = (4 * self.patch, 4 * self.patch), (3 * self.patch, 5 * self.patch)
        self._write()

    def _patch(self) -> int:
        return patch_in(self.family.name)

    def _write(self) -> None:
        vit = timm.create_model(self.family.id, img_size=self.size, num_classes=5, **SMALL | self.family.changes)
        save_for_hf(scattered(vit), self.directory, safe_serialization=True)

    @lru_cache(maxsize=4)  # noqa: B019 - of the family at hand
    def library(self, size: tuple[int, int]) -> Any:
        """The library's own model, built and loaded by the library alone; called, it gives pooled features."""
        return timm.create_model(f"local-dir:{self.directory}", pretrained=True, img_size=size, num_classes=0).eval()

    def positions(self, size: tuple[int, int]) -> Tensor | None:
        """What the library adds to the patches, which come last: (P+N, D)."""
        table = self.library(size).pos_embed
        return None if table is None else table[0]

    def backbone(self, size: tuple[int, int] | None = None) -> Backbone:
        backbone = build(str(self.directory), self.kwargs, size, "pretrained")
        backbone.source.eval()
        return backbone

    def model(self, size: tuple[int, int] | None = None, frozen_depth: int = 1) -> TubeViT:
        """An adapted model as a transplant makes one, without a gate."""
        return copy.deepcopy(self._model(size or self.size, frozen_depth))

    @lru_cache(maxsize=4)  # noqa: B019
    def _model(self, size: tuple[int, int], frozen_depth: int) -> TubeViT:
        backbone = self.backbone(size)
        config = describe(
            backbone,
            0,
            input=schema.Input(frames=FRAMES, size=list(backbone.size)),
            frames=schema.Frames(FRAME_STRIDE),
            tubes=TUBES,
            positions=schema.Positions("backbone", AMPLITUDE),
            frozen_depth=frozen_depth,
            heads=HEADS,
        )
        torch.manual_seed(3)
        model = TubeViT.assemble(config, backbone).eval()
        model.base = tensors.hashes(backbone.state_dict())
        config.backbone.sha256 = tensors.fingerprint(model.base)
        return model


def patch_in(name: str) -> int:
    """The patch in the name of a timm model; 16 where it is not said."""
    return int(re.search(r"patch(\d+)", name + "patch16").group(1))  # type: ignore[union-attr]


def scattered(vit: nn.Module) -> nn.Module:
    """The model with every parameter drawn, layer scales and biases among them."""
    torch.manual_seed(7)
    with torch.no_grad():
        for tensor in vit.parameters():
            nn.init.normal_(tensor, 0.03, 0.2)
    return vit.eval()


def images(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def videos(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, FRAMES, *size, generator=torch.Generator().manual_seed(1))
