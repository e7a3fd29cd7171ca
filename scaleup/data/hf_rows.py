"""Reads a dataset of the Hugging Face hub, or a local one in its layouts, by the package ``datasets``.

Media stay as they are stored: they are never decoded and encoded again on the way.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
from PIL import Image

from scaleup.common.errors import UserError, first_line, nearest
from scaleup.common.text import join_words
from scaleup.data.decode import EXTENSIONS, BadSample
from scaleup.data.items import Items
from scaleup.data.labels import NUMBER, Labelling
from scaleup.data.sources import Listing, extension_of, read_file, refuse_label
from scaleup.data.storage import Item

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf:"
CLASSES = ("ClassLabel", "List(ClassLabel)")
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "mov": "mp4", "matroska": "mkv", "avi": "avi"}
FORMATS |= {"mpeg": "mpg", "gif": "gif"}  # Pillow's and FFmpeg's names -> extensions


@dataclass(frozen=True)
class Rows:
    """Reads media of a dataset; small, because it is sent to a process with every task."""

    files: tuple[str, ...]  # of Arrow, in their order
    column: str

    def __call__(self, path: Path) -> tuple[str, bytes]:
        """The extension and the bytes of an item: a file, or ``hf:NAME/SPLIT/ROW/FILE``.

        Raises:
            BadSample: there is no file, or it is of no format that shards hold.
        """
        if str(path).startswith(PREFIX):
            cell = _opened(self.files, self.column)[int(path.parent.name)][self.column]
            extension, data = extension_of(path), (cell or {}).get("bytes")
        else:
            extension, data = read_file(path)
        if data is None:
            raise BadSample("has no file")
        return extension if any(extension in endings for endings in EXTENSIONS.values()) else recognise(data), data


@lru_cache(maxsize=1)
def _opened(files: tuple[str, ...], column: str) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    rows = concatenate_datasets([Dataset.from_file(file) for file in files]).select_columns([column])
    return _undecoded(rows, column)


def _undecoded(dataset: Dataset, column: str) -> Dataset:
    return dataset.cast_column(column, type(dataset.features[column])(decode=False))


def recognise(data: bytes) -> str:
    """The extension of an image or a video by its content; BadSample if shards cannot hold it."""
    name = "of an unknown format"
    with suppress(Exception), Image.open(io.BytesIO(data)) as image:
        name = str(image.format)
    if name not in FORMATS:
        with suppress(Exception), av.open(io.BytesIO(data)) as container:
            name = container.format.name.split(",")[0]
    if name not in FORMATS:
        raise BadSample(f"is {name}; allowed are {', '.join(sorted(set(FORMATS.values())))}")
    return FORMATS[name]


def read_dataset(
    source: str,
    split: str | None = None,
    media: str | None = None,
    label: str | None = None,
    classes: str | Path | None = None,
    labels: str | None = None,
) -> Listing:
    """List the images or videos of a dataset with their labels.

    Args:
        source: ``hf:owner/name`` or ``hf:DIRECTORY``, with or without ``hf:``: a folder of class folders, or of Parquet
            files.
        split: by default the only one.
        media, label: columns; by default the only one of Image or Video, and the only one of ClassLabel or of lists of
            it.
        classes: a file of class names; by default those of the column of labels.
        labels: ``one`` class of each sample, ``several``, or a ``number``; by default what the column has.

    Raises:
        UserError: ``datasets`` is not installed, the dataset cannot be read, or a column or a split is not clear.
    """
    name = source.removeprefix(PREFIX)
    dataset, split = _load(name, split)
    kinds = {column: _kind(feature) for column, feature in dataset.features.items()}
    media = _choose(name, "image or video", "--media", media, kinds, ("Image", "Video"))
    label = _choose(name, "label", "--label", label, kinds, CLASSES, also=("Value", "List(Value)"))
    labels = labels or ("several" if kinds[label].startswith("List") else "one")
    texts, names = _texts(dataset, label)
    labelling = Labelling(labels, texts, classes or (names if labels != NUMBER else None))
    paths = [path for chunk in dataset.data.column(media).chunks for path in chunk.field("path").to_pylist()]
    if not paths:
        raise UserError(f"split '{split}' of '{name}' has no rows")
    rows = enumerate(zip(paths, texts, strict=True))
    items = (Item(str(_place(f"{PREFIX}{name}/{split}/{row}", path)), text) for row, (path, text) in rows)
    files = tuple(file["filename"] for file in dataset.cache_files)
    refused = Items(refuse_label(item, labelling) for item in items)
    return Listing(refused, labelling, kinds[media].lower(), Rows(files, media), str(files))


def _kind(feature: Any) -> str:
    """``Video``, ``ClassLabel``, ``List(ClassLabel)``, ..."""
    inner = getattr(feature, "feature", None)
    return type(feature).__name__ + (f"({type(inner).__name__})" if inner is not None else "")


def _place(row: str, path: str | None) -> Path:
    """The file of a row, or where its bytes are in the dataset."""
    if path and Path(path).is_file():
        return Path(path)
    return Path(row) / (Path(path or "").name or row.rpartition("/")[2])


def _load(name: str, split: str | None) -> tuple[Dataset, str]:
    """The dataset of a split, and the split's name."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError("source hf: needs the package 'datasets': pip install 'scaleup[hf]'") from error
    try:
        splits: Any = load_dataset(name)
    except Exception as error:  # of the network, of the hub, of files; it has many classes
        raise UserError(f"'{name}' cannot be read as a dataset of Hugging Face: {first_line(error)}") from error
    split = split or (next(iter(splits)) if len(splits) == 1 else "")
    if split not in splits:
        said = f"has no split '{split}'" if split else "has several splits"
        raise UserError(f"'{name}' {said}: {', '.join(splits)}{nearest(split, splits)}; choose one with --split")
    return splits[split], split


def _choose(
    name: str,
    what: str,
    option: str,
    column: str | None,
    kinds: Mapping[str, str],
    first: Collection[str],
    also: Collection[str] = (),
) -> str:
    """The column that is named, or the only one of a kind in ``first``; one of a kind in ``also`` must be named."""
    allowed = [other for other, kind in kinds.items() if kind in (*first, *also)]
    if column is not None and column not in allowed:
        raise UserError(
            f"{option} '{column}' is not a column of '{name}' for the {what}: "
            f"{join_words(allowed) or 'it has none'}{nearest(column, allowed)}"
        )
    fitting = [other for other, kind in kinds.items() if kind in first]
    if column is None and len(fitting) != 1:
        count = f"{'several columns' if fitting else 'no column'} of kind {' or '.join(first)}"
        others = f"; name one with {option}: {join_words(fitting or allowed)}" if allowed else ""
        raise UserError(f"'{name}' has {count}{others}")
    return column or fitting[0]


def _texts(dataset: Dataset, column: str) -> tuple[list[str], list[str] | None]:
    """The label of each row as text, and the names of the classes if the column has them."""
    feature = dataset.features[column]
    names = getattr(getattr(feature, "feature", feature), "names", None)

    def text(value: Any) -> str:
        if isinstance(value, list):
            return json.dumps([text(each) for each in value])
        if names is None:
            return "" if value is None else str(value)
        return names[value] if value is not None and 0 <= value < len(names) else ""

    return [text(value) for value in dataset.data.column(column).to_pylist()], names
