"""Histogram of a tensor's absolute values over any number of clips, in fixed memory.

It has 2048 equal bins from 0 to a power of two above the largest value. When a larger value comes,
the power grows and pairs of bins are added. The counts are those that the wider histogram would
have had from the start, so that they do not depend on the order of the clips.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

BINS = 2048
_SMALLEST = -40  # exponent of the first range; 2^-40 is far below any activation
METHODS = ("max", "percentile", "mse", "entropy")
PERCENTILE = 99.99  # of method percentile
_CANDIDATES = 128  # clipping points tried by mse and entropy


@dataclasses.dataclass
class Histogram:
    """Counts int64 [BINS] of |x| in [0, 2^exponent), and the largest |x|."""

    exponent: int = _SMALLEST
    largest: float = 0.0
    counts: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))

    @classmethod
    def up_to(cls, largest: float) -> Histogram:
        """Without counts; its `largest` is not finite where that is not."""
        h = cls()
        if math.isfinite(largest):
            h.widen(largest)
        else:
            h.largest = largest
        return h

    def widen(self, largest: float) -> None:
        """Make room for a value: the range becomes at least the smallest power of two above it."""
        self.largest = max(self.largest, largest)
        wanted = max(math.frexp(largest)[1], _SMALLEST)
        while self.exponent < wanted:
            if not self.counts.any():
                self.exponent = wanted
                return
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([merged, np.zeros(BINS // 2, np.int64)])
            self.exponent += 1

    def add(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        self.widen(other.largest)
        if not other.counts.any():
            return
        wider = dataclasses.replace(other, counts=other.counts.copy())
        wider.widen(self.largest)
        self.counts = self.counts + wider.counts

    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        return np.arange(0.5, BINS, dtype=np.float64) * self.width

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent) / BINS


def clipping_point(
    h: Histogram, method: str, grid: NDArray[np.float64], percentile: float = PERCENTILE
) -> float:
    """Largest value that 8 bits have to reach; values beyond it saturate.

    method: "max", so that all values fit; "percentile", so that this share of them fits; "mse",
    with the smallest mean squared error; "entropy", with the smallest Kullback-Leibler divergence
    of the rounded distribution (TensorRT's method). grid: the format's values from 0 up
    (NumberFormat.values). Returns 0.0 where all values were zero.
    """
    if h.largest == 0.0 or method == "max":
        return h.largest
    edges = (np.arange(BINS) + 1) * h.width
    if method == "percentile":
        share = np.cumsum(h.counts) / h.counts.sum()
        at = int(np.searchsorted(share, percentile / 100))
        return float(min(edges[min(at, BINS - 1)], h.largest))
    used = int(np.searchsorted(edges, h.largest)) + 1
    tried = np.unique(np.linspace(max(used // 16, 1), used, _CANDIDATES).astype(int))
    cost = _squared_error if method == "mse" else _divergence
    costs = [cost(h, float(min(edges[i - 1], h.largest)), i, grid) for i in tried]
    return float(min(edges[tried[int(np.argmin(costs))] - 1], h.largest))


def _squared_error(h: Histogram, clip: float, _: int, grid: NDArray[np.float64]) -> float:
    x = h.centres()
    scaled = grid * (clip / grid[-1])
    middles = (scaled[1:] + scaled[:-1]) / 2
    return float((h.counts * (scaled[np.searchsorted(middles, x)] - x) ** 2).sum())


def _divergence(h: Histogram, clip: float, used: int, grid: NDArray[np.float64]) -> float:
    p = h.counts[:used].astype(float)
    p[-1] += h.counts[used:].sum()
    scaled = grid * (clip / grid[-1])
    middles = (scaled[1:] + scaled[:-1]) / 2
    level = np.searchsorted(middles, h.centres()[:used])
    kept = h.counts[:used].astype(float)
    total = np.bincount(level, kept, len(grid))
    filled = np.bincount(level, kept > 0, len(grid))
    q = np.where(kept > 0, (total / np.maximum(filled, 1))[level], 0.0)
    p, q = p / p.sum(), q / max(q.sum(), 1.0)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())
