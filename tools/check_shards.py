"""Check everything about a shard directory: sizes, hashes, offsets, labels, keys, and that every sample decodes."""

import argparse
from typing import Any

from scaleup import cli
from scaleup.data.index import read_index
from scaleup.data.verify import verify


def run(args: argparse.Namespace) -> dict[str, Any]:
    index = read_index(args.shards, changed=True)
    with cli.progress("checking", len(index.get("shards", []))) as advance:
        problems = verify(args.shards, advance)
    return {
        "samples": index.get("count"),
        "problems": problems,
        "failures": index.get("failures", []),
        "exit": 1 if problems else 0,
    }


def show(result: dict[str, Any]) -> None:
    print("\n".join(result["problems"]) or f"all {result['samples']} samples are as they were written")
    if result["failures"]:
        print(f"{len(result['failures'])} files had been left out when these shards were made")


if __name__ == "__main__":
    parser = cli.parser(__doc__, "tools/check_shards.py data/shapes/videos-train")
    parser.add_argument(
        "shards", help="a shard directory, or its address, such as https://host/train or s3://bucket/train"
    )
    cli.main(run, parser.parse_args(), show)
