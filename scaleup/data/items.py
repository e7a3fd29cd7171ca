"""Millions of files and their classes in little memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from scaleup.data.doubles import Doubles
from scaleup.data.labels import split_label
from scaleup.data.storage import Item


class Items(Sequence[Item]):
    """Items, made where they are asked for. Of each the path is kept, in bytes, and 16 bytes more; a label or a reason
    once for all that have it."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._paths, self._ends = bytearray(), array("q", [0])
        self._labels, self._reasons = array("i"), array("i")
        texts: dict[str, int] = {}
        for item in items:
            self._paths += item.file.encode("utf-8", "surrogatepass")
            self._ends.append(len(self._paths))
            self._labels.append(texts.setdefault(item.label, len(texts)))
            self._reasons.append(texts.setdefault(item.reason, len(texts)))
        self._texts = list(texts)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, number: Any) -> Any:
        number = range(len(self))[number]
        begin, end = self._ends[number : number + 2]
        texts = self._texts[self._labels[number]], self._texts[self._reasons[number]]
        return Item(self._paths[begin:end].decode("utf-8", "surrogatepass"), *texts)


def refuse_doubles(items: Sequence[Item]) -> Sequence[Item]:
    """The items; a file that occurs again is marked as left out."""
    suspects, files = _suspects(items), set[str]()

    def marked() -> Iterator[Item]:
        for item in items:
            twice = item.file in files and not item.reason
            yield replace(item, reason="is listed twice") if twice else item
            if hash(item.file) in suspects:
                files.add(item.file)

    return Items(marked()) if suspects else items


def merge_doubles(items: Sequence[Item]) -> Sequence[Item]:
    """The items, each file once, with the labels of all its lines."""
    suspects, files = _suspects(items), dict[str, list[Item]]()
    for item in items if suspects else ():
        if hash(item.file) in suspects:
            files.setdefault(item.file, []).append(item)

    def merged() -> Iterator[Item]:
        for item in items:
            if item.file not in files:
                yield item
            elif same := files[item.file]:
                yield _merged(same)
                files[item.file] = []

    return Items(merged()) if suspects else items


def _merged(same: Sequence[Item]) -> Item:
    usable = [item for item in same if not item.reason]
    labels = [label for item in usable for label in split_label(item.label)]
    return replace(usable[0], label=json.dumps(labels, ensure_ascii=False)) if len(usable) > 1 else same[0]


def _suspects(items: Iterable[Item]) -> set[int]:
    files = Doubles()
    files.add(item.file for item in items)
    return files.suspects()
