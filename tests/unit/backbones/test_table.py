import importlib.metadata
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from support.tools import tool

from scaleup.backbones.weights import SkipInit
from scaleup.common.errors import UserError
from scaleup.model.tubes import folds_to
from scaleup.outputs import backbone_table
from scaleup.outputs.backbone_table import CHANNELS, FAMILIES, as_json, names, table

ROOT = Path(__file__).parents[3]
SAMPLE = [
    "timm:vit_huge_patch14_224",
    "timm:vit_small_patch16_dinov3",
    "timm:vit_pe_core_tiny_patch16_384",
    "timm:vit_base_patch16_sapiens2",
    "timm:vit_base_patch16_rpn_224",
    "open_clip:ViT-H-14",
    "open_clip:ViT-B-16-SigLIP",
]


def quiet(note: str) -> None:
    pass


def test_a_row_says_what_a_backbone_is() -> None:
    huge, rotary, both, oblong, clip, siglip = table(SAMPLE, quiet).rows
    assert (huge.library, huge.embed_dim, huge.depth, huge.num_heads) == ("timm", 1280, 32, 16)
    assert (huge.patch, huge.size, huge.tokens, huge.prefix) == ([14, 14], [224, 224], 256, 1)
    assert (rotary.positions, rotary.prefix) == ("rotary", 5)  # a class token and four registers
    assert (huge.positions, both.positions) == ("learned", "learned + rotary")
    assert (oblong.size, oblong.tokens) == ([1024, 768], 64 * 48)
    assert (clip.library, clip.embed_dim, clip.depth, clip.num_heads, clip.prefix) == ("open_clip", 1280, 32, 16, 1)
    assert (siglip.prefix, siglip.tokens) == (0, 196)
    assert "dinov3" in rotary.license and clip.license == "not stated"


def test_what_is_not_plain_is_no_row_but_a_reason() -> None:
    found = table(SAMPLE, quiet)
    assert [row.name for row in found.rows] == [name for name in SAMPLE if "rpn" not in name]
    assert found.refused.keys() == {"timm:vit_base_patch16_rpn_224"}
    assert "- timm:vit_base_patch16_rpn_224: is a VisionTransformer" in backbone_table.text(found)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_pe_core_tiny_patch16_384", "deit3_small_patch16_224"],
)
def test_parameters_are_those_of_the_library_built_with_memory(name: str) -> None:
    (row,) = table([f"timm:{name}"], quiet).rows
    assert row.parameters == sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters())


def test_parameters_of_a_tower_leave_out_the_projection_and_the_text() -> None:
    import open_clip

    (row,) = table(["open_clip:ViT-S-32"], quiet).rows
    visual = open_clip.create_model("ViT-S-32").visual
    assert row.parameters == sum(p.numel() for n, p in visual.named_parameters() if n != "proj")


def test_names_are_found_by_a_glob_with_or_without_the_library() -> None:
    assert names("timm:vit_huge_patch14_2*") == names("vit_huge_patch14_2*") == ["timm:vit_huge_patch14_224"]
    assert names("ViT-H-14") == names("open_clip:ViT-H-14") == ["open_clip:ViT-H-14"]
    assert {name.split(":")[0] for name in names()} == {"timm", "open_clip"} and len(set(names())) == len(names())
    with pytest.raises(UserError, match="no registered ViT matches 'vit_hugee'; nearest: .*vit_huge"):
        names("vit_hugee")


@pytest.mark.parametrize("width", [192, 384, 1280, 1664])
@pytest.mark.parametrize("channels", CHANNELS)
def test_folds_are_as_few_as_fill_the_width(channels: int, width: int) -> None:
    places, dropped = folds_to(channels, width)
    assert places * channels - dropped == width and (places - 1) * channels < width and dropped >= 0


def test_folds_in_words_and_in_numbers() -> None:
    found = table(SAMPLE[:1], quiet)
    shown = dict(zip(backbone_table.HEADER, backbone_table.cells(found.rows[0]), strict=True))
    assert shown["c256"] == "x5" and shown["c192"] == "x7-64" and shown["parameters"] == "630.8 M"
    (row,) = as_json(found)
    assert row["folds"]["256"] == {"places": 5, "dropped": 0} and row["folds"]["192"] == {"places": 7, "dropped": 64}
    assert json.loads(json.dumps(row)) == row


def test_values_are_left_undrawn_on_the_meta_device_alone() -> None:
    real, absent = torch.full((3,), 7.0), torch.empty(3, device="meta")
    with SkipInit():
        torch.nn.init.normal_(real)
        real.mul_(2).clamp_(-1e6, 1e6)
        assert torch.nn.init.constant_(absent, 3.0) is absent and absent.normal_() is absent
    assert (real != 7).all() and (real != 14).all() and absent.is_meta


def test_the_page_lists_every_registered_name_and_its_rows_are_current() -> None:
    written = (ROOT / "docs" / "backbones.md").read_text()
    for library, package in backbone_table.PACKAGES.items():
        installed = f"{library} {importlib.metadata.version(package)}"
        if installed not in written:
            pytest.skip(f"docs/backbones.md is not of {installed}; make families writes it anew")
    assert set(re.findall(r"(?:timm|open_clip):[\w.-]+", written.split("\n| name")[1])) == set(names())
    lines = [line for line in backbone_table.markdown(table(SAMPLE, quiet)).splitlines() if line.startswith("| ")]
    assert len(lines) == len(SAMPLE) - 1 + 2 and set(lines) <= set(written.splitlines())
    rows = [line for line in written.splitlines() if line.startswith(("| timm:", "| open_clip:"))]
    assert f"The {len(rows)} plain ViTs" in written


def test_families_are_modules_of_timm() -> None:
    assert all(len(timm.list_models(module=family)) > 10 for family in FAMILIES)


def test_the_tool_prints_a_list_of_rows() -> None:
    done = tool("backbones", "*vit_tiny_patch16_224", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == as_json(table(["timm:vit_tiny_patch16_224"], quiet))
    done = tool("backbones", "no such")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "no registered ViT matches" in done.stderr
