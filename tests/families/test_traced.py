"""Families whose code differs most, as programs for any number of samples and of frames."""

from pathlib import Path

import pytest
import torch
from clip import StoredClip
from families import FAMILIES, Stored
from support.marks import at_length

from scaleup.outputs.programs import Whole, traced

BY_NAME = {family.name: family for family in FAMILIES}
LENGTHS = (8, 11, 12)
CASES = [  # a pool that attends, and rotary positions; the layers of open_clip
    ("timm:vit_pe_core_base_patch16_224", LENGTHS[:1]),
    ("open_clip:coca_ViT-L-14", LENGTHS[:1]),
]
OTHERS = [
    "timm:vit_pe_core_base_patch16_224",
    "open_clip:coca_ViT-L-14",
    "timm:vit_small_patch16_dinov3",
    "open_clip:ViT-H-14",
    "timm:vit_base_patch16_siglip_224.webli",
    "timm:vit_small_patch16_rope_mixed_224",
]


@pytest.mark.parametrize(("name", "lengths"), [*CASES, *at_length(*((name, LENGTHS) for name in OTHERS))])
def test_a_program_reads_any_number_of_samples_and_frames(name: str, lengths: tuple[int, ...], tmp_path: Path) -> None:
    kind = StoredClip if name.startswith("open_clip:") else Stored
    whole = Whole(kind(BY_NAME[name], tmp_path / "vit").model().eval())
    shape = whole.model.preprocess.size
    drawn = torch.Generator().manual_seed(0)
    clips = [torch.randint(0, 256, (3, 3, length, *shape), generator=drawn).byte() for length in lengths]
    with torch.no_grad():
        whole(clips[-1])
        run = traced(whole, clips[-1], (lengths[0], lengths[-1])).module()
        for pixels in (*clips, clips[0][:1]):
            for found, expected in zip(run(pixels).values(), whole(pixels).values(), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
