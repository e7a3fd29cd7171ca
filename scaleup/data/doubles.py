"""Finds keys that occur more than once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class Doubles:
    """Keys, of which 8 bytes each are in memory: their hashes in this process."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def add(self, keys: Iterable[str]) -> None:
        self.parts.append(np.fromiter(map(hash, keys), np.int64))

    def suspects(self) -> set[int]:
        """The hashes that occur more than once: those of keys that do, and hardly any other."""
        hashes = np.sort(np.concatenate([*self.parts, np.empty(0, np.int64)]))
        return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
