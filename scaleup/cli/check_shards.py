"""Check a shard directory: sizes, hashes, offsets, labels, keys, and that every sample can be decoded.

For a token cache, all its shard directories (one for each dataset) are checked.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from scaleup.cli import tool
from scaleup.data.verify import Verified, verify


@dataclass
class Checked(Verified):
    """The result for all directories together."""

    exit: int  # exit code: 1 if there are problems


def run(args: argparse.Namespace) -> Checked:
    sets = [str(index.parent) for index in sorted(Path(args.shards).glob("*/index.json"))]
    checked = Checked(0, [], [], [], 0)
    for path in sets or [args.shards]:
        verified = verify(path)
        checked.samples += verified.samples
        checked.problems += verified.problems
        checked.notes += verified.notes
        checked.failures += verified.failures
    checked.exit = 1 if checked.problems else 0
    return checked


def show(checked: Checked) -> None:
    print("\n".join(checked.problems) or f"all {checked.samples} samples are unchanged since they were written")
    if checked.notes:
        print(f"{len(checked.notes)} unusual samples, which are used:")
        print("\n".join(f"  {note}" for note in checked.notes[:20]))
    if checked.failures:
        print(f"{len(checked.failures)} files were left out when these shards were made")


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, "tools/check_shards.py data/shapes/videos-train")
    places = "shard directory or token cache, or its address, such as https://host/train or s3://bucket/train"
    parser.add_argument("shards", help=places)
    return parser
