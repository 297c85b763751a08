"""Exact statistics of more rows than fit in memory: two looks at blocks of them, which processes may share.

A float32 is found by its rank without sorting, half of its bits at a time: the first look counts the upper halves,
the second the lower halves of those numbers that share their upper half with one that is sought (a radix selection).
Counts of parts of the rows add up to those of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, UInt32

from actwam.data.normalize import NormStats

Blocks = Iterable[Float32[np.ndarray, "_ D"]]
QUANTILES = (0.01, 0.99)
HALF = 16
"""Bits of a float32 that are counted together."""


@dataclass(frozen=True, eq=False)
class Look:
    """Of n rows: `upper` counts how often their bits begin with each of 2^16 beginnings."""

    count: Int64[np.ndarray, ""]
    total: Float64[np.ndarray, "D"]
    low: Float32[np.ndarray, "D"]
    high: Float32[np.ndarray, "D"]
    upper: Int64[np.ndarray, "D 65536"]

    def __add__(self, other: Look) -> Look:
        """Of the rows of both."""
        return Look(
            np.array(self.count + other.count),
            self.total + other.total,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.upper + other.upper,
        )


@dataclass(frozen=True, eq=False)
class CloserLook:
    """`squares` are of the distance to the mean of all rows. For each beginning that is sought, `lower` counts the ends
    of the numbers that have it.
    """

    squares: Float64[np.ndarray, "D"]
    lower: Int64[np.ndarray, "D q 65536"]

    def __add__(self, other: CloserLook) -> CloserLook:
        """Of the rows of both."""
        return CloserLook(self.squares + other.squares, self.lower + other.lower)


@dataclass(frozen=True, eq=False)
class Sought:
    """What the second look needs to know of the first: the mean, and how the bits begin of the q numbers between which
    the quantiles lie.
    """

    mean: Float64[np.ndarray, "D"]
    upper: Int64[np.ndarray, "D q"]
    before: Int64[np.ndarray, "D q"]
    """How many of the numbers with this beginning are smaller."""


def compute_stats(values: Float[np.ndarray, "N D"], names: tuple[str, ...]) -> NormStats:
    """Exact statistics of N rows, as float32. `names` says what each dimension is, for errors.

    Raises ValueError on NaN or Inf (naming row and dimension), on no rows, and on names that do not fit.
    """
    blocks = [np.asarray(values, np.float32)]
    first = look(blocks, names)
    return stats_of(names, first, look_closer(blocks, sought(first, names)))


def look(blocks: Blocks, names: tuple[str, ...]) -> Look:
    """Raises ValueError as `compute_stats` does, but for no rows."""
    width, count = len(names), 0
    total, upper = np.zeros(width), np.zeros((width, 1 << HALF), np.int64)
    low, high = np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != width:
            raise ValueError(f"statistics: {width} names {names} for an array of shape {block.shape}")
        bad = np.argwhere(~np.isfinite(block))
        if len(bad):
            row, i = bad[0].tolist()
            raise ValueError(
                f"statistics: {names[i]} is {block[row, i]} in row {count + row}; repair or drop that episode"
            )
        count += len(block)
        total += block.sum(0, dtype=np.float64)
        low, high = np.minimum(low, block.min(0, initial=np.inf)), np.maximum(high, block.max(0, initial=-np.inf))
        for i in range(width):
            upper[i] += np.bincount(_ordered(block[:, i]) >> HALF, minlength=1 << HALF)
    return Look(np.array(count), total, low, high, upper)


def sought(first: Look, names: tuple[str, ...]) -> Sought:
    """What to look for, after the first look at all rows. Raises ValueError when there are none."""
    if not first.count:
        raise ValueError(f"statistics of {names}: no rows; there is nothing to normalise by")
    count, counts = int(first.count), np.cumsum(first.upper, axis=1)
    ranks = [rank for quantile in QUANTILES for rank in _between(count, quantile)[:2]]
    upper = np.array([np.searchsorted(line, ranks, "right") for line in counts], np.int64).reshape(
        len(counts), len(ranks)
    )
    behind = np.take_along_axis(np.pad(counts, [(0, 0), (1, 0)]), upper, axis=1)
    return Sought(first.total / count, upper, np.array(ranks) - behind)


def look_closer(blocks: Blocks, aim: Sought) -> CloserLook:
    """The second look at the same blocks."""
    squares, lower = np.zeros(len(aim.mean)), np.zeros((*aim.upper.shape, 1 << HALF), np.int64)
    for block in blocks:
        squares += np.square(block - aim.mean).sum(0)
        for i, wanted in enumerate(aim.upper):
            bits = _ordered(block[:, i])
            beginnings = bits >> HALF
            for number, beginning in enumerate(wanted):
                ends = bits[beginnings == beginning] & ((1 << HALF) - 1)
                lower[i, number] += np.bincount(ends, minlength=1 << HALF)
    return CloserLook(squares, lower)


def stats_of(names: tuple[str, ...], first: Look, second: CloserLook) -> NormStats:
    """The statistics of all rows, from both looks at them."""
    aim, count = sought(first, names), int(first.count)
    ends = (np.cumsum(second.lower, axis=2) <= aim.before[..., None]).sum(2)
    numbers = _number(aim.upper << HALF | ends).astype(np.float64)
    shares = [_between(count, quantile)[2] for quantile in QUANTILES]
    pairs = [numbers[:, 2 * i : 2 * i + 2] for i in range(len(QUANTILES))]
    q01, q99 = (np.quantile(pair, share, axis=1) for pair, share in zip(pairs, shares, strict=True))
    columns = {
        "mean": aim.mean,
        "std": np.sqrt(second.squares / count),
        "min": first.low,
        "max": first.high,
        "q01": q01,
        "q99": q99,
    }
    return NormStats(names=names, count=count, **{key: tuple(map(float, row)) for key, row in columns.items()})


def _between(count: int, quantile: float) -> tuple[int, int, float]:
    """The ranks that a quantile lies between, and how far it is from the first to the second."""
    place = (count - 1) * quantile
    return int(place), min(int(place) + 1, count - 1), place - int(place)


def _ordered(values: Float32[np.ndarray, "n"]) -> UInt32[np.ndarray, "n"]:
    """Whole numbers in the same order: negative ones have all their bits turned, others the sign."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def _number(ordered: Int64[np.ndarray, "*n"]) -> Float32[np.ndarray, "*n"]:
    """The inverse of `_ordered`."""
    bits = ordered.astype(np.uint32)
    return (bits ^ np.where(bits >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))).view(np.float32)
