"""The rows with the largest product with a vector, exactly, over vectors that lie on the disk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK = 65536  # vectors that are looked at at once
_FEW = 8  # one in so many vectors is copied about as fast as all are read
_GROUPS = 16  # of scores, for each one that is asked for


def products(
    vectors: NDArray[np.float32], query: NDArray[np.float64], ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The product of each of the vectors `ids` [n], of [R, E], with the query [E] -> float32 [n].

    It is limited by how fast memory is read: all vectors are read where they lie, on the disk, if
    most are asked for; one thread is about as fast as several.
    """
    wanted = query.astype(np.float32)
    everything = len(ids) * _FEW > len(vectors)
    found = np.empty(len(vectors) if everything else len(ids), np.float32)
    with np.errstate(all="ignore"):  # vectors that a stranger changed: the caller looks at scores
        for i in range(0, len(found), BLOCK):
            part = slice(i, i + BLOCK)
            block = vectors[part] if everything else vectors[ids[part]]
            np.matmul(block, wanted, out=found[part])
    return found[ids] if everything and len(ids) < len(found) else found


def largest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest scores, largest first; of equal ones the earlier goes first."""
    count = min(count, len(scores))
    if not count:
        return np.empty(0, np.int64)
    # The largest scores of groups are themselves scores: so many are at least as large as the last
    # of `count` of these, and only such are sorted.
    size = len(scores) // count // _GROUPS
    if size > 1:
        groups = scores[: len(scores) // size * size].reshape(-1, size).max(1)
        places = np.flatnonzero(scores >= _last_of(groups, count))
    else:
        places = np.arange(len(scores))
    chosen = scores[places]
    found = places[chosen >= _last_of(chosen, count)]
    return found[np.lexsort((found, -scores[found]))][:count]


def _last_of(scores: NDArray[np.float32], count: int) -> np.float32:
    """The smallest of the `count` largest."""
    return np.partition(scores, len(scores) - count)[len(scores) - count]


def best_first(scores: NDArray[np.float32], count: int) -> Iterator[int]:
    """Places of scores as `largest` orders them, all of them; quick for about the first `count`."""
    done = 0
    while done < len(scores):
        found = largest(scores, count)
        yield from found[done:].tolist()
        done, count = len(found), 8 * count
