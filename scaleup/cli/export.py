"""Write a model in another form (our own, peft, timm, torch.export, ONNX, AOTInductor) and compare the two."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scaleup.cli import tool

EXAMPLE = """tools/export.py runs/vit_h/model --to full --out exported/vit_h
  tools/export.py runs/vit_h/model --to onnx --out exported/vit_h_onnx"""


def arguments() -> argparse.ArgumentParser:
    made = tool.parser(__doc__, EXAMPLE)
    made.add_argument("model", help="model directory or hub id")
    made.add_argument("--to", required=True, help="delta, full, peft, timm, torch, onnx or aoti")
    made.add_argument("--out", type=Path, required=True)
    lengths = "other lengths of clips (64) and spans of lengths (32-128), a program each (torch, onnx, aoti)"
    made.add_argument("--frames", nargs="+", default=[], metavar="N", help=lengths)
    made.add_argument("--merge", action="store_true", help="fold the model's adapter into the weights of its blocks")
    made.add_argument("--base", help="the backbone's weights, if they are not where they were")
    made.add_argument("--overwrite", action="store_true")
    return made


def run(args: argparse.Namespace) -> dict[str, Any]:
    from scaleup.outputs.conversion import export

    return export(args.model, args.to, args.out, args.base, args.overwrite, args.merge, args.frames)


def show(result: dict[str, Any]) -> None:
    print(f"{result['to']} -> {result['out']}, {result['bytes']:,} bytes")
    for key in [key for key in result if key.endswith("_diff")]:
        print(f"read back: {key.replace('_', ' ')} {result[key]:.2g}")
    for name, size in result.get("program_bytes", {}).items():
        print(f"{name}: {size:,} bytes, {result['model_bytes']:,} of the model's tensors")
    for name, seconds in result.get("seconds", {}).items():
        print(f"one {name}: {seconds:.4f} s, {result['eager_seconds'][name]:.4f} s in PyTorch as it was")
