"""Write a model in another format (own, peft, timm, transformers, torch.export, ONNX, AOTInductor) and compare both."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleup.cli import tool

if TYPE_CHECKING:
    from scaleup.outputs.conversion import Export

EXAMPLE = """tools/export.py runs/vit_h/model --to full --out exported/vit_h
  tools/export.py runs/vit_h/model --to onnx --out exported/vit_h_onnx"""


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("model", help="model directory or hub id")
    add("--to", required=True, help="delta, full, tubes, peft, timm, transformers, torch, onnx or aoti")
    add("--out", type=Path, required=True, help="output directory")
    lengths = "other clip lengths (64) and ranges of lengths (32-128); each gets its own program (torch, onnx, aoti)"
    add("--frames", nargs="+", default=[], metavar="N", help=lengths)
    add("--device", default="cpu", help="cpu or cuda, on which a program of torch or aoti runs (default cpu)")
    add("--half", action="store_true", help="weights and products of an ONNX program in float16")
    add("--head", help="for transformers: the head that its pipeline reads (default: the only one)")
    add("--merge", action="store_true", help="merge the model's adapter into the weights of its blocks")
    add("--base", help="the backbone's weights, if they have moved")
    add("--overwrite", action="store_true", help="replace an existing output")
    return parser


def run(args: argparse.Namespace) -> Export | dict[str, Any]:
    from scaleup.outputs.conversion import export

    how = args.base, args.overwrite, args.merge, args.frames, args.head, args.half, args.device
    result = export(args.model, args.to, args.out, *how)
    return {"to": result.to, "out": result.out, "bytes": result.bytes} | result.figures() if args.json else result


def show(result: Export) -> None:
    print(f"{result.to} -> {result.out}, {result.bytes:,} bytes")
    for name, difference in result.differences.items():
        print(f"read back: {name.replace('_', ' ')} max {'rel' if result.relative else 'abs'} diff {difference:.2g}")
    if result.costs is not None:
        for name, size in (result.costs.program_bytes or {}).items():
            print(f"{name}: {size:,} bytes; the model's tensors have {result.costs.model_bytes:,}")
        for name, seconds in result.costs.seconds.items():
            print(f"one {name}: {seconds:.4f} s, {result.costs.eager_seconds[name]:.4f} s in eager PyTorch")
