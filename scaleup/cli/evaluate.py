"""Measure top-1, top-5 and mAP, or errors of numbers, with several views of each sample. Every sample counts exactly
once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from scaleup.cli import tool
from scaleup.common.errors import UserError
from scaleup.common.timing import is_first_rank
from scaleup.config.recipe import load_saved
from scaleup.config.schema import Trunk
from scaleup.data.shards import Shards

if TYPE_CHECKING:
    from scaleup.evaluation.accuracy import Evaluation


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, "tools/evaluate.py runs/vit_h/model data/k600-val --views 4x3 --record")
    add = parser.add_argument
    add("model", help="model directory, hub id, or the run directory of a sweep (all arms in one pass)")
    add("shards", help="shard directory")
    add("--views", default="4x3", help="temporal x spatial crops, e.g. 1x1, 4x3, 10x10 (default 4x3)")
    add("--heads", nargs="*", metavar="HEAD=LABEL", help="label that each head is compared with")
    add("--strides", nargs="*", metavar="TUBE=T,H,W", help="strides that differ from training (for more tokens)")
    add("--batch", type=tool.at_least(1), default=16, help="batch size (default 16)")
    add("--workers", type=tool.at_least(0), default=1, help="loader processes (default 1)")
    precisions, placements = tool.choices(Trunk, "precision"), tool.choices(Trunk, "placement")
    own = "default: the run's; on a CPU float32, on a GPU bfloat16"
    add("--precision", choices=precisions, help=f"precision of the frozen blocks ({own})")
    add("--placement", choices=placements, help="where the frozen blocks are kept (default: the run's, or device)")
    add("--record", action="store_true", help="write the result into report.json and the model card of each model")
    add("--base", help="the backbone's weights, if they have moved")
    return parser


def run(args: argparse.Namespace) -> Evaluation | dict[str, dict[str, Evaluation]]:
    if args.record and not Path(args.model).is_dir():
        raise UserError(f"--record writes into the model's directory, but '{args.model}' is not a directory here")
    heads = dict(map(split_pair, args.heads)) if args.heads else None
    strides = {tube: read_numbers(text) for tube, text in map(split_pair, args.strides or ())}
    recipe = Path(args.model) / "recipe.yaml"
    is_run = recipe.is_file()
    trunk = load_saved(recipe).trunk if is_run else Trunk()
    from scaleup.evaluation.accuracy import evaluate, record
    from scaleup.model.build import load, load_run  # takes seconds; wrong arguments are refused before

    trunk = Trunk(args.precision or trunk.precision, args.placement or trunk.placement)
    where = args.base, trunk.placement
    models = load_run(args.model, *where) if is_run else {"model": load(args.model, *where)}
    refuse_unused(args, any(model.frozen_depth for model in models.values()))
    for model in models.values():
        model.tokenizer.restride(strides)
    results = evaluate(models, args.shards, args.views, heads, args.batch, args.workers, trunk)
    for name, evaluation in results.items() if args.record and is_first_rank() else ():
        how = {"strides": strides, "precision": evaluation.trunk.precision if evaluation.trunk else "float32"}
        record(Path(args.model, name) if is_run else Path(args.model), models[name], evaluation, how)
    return {"arms": results} if is_run else results["model"]


def refuse_unused(args: argparse.Namespace, frozen: bool) -> None:
    """UserError for an option that would change nothing. ``frozen``: whether a model has frozen blocks."""
    for option in ("precision", "placement"):
        if getattr(args, option) and not frozen:
            raise UserError(f"--{option} is of frozen blocks, and '{args.model}' has none")
    if args.strides and Shards.open(args.shards).modality == "image":
        raise UserError(f"--strides are of tubes, and '{args.shards}' holds images, which no tube reads")


def split_pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r} is not NAME=VALUE")
    return name, value


def read_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{text!r} is not T,H,W in whole numbers") from error


WORST = 5  # classes that are printed of a head; a head with no more prints none, unless it names several at once


def show(result: Evaluation | dict[str, dict[str, Evaluation]]) -> None:
    arms = result["arms"] if isinstance(result, dict) else {"model": result}
    for name, arm in arms.items():
        for head, score in arm.heads.items():
            print(f"{name}: {head} {score}")
            if (by_class := arm.classes.get(head)) and (by_class.measure != "recall" or len(by_class.classes) > WORST):
                print(f"  worst {by_class.measure}: {', '.join(map(str, by_class.classes[:WORST]))}")
    first = next(iter(arms.values()))
    print(f"{first.samples} samples, {len(first.failures)} failures, {first.views} views")
    print(f"list {first.list_sha256}")
    if first.trunk:
        tool.show_drift(first.trunk.precision, first.trunk.drift)
