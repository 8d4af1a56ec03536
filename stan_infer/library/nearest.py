"""The rows with the largest product with a vector, exactly, over vectors that lie on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from stan_infer.library.blocks import gathered, in_blocks
from stan_infer.library.codes import bounds, changed_codes

BLOCK = 8192  # vectors that a thread looks at at once
_GROUPS = 16  # of scores, for each one that is asked for

Scores = NDArray[np.float32]
Places = NDArray[np.int64]


class NotFiniteError(Exception):
    """A product is not a number. place: of the row."""

    def __init__(self, place: int) -> None:
        """See the class."""
        super().__init__(place)
        self.place = place


def nearest(
    vectors: NDArray[np.float32],
    codes: NDArray[np.int8] | None,
    query: NDArray[np.float64],
    ids: Places,
    count: int,
) -> Iterator[int]:
    """Places in `ids` [n] by the products of their vectors, of [R, E], with the query [E].

    The largest comes first, and all of them come; it is quick for about the first `count`. codes:
    those of codes.encoded, of all R; None: all vectors are read. Raises NotFiniteError, and
    CheckError for codes of other vectors, where they would have hidden a row that was looked at.
    """
    if codes is None:
        scores = _finite(products(vectors, query, ids), np.arange(len(ids)))
        return best_first(scores, scores.__getitem__, count)
    most = bounds(codes, query, ids)

    def exact(places: Places) -> Scores:
        scores = _finite(products(vectors, query, ids[places]), places)
        if (scores > most[places])[most[places] > -np.inf].any():
            raise changed_codes(codes)
        return scores

    return best_first(most, exact, count)


def _finite(scores: Scores, places: Places) -> Scores:
    for wrong in np.flatnonzero(~np.isfinite(scores))[:1]:
        raise NotFiniteError(int(places[wrong]))
    return scores


def products(
    vectors: NDArray[np.float32], query: NDArray[np.float64], ids: Places
) -> NDArray[np.float32]:
    """The product of each of the vectors `ids` [n], of [R, E], with the query [E] -> float32 [n].

    `ids` rise. It is limited by how fast memory is read: all vectors are read where they lie, on
    the disk, if most are asked for.
    """
    wanted = query.astype(np.float32)
    found, everything = gathered(len(vectors), ids)

    def look_at(part: slice) -> None:
        block = vectors[part] if everything else vectors[ids[part]]
        with np.errstate(all="ignore"):  # vectors that a stranger changed: the caller looks
            # One dot product for each: the threads of NumPy's BLAS, which take a larger product,
            # would spin for a while behind it and slow down the network that embeds the next text.
            np.matmul(block[:, None], wanted[:, None], out=found[part, None, None])

    in_blocks(look_at, len(found), BLOCK)
    return found[ids] if everything and len(ids) < len(found) else found


def largest(scores: Scores, count: int) -> Places:
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


def _last_of(scores: Scores, count: int) -> np.float32:
    """The smallest of the `count` largest."""
    return np.partition(scores, len(scores) - count)[len(scores) - count]


def best_first(most: Scores, exact: Callable[[Places], Scores], count: int) -> Iterator[int]:
    """Places by their exact scores, as `largest` orders them, all of them; see `nearest`.

    most: what each score is at most; -inf: that is not known. exact: the scores of places, which
    rise.
    """
    unknown, done = np.flatnonzero(np.isneginf(most)), 0
    while done < len(most):
        # So many scores are at least as large as the least of these: what is below cannot be found.
        least = exact(np.sort(largest(most, count))).min()
        places = np.union1d(np.flatnonzero(most >= least), unknown)
        found = places[largest(exact(places), count)]
        yield from found[done:].tolist()
        done, count = len(found), 8 * count
