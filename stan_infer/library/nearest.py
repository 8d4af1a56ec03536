"""The rows with the largest product with a vector, exactly, over vectors that lie on the disk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK = 65536  # vectors that are looked at at once


def products(vectors: NDArray[np.float32], query: NDArray[np.float64]) -> NDArray[np.float32]:
    """The product of each vector [R, E] with the query [E] -> float32 [R].

    It is limited by how fast memory is read: vectors on the disk are not copied, and one thread is
    about as fast as several.
    """
    wanted = query.astype(np.float32)
    found = np.empty(len(vectors), np.float32)
    with np.errstate(all="ignore"):  # vectors that a stranger changed: the caller looks at scores
        for i in range(0, len(vectors), BLOCK):
            np.matmul(vectors[i : i + BLOCK], wanted, out=found[i : i + BLOCK])
    return found


def largest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest scores, largest first; of equal ones the earlier goes first."""
    count = min(count, len(scores))
    if not count:
        return np.empty(0, np.int64)
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    found = np.flatnonzero(scores >= least)
    return found[np.lexsort((found, -scores[found]))][:count]


def best_first(scores: NDArray[np.float32], count: int) -> Iterator[int]:
    """Places of scores as `largest` orders them, all of them; quick for about the first `count`."""
    done = 0
    while done < len(scores):
        found = largest(scores, count)
        yield from found[done:].tolist()
        done, count = len(found), 8 * count
