"""Measure top-1 and top-5 accuracy over several views of each sample. Every sample counts exactly once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scaleup.cli import tool
from scaleup.common.timing import is_first_rank
from scaleup.errors import UserError

if TYPE_CHECKING:
    from scaleup.evaluate import Evaluation


def arguments() -> argparse.ArgumentParser:
    made = tool.parser(__doc__, "tools/evaluate.py runs/vit_h/model data/k600-val --views 4x3 --record")
    made.add_argument("model", help="model directory, hub id, or the run directory of a sweep (all arms in one pass)")
    made.add_argument("shards", help="shard directory")
    made.add_argument("--views", default="4x3", help="temporal x spatial crops, e.g. 1x1, 4x3, 10x10 (default 4x3)")
    made.add_argument("--heads", nargs="*", metavar="HEAD=LABEL", help="which head is scored on which label")
    made.add_argument("--strides", nargs="*", metavar="TUBE=T,H,W", help="other strides than in training (more tokens)")
    made.add_argument("--batch", type=int, default=16, help="samples at a time (default 16)")
    made.add_argument("--workers", type=int, default=1, help="loader processes (default 1)")
    precisions = ("float32", "bfloat16", "float16", "int8", "auto")
    made.add_argument("--precision", choices=precisions, help="of frozen blocks (default: the run's, or float32)")
    placements = ("device", "host", "disk")
    made.add_argument("--placement", choices=placements, help="of frozen blocks (default: the run's, or device)")
    kept = "keep the result in report.json of each model directory, and show it on its card"
    made.add_argument("--record", action="store_true", help=kept)
    made.add_argument("--base", help="the backbone's weights, if they are not where they were")
    return made


def run(args: argparse.Namespace) -> Evaluation | dict[str, dict[str, Evaluation]]:
    if args.record and not Path(args.model).is_dir():
        raise UserError(f"--record writes into the directory of a model, and '{args.model}' is none of this machine")
    heads = dict(pair(text) for text in args.heads) if args.heads else None
    strides = {tube: numbers(text) for tube, text in map(pair, args.strides or ())}
    from scaleup.config.schema import Trunk
    from scaleup.evaluate import evaluate, record
    from scaleup.model.build import load, load_run, trunk_of  # after the arguments: these imports take seconds

    many = (Path(args.model) / "recipe.yaml").is_file()
    trunk = trunk_of(args.model) if many else Trunk()
    trunk = Trunk(args.precision or trunk.precision, args.placement or trunk.placement)
    where = args.base, trunk.placement
    models = load_run(args.model, *where) if many else {"model": load(args.model, *where)}
    for model in models.values():
        model.tokenizer.restride(strides)
    results = evaluate(models, args.shards, args.views, heads, args.batch, args.workers, trunk)
    for name, evaluation in results.items() if args.record and is_first_rank() else ():
        how = {"strides": strides, "precision": evaluation.trunk.get("precision", "float32")}
        record(Path(args.model, name) if many else Path(args.model), models[name], evaluation, how)
    return {"arms": results} if many else results["model"]


def pair(text):
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r} is not NAME=VALUE")
    return name, value


def numbers(text):
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{text!r} is not T,H,W in whole numbers") from error


def show(result: Evaluation | dict[str, dict[str, Evaluation]]) -> None:
    arms = result["arms"] if isinstance(result, dict) else {"model": result}
    for name, arm in arms.items():
        for head, score in arm.heads.items():
            print(f"{name}: {head} top-1 {score.top1:.2%}, top-5 {score.top5:.2%} (chance {score.chance:.2%})")
    first = next(iter(arms.values()))
    print(f"{first.samples} samples, {len(first.failures)} failures, {first.views} views")
    print(f"list {first.list_sha256}")
    for depth, moved in first.trunk.get("drift", {}).items():
        print(f"trunk in {first.trunk['precision']}: h after block {depth} moves by {moved:.2%} of its RMS")
