"""The lists of labels that the publishers of datasets supply: Kinetics, SSv2, UCF101, HMDB51, Charades."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from scaleup.common.errors import UserError, nearest
from scaleup.common.files import read_json
from scaleup.data.lines import read_lines
from scaleup.data.storage import Item

COLUMNS = ("label", "youtube_id", "time_start", "time_end")  # of Kinetics
ACTION = re.compile(r"c(\d{3}) [\d.]+ [\d.]+")  # of Charades: a class, its first and last second


def kinetics(source: Path, root: Path, split: str | None) -> Iterator[Item]:
    """The CSV of Kinetics; files ID_SSSSSS_EEEEEE.mp4 in ``root`` or in ``root``/LABEL."""
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)  # else an extra quote would hide rows
        have = rows.fieldnames or []
        for column in (*COLUMNS, *(["split"] if split else [])):
            if column not in have:
                raise UserError(f"'{source}' has no column '{column}': {', '.join(have)}{nearest(column, have)}")
        yield from (_clip(row, root) for row in rows if split in (None, row["split"]))


def _clip(row: dict[str, str], root: Path) -> Item:
    try:
        name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
    except (TypeError, ValueError):
        reason = f"times {row['time_start']!r} and {row['time_end']!r} are not whole seconds"
        return Item(str(root / f"{row['youtube_id']}.mp4"), reason=reason)
    beside = below(root, name, row["label"], "" if row["label"] else "has no label")
    inside = below(root, f"{row['label']}/{name}", row["label"])
    return inside if not beside.path.exists() and not inside.reason and inside.path.exists() else beside


def ssv2(source: Path, root: Path, _: str | None) -> Iterator[Item]:
    """The JSON of a split of Something-Something v2; the class is the template without its brackets."""
    rows = read_json(source)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
        raise UserError(f"'{source}' is not a list of entries with an id, as a split of SSv2 is")
    for row in rows:
        label = re.sub(r"[\[\]]", "", str(row.get("template", "")))
        yield below(root, f"{row['id']}.webm", label, "" if label else "has no label")


def charades(source: Path, root: Path, _: str | None) -> Iterator[Item]:
    """The CSV of Charades; files ID.mp4. Actions such as ``c092 11.90 21.20;c147 0.00 12.60`` are labels of the whole
    video."""
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        if lacking := {"id", "actions"} - set(rows.fieldnames or []):
            raise UserError(f"'{source}' has no column '{min(lacking)}': {', '.join(rows.fieldnames or [])}")
        for row in rows:
            actions = list(filter(None, (row["actions"] or "").split(";")))
            matches = [ACTION.fullmatch(action.strip()) for action in actions]
            wrong = next((each for each, match in zip(actions, matches, strict=True) if not match), None)
            reason = f"action '{wrong}' is not like 'c092 11.90 21.20'" if wrong else ""
            yield below(root, f"{row['id']}.mp4", json.dumps([match[1] for match in matches if match]), reason)


def ucf101(source: Path, root: Path, _: str | None) -> Iterator[Item]:
    """trainlist01.txt or testlist01.txt: lines ``CLASS/FILE.avi [NUMBER]``; the class is the folder."""
    for line in read_lines(source):
        path = re.sub(r"\s+\d+$", "", line)
        yield below(root, path, PurePosixPath(path).parent.name)


def hmdb51(source: Path, root: Path, split: str | None) -> Iterator[Item]:
    """A folder of CLASS_test_splitN.txt: lines ``FILE.avi 1`` (train), 2 (test) or 0; files in ``root``/CLASS."""
    chosen = re.fullmatch(r"(train|test)([123])", split or "")
    if not chosen:
        raise UserError(f"split '{split or ''}' is not one of HMDB51's: train1 to train3, test1 to test3")
    ending, mark = f"_test_split{chosen[2]}.txt", "1" if chosen[1] == "train" else "2"
    for file in sorted(source.glob(f"*{ending}")):
        name = file.name.removesuffix(ending)
        pairs = [line.rsplit(None, 1) for line in read_lines(file)]
        yield from (below(root, f"{name}/{pair[0]}", name) for pair in pairs if pair[-1] == mark)


def published_classes(source: Path, kind: str) -> Path | None:
    """The file of class names that the publishers of a dataset supply with its lists."""
    pattern = {"ucf101": "classInd.txt", "ssv2": "*labels.json", "charades": "Charades*classes.txt"}.get(kind)
    files = sorted(source.parent.glob(pattern)) if pattern else []
    return files[0] if len(files) == 1 else None


def below(root: Path, path: str, label: str, reason: str = "") -> Item:
    """A file below ``root``."""
    outside = path.startswith("/") or ".." in PurePosixPath(path).parts
    return Item(str(root / path), label, reason or ("its path is outside the folder of the files" if outside else ""))
