"""Predict labels for images and videos: files, folders, patterns, addresses, or a video stream on stdin (-)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scaleup.cli import tool
from scaleup.common.errors import UserError
from scaleup.common.files import real, refuse_existing

if TYPE_CHECKING:
    from scaleup.evaluation.predictor import Predictions

EXAMPLE = """tools/predict.py runs/vit_h clips/ "photos/*.jpg" --top 3
  tools/predict.py runs/vit_h match.mp4 --hop 1 --overlay match-seen.mp4
  ffmpeg -i /dev/video0 -f matroska - | tools/predict.py runs/vit_h -"""


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("model", help="model directory or hub id")
    add("sources", nargs="+", metavar="source", help="file, folder, pattern, address, or - for stdin")
    add("--head", help="head to use (default: the model's only head)")
    add(
        "--top",
        type=tool.at_least(1),
        help="number of most probable classes to print (default: 5; all above the threshold)",
    )
    add("--threshold", type=float, help="probability from which a head with loss sigmoid names a class (default 0.5)")
    seconds = "seconds from one clip of a long video to the next (default: a clip's length)"
    add("--hop", type=tool.at_least(0.001, float), help=seconds)
    add("--batch", type=tool.at_least(1), default=8, help="batch size in clips (default 8)")
    add("--overlay", metavar="FILE", help="for one source: also write a .mp4 or .png that shows where the model looks")
    add("--out", metavar="FILE", help="write the predictions here, a line of JSON each; none are kept in memory")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--base", help="the backbone's weights, if they have moved")
    return parser


def run(args: argparse.Namespace) -> Predictions:
    sources = read_sources(args)
    from scaleup.evaluation.predictor import predict
    from scaleup.model.build import load  # takes seconds; wrong arguments are refused before

    how = args.head, args.top, args.hop, args.batch, args.overlay, args.threshold, args.out, args.overwrite
    return predict(load(args.model, args.base), sources, *how)


def read_sources(args: argparse.Namespace) -> list[str]:
    """The sources one by one.

    Raises:
        UserError: an argument is wrong.
    """
    from scaleup.data.media import STDIN, expanded

    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold} is not between 0 and 1")
    sources = expanded(args.sources)
    for place in filter(None, (args.out, args.overlay)):
        refuse_place(Path(place), sources, args.overwrite)
    if args.overlay:
        from scaleup.evaluation import overlay  # takes seconds

        overlay.refuse_name(args.overlay)
        if len(sources) != 1 or sources == [STDIN]:
            raise UserError(
                f"--overlay takes one image or video, but there are {len(sources)} sources: {', '.join(sources[:3])}"
            )
    return sources


def refuse_place(place: Path, sources: Sequence[str], overwrite: bool) -> None:
    """UserError if an output would take the place of a source, or of another file and ``overwrite`` is not set."""
    if place.exists() and any(real(Path(source)) == real(place) for source in sources):
        raise UserError(f"'{place}' would take the place of a source; name another file")
    refuse_existing(place, overwrite)


def show(result: Predictions) -> None:
    from scaleup.evaluation.predictor import answer

    for file in result.files:
        print(f"{file.source}: {answer(file.top, file.value)}")
        for clip in file.clips if len(file.clips) > 1 else ():
            print(f"  {clip}")
    if result.out is not None:
        print(f"predictions -> {result.out}")
    if result.overlay is not None:
        print(f"overlay -> {result.overlay}")
