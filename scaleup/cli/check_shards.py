"""Check a shard directory: sizes, hashes, offsets, labels, keys, and that every sample decodes.

Of a token cache, which has a shard directory for each dataset, all are checked.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scaleup.cli import tool
from scaleup.common.timing import progress
from scaleup.data.shards import read_index
from scaleup.data.verify import verify


def run(args: argparse.Namespace) -> dict[str, Any]:
    sets = [str(index.parent) for index in sorted(Path(args.shards).glob("*/index.json"))]
    checked = [check(path) for path in sets or [args.shards]]
    problems = [problem for each in checked for problem in each["problems"]]
    return {
        "samples": sum(each["samples"] or 0 for each in checked),
        "problems": problems,
        "notes": [note for each in checked for note in each["notes"]],
        "failures": [failure for each in checked for failure in each["failures"]],
        "exit": 1 if problems else 0,
    }


def check(path: str) -> dict[str, Any]:
    index = read_index(path, changed=True)
    with progress(f"checking {Path(path).name}", len(index.get("shards", []))) as advance:
        notes: list[str] = []
        problems = verify(path, advance, noted=notes.append)
    failures = index.get("failures", [])
    return {"samples": index.get("count"), "problems": problems, "notes": notes, "failures": failures}


def show(result: dict[str, Any]) -> None:
    print("\n".join(result["problems"]) or f"all {result['samples']} samples are as they were written")
    if result["notes"]:
        print(f"{len(result['notes'])} things are odd, and these samples are used all the same:")
        print("\n".join(f"  {note}" for note in result["notes"][:20]))
    if result["failures"]:
        print(f"{len(result['failures'])} files had been left out when these shards were made")


def arguments() -> argparse.ArgumentParser:
    made = tool.parser(__doc__, "tools/check_shards.py data/shapes/videos-train")
    made.add_argument(
        "shards", help="a shard directory or a cache, or its address, such as https://host/train or s3://bucket/train"
    )
    return made
