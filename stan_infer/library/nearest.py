"""The rows with the largest product with a vector, exactly, over vectors that lie on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from stan_infer.system.machine import usable_cpus

BLOCK = 8192  # vectors that a thread looks at at once
_MOST_THREADS = 8  # reading memory limits all of them; more than two were not measured
_FEW = 8  # one in so many vectors is copied about as fast as all are read
_GROUPS = 16  # of scores, for each one that is asked for


def products(
    vectors: NDArray[np.float32], query: NDArray[np.float64], ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The product of each of the vectors `ids` [n], of [R, E], with the query [E] -> float32 [n].

    It is limited by how fast memory is read: all vectors are read where they lie, on the disk, if
    most are asked for.
    """
    wanted = query.astype(np.float32)
    everything = len(ids) * _FEW > len(vectors)
    found = np.empty(len(vectors) if everything else len(ids), np.float32)

    def look_at(first: int) -> None:
        part = slice(first, first + BLOCK)
        block = vectors[part] if everything else vectors[ids[part]]
        with np.errstate(all="ignore"):  # vectors that a stranger changed: the caller looks
            # One dot product for each: the threads of NumPy's BLAS, which take a larger product,
            # would spin for a while behind it and slow down the network that embeds the next text.
            np.matmul(block[:, None], wanted[:, None], out=found[part, None, None])

    places = range(0, len(found), BLOCK)
    threads = min(usable_cpus(), _MOST_THREADS, len(places))
    if threads < 2:
        for first in places:
            look_at(first)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(look_at, places):
                pass
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
