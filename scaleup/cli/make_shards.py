"""Pack videos or images into WebDataset shards with an index, or generate data (shapes, scenes).

SOURCE is one of these: a folder with one subfolder of files per class (ImageNet too); a text file with a path and a
label in each line, or a JSON object of these; a CSV of Kinetics or Charades; a JSON split of Something-Something v2; a
trainlist or testlist of UCF101; the folder of HMDB51's split files; a folder of tars, which are used in place;
hf:owner/name, a dataset of the Hugging Face hub, or a folder of Parquet files in its layout; the word
'shapes' for generated data; or the word 'scenes' for cut-out objects that move over photographs (--material). If the
command is interrupted, run it again: it continues from there.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleup.cli import tool
from scaleup.common.errors import UserError
from scaleup.common.timing import progress
from scaleup.data.encode import PILLOW, Encoding
from scaleup.data.generated import SPLITS, write_splits
from scaleup.data.hf_rows import read_dataset
from scaleup.data.labels import KINDS as KINDS_OF_LABELS
from scaleup.data.labels import ONE
from scaleup.data.pack import pack
from scaleup.data.scenes import Material, Scenes
from scaleup.data.shapes import Shapes
from scaleup.data.shards import Shards
from scaleup.data.sources import KINDS, kind_of, read_source
from scaleup.data.storage import count_by_reason
from scaleup.data.tars import index_tars, tars_of


def run(args: argparse.Namespace) -> dict[str, dict[str, Written]]:
    if args.source in GENERATED:
        refuse_others(args, args.source)
        return {"shards": {name: Written.of(shards) for name, shards in generated(args).items()}}
    kind = args.kind or kind_of(Path(args.source))
    refuse_others(args, kind)
    shards = tars(args) if kind == "tars" else packed(args, kind)
    return {"shards": {shards.name: Written.of(shards)}}


GENERATED, PACKED = ("shapes", "scenes"), (*KINDS, "hf")
ALLOWED = (*PACKED, "tars")  # of --kind
OPTIONS = {  # of some kinds of sources
    **dict.fromkeys(("videos", "images", "size", "frames"), GENERATED),
    **dict.fromkeys(("short", "fps", "image_format", "quality", "reencode", "per_shard"), PACKED),
    **dict.fromkeys(("kind", "classes", "labels"), ALLOWED),
    "seed": (*PACKED, *GENERATED),
    "root": tuple(kind for kind in KINDS if kind != "folder"),
    "split": ("kinetics", "hmdb51", "hf"),
    "label": ("tars", "hf"),
    "media": ("hf",),
    "places": ("shapes",),
    "material": ("scenes",),
}


def refuse_others(args: argparse.Namespace, kind: str) -> None:
    """UserError if an option is given that only sources of other kinds have."""
    parser = arguments()
    for option, kinds in OPTIONS.items():
        if kind not in kinds and getattr(args, option) != parser.get_default(option):
            allowed = f"{', '.join(kinds[:-1])} and {kinds[-1]}" if len(kinds) > 1 else kinds[0]
            raise UserError(f"--{option.replace('_', '-')} is for {allowed}; '{args.source}' is read as {kind}")


def generated(args: argparse.Namespace) -> dict[str, Shards]:
    videos, images = counts(args.videos), counts(args.images)
    generate = shapes(args) if args.source == "shapes" else scenes(args)
    with progress(args.source, sum(videos.values()) + sum(images.values())) as advance:
        form = generate.classes, videos, images, args.overwrite, args.processes
        return write_splits(out_of(args), generate, *form, advance=advance)


def shapes(args: argparse.Namespace) -> Shapes:
    return Shapes(args.seed, args.size or Shapes.size, args.frames, args.places)


def scenes(args: argparse.Namespace) -> Scenes:
    if not args.material:
        raise UserError("scenes need pictures; name a folder with objects/ and photos/ with --material")
    return Scenes(Material.of(args.material), args.seed, args.size or Scenes.size, args.frames)


def tars(args: argparse.Namespace) -> Shards:
    if args.out and Path(args.out).resolve() != Path(args.source).resolve():
        raise UserError(f"tars are used in place, their index belongs in '{args.source}'; leave out --out {args.out}")
    with progress("tars", len(tars_of(Path(args.source)))) as advance:
        how = args.overwrite, args.processes, advance, args.labels or ONE
        return index_tars(args.source, args.label, args.classes, *how)


def packed(args: argparse.Namespace, kind: str) -> Shards:
    out = out_of(args)
    for source in (args.source, args.root or args.source):
        if Path(out).resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
            raise UserError(f"--out {out} would take the place of '{source}', which is read; name another directory")
    encoding = Encoding(args.short, args.fps, args.image_format, args.quality, args.reencode)
    if kind == "hf":
        listing = read_dataset(args.source, args.split, args.media, args.label, args.classes, args.labels)
    else:
        listing = read_source(args.source, args.kind, args.root, args.split, args.classes, args.labels)
    refuse_unused(args, listing.modality)
    with progress("packing", len(listing.items)) as advance:
        return pack(listing, out, encoding, args.seed, args.per_shard, args.overwrite, args.processes, advance)


def refuse_unused(args: argparse.Namespace, modality: str) -> None:
    """UserError for an option that files of this modality do not have, or that changes nothing."""
    for option, other in (("fps", "video"), ("image_format", "image"), ("quality", "image")):
        if modality != other and getattr(args, option) != arguments().get_default(option):
            raise UserError(f"--{option.replace('_', '-')} is for {other}s; '{args.source}' has {modality}s")
    written = args.image_format != "png" and (args.short or args.image_format or args.reencode)
    if not written and args.quality != arguments().get_default("quality"):
        raise UserError("--quality is of images that are re-encoded as jpg or webp; add --reencode or --image-format")


def out_of(args: argparse.Namespace) -> str:
    if not args.out:
        raise UserError("no output directory is given; name one with --out")
    return args.out


@dataclass
class Written:
    """A shard directory that was written."""

    path: str
    modality: str  # video | image
    samples: int
    classes: dict[str, int]  # label -> number of classes
    list_sha256: str
    failures: list[Any]  # files that were left out, and why
    notes: list[Any]  # files that are used although they are unusual, and why

    @classmethod
    def of(cls, shards: Shards) -> Written:
        classes = {label: len(names) for label, names in shards.classes.items()}
        rest = shards.list_sha256, shards.failures, shards.notes
        return cls(str(shards.path), shards.modality, len(shards), classes, *rest)


def counts(text: str) -> dict[str, int]:
    """``"train=4000,val=500"`` -> {"train": 4000, "val": 500}."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    for split, _, number in pairs:
        if split not in SPLITS or not number.isdecimal():
            raise UserError(f"'{text}' is not a list such as train=4000,val=500,test=1000; splits: {', '.join(SPLITS)}")
    return {split: int(number) for split, _, number in pairs}


def show(result: dict[str, dict[str, Written]]) -> None:
    for shards in result["shards"].values():
        classes = ", ".join(f"{label} ({count} classes)" for label, count in shards.classes.items())
        print(f"{shards.path}: {shards.samples} {shards.modality}s, {classes}, list {shards.list_sha256[:12]}")
        if shards.failures:
            print(f"  {len(shards.failures)} files left out (index.json lists all):")
        for line in count_by_reason(shards.failures)[:20]:
            print(f"  {line}")
        if shards.notes:
            print(f"  {len(shards.notes)} unusual files, which are used (index.json lists all):")
        for note in shards.notes[:20]:
            print(f"  {note.source}: {note.note}")


def arguments() -> argparse.ArgumentParser:
    parser = tool.parser(__doc__, "tools/make_shards.py k400/val.csv --root k400/val --out data/k400-val --short 256")
    add = parser.add_argument
    add("source", help="the data, see above")
    add("--out", help="output directory")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--seed", type=tool.at_least(0), default=0, help="seed of the random order (default: %(default)s)")
    add = parser.add_argument_group("which files").add_argument
    add("--kind", metavar="KIND", choices=ALLOWED, help=f"{', '.join(ALLOWED)} (default: recognised)")
    add("--root", help="folder of the files that a list names (default: the list's folder)")
    add("--split", help="for a Kinetics CSV: only rows of this split; for HMDB51: train1 to test3; for hf: the split")
    add("--classes", metavar="FILE", help="file with the class names in order (default: names from the data, sorted)")
    add("--labels", choices=KINDS_OF_LABELS, help="what a label is: one class, several, or a number (default: one)")
    add("--label", help="where the label is; for tars: a member (cls, txt) or a field of the .json; for hf: a column")
    add("--media", help="for hf: the column of the images or videos (default: the only one)")
    add = parser.add_argument_group("how files are written").add_argument
    add("--short", type=tool.at_least(2), metavar="PIXELS", help="re-encode, with a shorter side of at most PIXELS")
    add("--fps", type=tool.at_least(0.01, float), help="re-encode videos with at most FPS frames per second")
    add(
        "--image-format",
        choices=[ending for ending in PILLOW if ending != "jpeg"],
        help="re-encode images in this format",
    )
    add("--quality", type=tool.at_least(1), default=90, help="quality of jpg and webp (default: %(default)s)")
    add("--reencode", action="store_true", help="re-encode all files (default: copy them)")
    add("--per-shard", type=tool.at_least(1), default=1000, help="samples per tar (default: %(default)s)")
    add("--processes", type=tool.at_least(1), help="parallel processes (default: one per core)")
    add = parser.add_argument_group("with source 'shapes' or 'scenes'").add_argument
    add("--videos", default="train=4000,val=500,test=1000", help="videos of each split (default: %(default)s)")
    add("--images", default="train=4000,val=500,test=1000", help="images of each split (default: %(default)s)")
    add(
        "--size",
        type=tool.at_least(1),
        help=f"width and height in pixels (default: {Shapes.size}, scenes {Scenes.size})",
    )
    add("--frames", type=tool.at_least(1), default=16, help="frames per video (default: %(default)s)")
    add(
        "--places",
        action="store_true",
        help="harder shapes: each stays in a quarter of the frame; adds the label place_motion",
    )
    add("--material", metavar="FOLDER", help="for scenes: has objects/ (cut out), photos/ and perhaps films/")
    return parser
