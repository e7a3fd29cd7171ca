"""Families whose code differs most, as programs for any number of samples and of frames."""

from pathlib import Path

import pytest
import torch
from clip import StoredClip
from families import FAMILIES, Family, Stored

from scaleup.outputs.programs import Whole, traced

NAMES = [  # the first two in make test: attention that pools, and tokens that are turned
    "open_clip:coca_ViT-L-14",
    "timm:vit_small_patch16_dinov3",
    "open_clip:ViT-H-14",
    "timm:vit_base_patch16_siglip_224.webli",
    "timm:vit_small_patch16_rope_mixed_224",
]


@pytest.mark.parametrize(
    "family",
    [
        each if each.name in NAMES[:2] else pytest.param(each, marks=pytest.mark.all)
        for each in FAMILIES
        if each.name in NAMES
    ],
    ids=lambda each: each.id,
)
def test_a_program_reads_any_number_of_samples_and_frames(family: Family, tmp_path: Path) -> None:
    kind = StoredClip if family.name.startswith("open_clip:") else Stored
    whole = Whole(kind(family, tmp_path / "vit").model().eval())
    shape = whole.model.preprocess.size
    drawn = torch.Generator().manual_seed(0)
    clips = [torch.randint(0, 256, (3, 3, length, *shape), generator=drawn).byte() for length in (8, 11, 12)]
    with torch.no_grad():
        whole(clips[-1])
        run = traced(whole, clips[-1], (8, 12)).module()
        for pixels in (*clips, clips[0][:1]):
            for found, expected in zip(run(pixels).values(), whole(pixels).values(), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
