"""Random permutations that are computed at a place."""

from __future__ import annotations

import math

import numpy as np

ROUNDS = 6  # even
ODD = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15], dtype=np.uint64)  # of SplitMix64
SHIFTS = np.array([30, 27, 31], dtype=np.uint64)


def sides(largest: int) -> tuple[int, int]:
    """Two numbers whose product is ``largest`` or just above."""
    a = math.ceil(math.sqrt(largest))
    return a, -(-largest // a)


def permute(
    places: np.ndarray, counts: np.ndarray | int, largest: int, keys: np.ndarray, tweak: np.ndarray | int = 0
) -> np.ndarray:
    """Where each of ``places`` (n,) goes in a random permutation of range(``counts``), computed at that place.

    A Feistel network on pairs (left < a, right < b), walked on from where it leaves range(count) (Black and Rogaway,
    Ciphers with Arbitrary Finite Domains, methods 2 and 3).

    Args:
        counts: (n,), or one of all.
        largest: no count is above it. It decides which permutation is drawn, so it must be the same in all calls.
        keys: uint64 (ROUNDS,).
        tweak: another number is another permutation; (n,), or one of all.
    """
    tweaked = _mix(
        keys[:, None] + np.asarray(tweak, dtype=np.uint64).reshape(-1) * ODD[2]
    )  # (ROUNDS, n) or (ROUNDS, 1)
    walking, counts = np.arange(len(places)), np.broadcast_to(np.asarray(counts, dtype=np.uint64), places.shape)
    tweaked = np.broadcast_to(tweaked, (ROUNDS, len(places)))
    moved = _walk(places.astype(np.uint64), tweaked, *sides(largest))
    while len(walking := walking[moved[walking] >= counts[walking]]):
        moved[walking] = _walk(moved[walking], tweaked[:, walking], *sides(largest))
    return moved.astype(np.int64)


def _walk(places: np.ndarray, keys: np.ndarray, a: int, b: int) -> np.ndarray:
    """Where the network sends ``places`` (n,), with keys (ROUNDS, n); all uint64."""
    left, right = np.divmod(places, np.uint64(b))
    for number, key in enumerate(keys):
        mixed = _mix(right + key)
        mixed += left
        mixed %= np.uint64(b if number % 2 else a)
        left, right = right, mixed
    return left * np.uint64(b) + right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators), in place."""
    for shift, odd in zip(SHIFTS, ODD[:2], strict=False):
        x ^= x >> shift
        x *= odd
    x ^= x >> SHIFTS[2]
    return x
