"""Move the tubes of a small joint model into a large image ViT, check the result, and write its new weights (delta)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scaleup.cli import tool
from scaleup.common.errors import UserError

if TYPE_CHECKING:
    from scaleup.transplants.transplant_report import TransplantPlan


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, "tools/transplant.py runs/small/model vit_h --out runs/vit_h --gate-at 26")
    add = parser.add_argument
    add("small", help="a directory, its .safetensors, a .ckpt or .pt (or FILE:MODEL), donors/ti192 or donors/ti320")
    names = "vit_h, clip_h, dinov3_l, ..., timm:NAME, open_clip:NAME/TAG, hf-hub:owner/name, a directory or a file"
    add("backbone", help=names)
    add("--out", type=Path, help="output directory")
    places = "the backbone's weights: a file, a directory, hf-hub:owner/name, or FILE:teacher for one model of a file"
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--weights", default="pretrained", help=places)
    random = "use random weights for the backbone, to try things out"
    weights.add_argument("--random-init", action="store_true", help=random)
    add("--gate-at", type=tool.at_least(0), help="frozen blocks below the gate (default: three quarters)")
    widths = """how the small width becomes the large one: fold puts several places side by side (as the paper does);
        align fits a linear map from the small model's image tokens to the backbone's, for any two widths"""
    add("--match", choices=("fold", "align"), default="fold", help=widths)
    add("--images", type=Path, help="for align: image shards to fit the map on (default: frames of --clips)")
    add(
        "--fold",
        type=tool.at_least(1),
        nargs=2,
        metavar=("H", "W"),
        default=(1, 1),
        help="for align: number of places that become one token",
    )
    add("--channels", choices=("auto", "exact"), default="auto", help="exact: refuse widths that do not fit exactly")
    add("--positions", help="backbone (default, if the backbone has positions), cosine, none, ...")
    add("--amplitude", type=float, help="amplitude of the sines (default: as strong as the backbone's positions)")
    add("--match-scale", action="store_true", help="scale tube tokens to the RMS of the backbone's own tokens")
    add(
        "--tubes",
        choices=("transplanted", "random"),
        default="transplanted",
        help="random: a control with random kernels",
    )
    add("--clips", type=Path, help="video shards to measure scales on (default: an artificial clip)")
    add("--size", type=tool.at_least(1), nargs=2, metavar=("H", "W"), help="input size in pixels")
    add("--placement", choices=("device", "disk"), default="device", help="disk: the frozen blocks stay in their file")
    add("--seed", type=tool.at_least(0), default=0, help="seed of everything random (default 0)")
    add("--dry-run", action="store_true", help="only print the plan; no weights are read")
    add("--overwrite", action="store_true", help="replace an existing output")
    return parser


def run(args: argparse.Namespace) -> TransplantPlan:
    if args.out is None and not args.dry_run:
        raise UserError("no --out was given; name the output directory, or use --dry-run to print only the plan")
    from scaleup.transplants import adapted_model  # takes seconds
    from scaleup.transplants.transplant_plan import Options

    options = Options(
        weights=None if args.random_init else args.weights,
        gate_at=args.gate_at,
        match=args.match,
        fold=tuple(args.fold),
        exact=args.channels == "exact",
        positions=args.positions,
        amplitude=args.amplitude,
        match_scale=args.match_scale,
        random_tubes=args.tubes == "random",
        size=tuple(args.size) if args.size else None,
        seed=args.seed,
        overwrite=args.overwrite,
        placement=args.placement,
    )
    if args.dry_run:
        return adapted_model.plan(args.small, args.backbone, options, args.images)
    return adapted_model.transplant(args.small, args.backbone, args.out, options, args.clips, args.images)


def show(report: TransplantPlan) -> None:
    from scaleup.transplants.transplant_report import lines

    print("\n".join(lines(report)))
