"""What a transplant reports: the fate of every tensor, and the whole report in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaleup.backbones.backbone import Backbone
from scaleup.model.tubevit import TubeViT
from scaleup.transplants.donor import Donor

FAR = 5  # times as strong as the backbone's own patches, or as weak, from which tokens are remarked on


def account(model: TubeViT, donor: Donor, large: Backbone, random_tubes: bool, match: str) -> dict[str, Any]:
    """The fate of every tensor of both parents: moved, folded, aligned, kept, new or left, by numbers and by name."""
    folded = {k.spec.name: model.tokenizer.tubes[k.spec.name].spec.places_per_token > 1 for k in donor.kernels}
    fate = {p: "folded" if folded[k.spec.name] else "moved" for k in donor.kernels for p in k.parents}
    if match == "align":
        fate = dict.fromkeys(fate, "aligned")
    if random_tubes:
        fate = {}
    rows = [("small", name, fate.get(name, "left"), tensor) for name, tensor in donor.tensors.items()]
    rows += [("backbone", name, "kept", tensor) for name, tensor in large.state_dict().items()]
    rows += [("backbone", name, "left", tensor) for name, tensor in large.left.items()]
    assert model.arm.gate is not None
    rows += [("adapted", "gate.alpha", "new", model.arm.gate.alpha)]
    if random_tubes:
        kernels = model.tokenizer.tubes.state_dict()
        rows += [("adapted", f"tubes.{name}", "new", tensor) for name, tensor in kernels.items()]
    summary: dict[str, dict[str, int]] = {}
    for parent, _, what, tensor in rows:
        entry = summary.setdefault(f"{parent}: {what}", {"tensors": 0, "numbers": 0})
        entry["tensors"] += 1
        entry["numbers"] += tensor.numel()
    return {"summary": summary, "tensors": {f"{parent}/{name}": what for parent, name, what, _ in rows}}


def remarks(tubes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What to know of tubes whose tokens are far stronger or far weaker than the backbone's own patches."""
    ratios = {name: tube["rms_adapted"] / tube["rms_backbone"] for name, tube in tubes.items()}
    strong = [f"{name} ({ratio:.0f} times)" for name, ratio in ratios.items() if ratio > FAR]
    weak = [f"{name} (1/{1 / ratio:.0f})" for name, ratio in ratios.items() if ratio < 1 / FAR]
    said = []
    if strong:
        said.append(
            f"tokens are far stronger than the backbone's own patches: {', '.join(strong)}; frozen blocks change such "
            "tokens little, and positions count for little in them. Keep them so at first: on real weights "
            "--match-scale made late blocks learn motion more slowly (docs/figures.md)"
        )
    if weak:
        said.append(
            f"tokens are far weaker than the backbone's own patches: {', '.join(weak)}; positions and what frozen "
            "blocks add outweigh what such tokens saw. Compare with --match-scale, which makes them as strong"
        )
    return said


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    gate, made = report["gate"], "seconds" in report
    text = [
        f"{report['parents']['small']['name']} -> {report['parents']['backbone']['name']}: {report['tokens']} tokens"
    ]
    for name, tube in report["tubes"].items():
        fold = "x".join(map(str, tube["fold"]))
        line = f"  tube {name}: {tube['tokens']} tokens, {tube['channels']} channels "
        if report["match"] == "align":
            line += ("" if fold == "1x1x1" else f"at {fold} places ") + f"aligned to {report['embed_dim']}"
        else:
            line += f"folded {fold}"
        if not tube["exact"]:
            line += f"; NOT EXACT: the last {tube['dropped_channels']} channels of the fold are dropped"
            line += " (--match align fits any width)"
        if made:
            difference = tube["token_max_abs_diff"]
            line += "; drawn at random" if difference is None else f"; max abs diff {difference:.1e}"
            line += f", RMS {tube['rms_source']:.3g} beside the backbone's {tube['rms_backbone']:.3g}"
            if report["match_scale"]:
                line += f", scaled to {tube['rms_adapted']:.3g}"
        text.append(line)
    text += [f"  {remark}" for remark in report.get("remarks", ())]
    if "align" in report:
        found = report["align"]
        line = (
            f"  map of image tokens: R^2 {found['r2']:.3f} on {found['held_out']} of {found['images']} images left out"
        )
        line += f", penalty {found['penalty']:.1e} a row, RMS {found['rms_mapped']:.3g} beside the backbone's"
        text.append(f"{line} {found['rms_backbone']:.3g}")
    counts = report["parameters"]
    text.append(f"  frozen {counts['frozen']:,}, late blocks {counts['late_blocks']:,}, tubes {counts['tubes']:,}")
    text.append(f"  gate at the output of block {gate['frozen_depth']} of {gate['depth']}")
    if made:
        text.append(f"  image output against the source backbone: max abs diff {report['image_max_abs_diff']:.1e}")
        text.append(f"  gate closed against no gate: max abs diff {gate['closed_max_abs_diff']:.1e}")
        text.append(f"  gate ready to open: |d loss / d alpha| = {gate['alpha_grad']:.2e}")
        text += [
            f"  {what}: {entry['tensors']} tensors, {entry['numbers']:,} numbers"
            for what, entry in report["accounting"]["summary"].items()
        ]
        text.append(f"  {report['seconds']:.1f} s, peak memory {report['peak_bytes'] / 2**30:.2f} GiB")
    return text
