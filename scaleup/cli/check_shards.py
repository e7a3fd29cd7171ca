"""Check a shard directory: sizes, hashes, offsets, labels, keys, and that every sample can be decoded.

For a token cache, all its shard directories (one for each dataset) are checked. With --convert, an index of an older
version becomes one that is mapped, not read: it opens at once, whatever its size. The tars stay as they are.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from scaleup.cli import tool
from scaleup.common.errors import UserError
from scaleup.data.index import convert
from scaleup.data.verify import Verified, verify


@dataclass
class Checked(Verified):
    """The result for all directories together."""

    exit: int  # exit code: 1 if there are problems
    converted: list[str]  # directories whose index was converted


def run(args: argparse.Namespace) -> Checked:
    folder = Path(args.shards)
    sets = [str(index.parent) for name in ("index.json", "*/index.json") for index in sorted(folder.glob(name))]
    checked = Checked(0, [], [], [], 0, [])
    if args.convert and "://" in args.shards:
        raise UserError(f"'{args.shards}' is an address; convert the directory where it is, and copy its index")
    for path in sets or [args.shards]:
        checked.converted += [path] if args.convert and convert(Path(path)) else []
        verified = verify(path)
        checked.samples += verified.samples
        checked.problems += verified.problems
        checked.notes += verified.notes
        checked.failures += verified.failures
    checked.exit = 1 if checked.problems else 0
    return checked


def show(checked: Checked) -> None:
    for path in checked.converted:
        print(f"{path}: its index is converted")
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
    parser.add_argument(
        "--convert", action="store_true", help="give shards of an older version an index that is mapped"
    )
    return parser
