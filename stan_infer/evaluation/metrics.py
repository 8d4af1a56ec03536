"""Figures of retrieval and recognition from scores: recalls, ranks, accuracies, their intervals.

Two ways to count ties. "expected": what a random order of equal scores gives on average, for ranks
and for recalls. "authors": as the release counts, for its own figures.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stan_infer.errors import InputError, check_word
from stan_infer.scores import Floats, float_array

TIES = ("expected", "authors")
_BLOCK = 2**18  # scores at once, so that work arrays are small beside the matrix

_log = logging.getLogger(__name__)


class Ranking(NamedTuple):
    """Where the right one of each question stands. better: how many others score higher, int [N];
    equal: how many others score the same, int [N]."""

    better: NDArray[np.int64]
    equal: NDArray[np.int64]

    @property
    def ranks(self) -> NDArray[np.float64]:
        """Expected ranks [N] from 1: a tie of two at the top is 1.5."""
        return np.asarray(1.0 + self.better + self.equal / 2)

    def recall(self, k: int) -> NDArray[np.float64]:
        """For each question the chance that the right one is among the first k, [N]."""
        return np.clip((k - self.better) / (1.0 + self.equal), 0.0, 1.0)


def rank_right(scores: ArrayLike, right: ArrayLike) -> Ranking:
    """Rank the right column of each row of scores [N, M]. right: int [N].

    NaN is below every number. Raises InputError.
    """
    matrix = float_array("scores", scores, 2)
    columns = _indices("right columns", right, *matrix.shape)
    better, equal = (np.empty(len(matrix), np.int64) for _ in range(2))
    for rows in _blocks(len(matrix), matrix.shape[1]):
        part = matrix[rows]
        own = np.take_along_axis(part, columns[rows, None], axis=1)
        lost = np.isnan(part)
        own_lost = np.isnan(own)
        with np.errstate(invalid="ignore"):
            better[rows] = np.where(own_lost, ~lost, part > own).sum(1)
            equal[rows] = np.where(own_lost, lost, part == own).sum(1) - 1
    return Ranking(better, equal)


def best_columns(scores: Floats, count: int) -> NDArray[np.int64]:
    """The columns of the `count` best scores of each row of [N, M], best first; NaN comes last."""
    count = min(count, scores.shape[1])
    found = np.empty((len(scores), count), np.int64)
    for rows in _blocks(*scores.shape):
        part = -scores[rows]
        near = np.sort(np.argpartition(part, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(np.take_along_axis(part, near, axis=1), axis=1, kind="stable")
        found[rows] = np.take_along_axis(near, order, axis=1)
    return found


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Cut `count` rows of `width` scores into blocks."""
    step = max(1, _BLOCK // max(width, 1))
    return (slice(i, i + step) for i in range(0, count, step))


def released_ranks(scores: ArrayLike) -> NDArray[np.int64]:
    """Ranks (0 is best) of the right videos as the release counts them, for scores [N, N].

    The right column of row i is i. Every position of the sorted row that equals the right score is
    a rank, so a tie gives several, and NaN gives none: there may be more or fewer than N.
    """
    matrix = float_array("scores", scores, 2)
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(
            f"scores have shape {list(matrix.shape)}; the release's count of ties needs [N, N], "
            "text i describing video i: give one text per video"
        )
    return _released(lambda rows: matrix[rows], np.diag(matrix))


def _released(part: Callable[[slice], Floats], own: Floats) -> NDArray[np.int64]:
    """See released_ranks. part: gives the scores of some questions; own: [N], the right ones."""
    found = [
        np.nonzero(np.sort(-part(rows), axis=1) == -own[rows, None])[1]
        for rows in _blocks(len(own), len(own))
    ]
    return np.concatenate(found)


def untied(ranks: NDArray[np.int64]) -> Ranking:
    """Zero-based ranks that are final, as those of the release."""
    return Ranking(ranks, np.zeros_like(ranks))


def rank_figures(ranking: Ranking) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, MdR and MnR."""
    recalls = {f"R@{k}": 100.0 * float(np.mean(ranking.recall(k))) for k in (1, 5, 10)}
    ranks = ranking.ranks
    return {**recalls, "MdR": float(np.median(ranks)), "MnR": float(np.mean(ranks))}


def retrieval_ranks(
    scores: ArrayLike, video_of_text: ArrayLike, *, ties: str = "expected"
) -> dict[str, Ranking]:
    """`rank_videos` and `rank_texts` by the names "text_to_video" and "video_to_text"."""
    return {
        "text_to_video": rank_videos(scores, video_of_text, ties=ties),
        "video_to_text": rank_texts(scores, video_of_text, ties=ties),
    }


def rank_videos(scores: ArrayLike, video_of_text: ArrayLike, *, ties: str = "expected") -> Ranking:
    """Rank for each text of scores [Q, B] its own video among all videos.

    video_of_text: int [Q]. ties: "expected", or "authors", which needs one text per video. Texts
    with NaN for their own video are logged: "authors" leaves them out, "expected" ranks them last.
    Raises InputError.
    """
    matrix, owner = _checked(scores, video_of_text, ties)
    lost = int(np.isnan(np.take_along_axis(matrix, owner[:, None], axis=1)).sum())
    if lost == len(owner):
        raise InputError("no text has a score for its own video (all NaN): nothing to rank")
    if lost:
        effect = "are not counted" if ties == "authors" else "count as ranked last"
        _log.warning("%d texts have NaN for their own video and %s", lost, effect)
    if ties == "expected":
        return rank_right(matrix, owner)
    order = np.argsort(owner)  # text i is then right at video i
    own = matrix[order, np.arange(len(order))]
    return untied(_released(lambda rows: matrix[order[rows]], own))


def rank_texts(scores: ArrayLike, video_of_text: ArrayLike, *, ties: str = "expected") -> Ranking:
    """Rank for each video of scores [Q, B] its own texts among those of all videos.

    The texts of one video count as one, with the best of their scores (as is usual on MSVD); a
    video without a text has no rank. See rank_videos for the rest.
    """
    matrix, owner = _checked(scores, video_of_text, ties)
    order = np.argsort(owner, kind="stable")
    if ties == "authors":
        own = matrix[order, np.arange(len(order))]
        return untied(_released(lambda rows: matrix[:, rows][order].T, own))
    asking, first = np.unique(owner[order], return_index=True)
    better, equal = (np.empty(len(asking), np.int64) for _ in range(2))
    for rows in _blocks(len(asking), len(owner)):
        part = matrix[:, asking[rows]][order].T  # [videos, Q], the texts of each video together
        part = np.where(np.isnan(part), -np.inf, part)
        best = np.maximum.reduceat(part, first, axis=1)  # [videos, groups of texts]
        found = rank_right(np.where(np.isneginf(best), np.nan, best), np.arange(len(asking))[rows])
        better[rows], equal[rows] = found
    return Ranking(better, equal)


def _checked(
    scores: ArrayLike, video_of_text: ArrayLike, ties: str
) -> tuple[Floats, NDArray[np.int64]]:
    check_word("ties", ties, TIES)
    matrix = float_array("scores", scores, 2)
    owner = _indices("video_of_text", video_of_text, *matrix.shape)
    asking = len(np.unique(owner))
    if ties == "authors" and (len(owner) != asking or matrix.shape[1] != asking):
        raise InputError(
            f"{len(owner)} texts describe {asking} of {matrix.shape[1]} videos; the release's "
            'count of ties needs one text for each video: use --ties expected (ties="expected")'
        )
    return matrix, owner


def dual_softmax(scores: ArrayLike, temperature: float, axis: int) -> NDArray[np.float64]:
    """Scores [Q, B], each times its softmax over all queries of the test -> float64 [Q, B].

    axis: 0 where texts search videos, so that all texts are the queries; 1 for the other way. A
    deployed search cannot take all queries together: say so beside the figure. NaN counts as -inf
    in the softmax. float64, because float32 would turn small factors into ties at 0. Memory: the
    result and blocks of rows. Source: the dual softmax loss of CAMoE (arXiv 2109.04290), applied at
    test time.
    """
    s = float_array("scores", scores, 2)
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; it must be above 0")
    result = np.empty(s.shape, np.float64)
    rows = list(_blocks(*s.shape))
    top = np.fmax.reduce(s, axis=axis, keepdims=True).astype(np.float64)
    total = np.zeros((1, s.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        for part in rows:
            e = result[part]
            np.subtract(s[part], top if axis == 0 else top[part], out=e)
            np.exp(np.divide(e, temperature, out=e), out=e)
            e[np.isnan(e)] = 0
            if axis == 0:
                total += e.sum(0)
            else:
                e *= s[part] / e.sum(1, keepdims=True)
        for part in rows if axis == 0 else ():
            result[part] *= s[part] / total
    return result


def class_figures(
    scores: ArrayLike, labels: ArrayLike, *, ties: str = "expected"
) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
    """Top-1, top-5 and mean class accuracy in percent of scores [N, C]; and each video's hits,
    between 0 and 1.

    labels: int [N]. Mean class accuracy is the mean over the classes that occur of the top-1 share
    of each. ties: "expected", see Ranking.recall; under "authors" the higher class wins, as the
    release's sort would have it without its instability. Raises InputError.
    """
    check_word("ties", ties, TIES)
    matrix = float_array("scores", scores, 2)
    right = _indices("labels", labels, *matrix.shape)
    if ties == "authors":
        # NaN would be sorted behind every number, and so come first here.
        matrix = np.where(np.isnan(matrix), -np.inf, matrix)
        best = np.argsort(matrix, axis=1, kind="stable")[:, ::-1]
        ranking = untied(np.argmax(best == right[:, None], axis=1))
    else:
        ranking = rank_right(matrix, right)
    hits = {"top-1": ranking.recall(1), "top-5": ranking.recall(5)}
    figures = {name: 100.0 * float(hit.mean()) for name, hit in hits.items()}
    classes, group = np.unique(right, return_inverse=True)
    per_class = np.bincount(group, hits["top-1"]) / np.bincount(group)
    return {**figures, "mean class": 100.0 * float(per_class.mean())}, hits


def share_interval(hits: ArrayLike) -> tuple[float, float]:
    """95 % interval of the share of right answers, by Wilson's score (JASA 22, 1927).

    hits: [N], 1 or 0; a tie counts in parts, which makes the interval wider, never narrower. Ten of
    ten right give 0.72 to 1, where a bootstrap would give 1 to 1.
    """
    right = np.asarray(hits, np.float64)
    z2, n = 1.959963985**2, len(right)
    share = float(right.mean())
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    low, high = (share + z2 / (2 * n) + sign * half for sign in (-1, 1))
    return max(0.0, low / (1 + z2 / n)), min(1.0, high / (1 + z2 / n))


def paired_interval(lost: float, gained: float, count: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, (lost - gained) / count.

    lost: answers right in the first only; gained: right in the second only; a tie counts in parts,
    which makes the interval wider, never narrower. Tango's score interval (Statistics in Medicine
    17, 1998), which stays honest where a bootstrap knows nothing: with 10 answers and none changed
    it is -0.28 to 0.28.
    """
    z2 = 1.959963985**2

    def excess(d: float) -> float:
        """How far the score test is from rejecting a difference of d."""
        b = -lost - gained + (2 * count - lost + gained) * d
        c = -gained * d * (1 - d)
        q = (math.sqrt(max(b * b - 8 * count * c, 0.0)) - b) / (4 * count)
        variance = count * (2 * q + d * (1 - d))
        return (lost - gained - count * d) ** 2 - z2 * max(variance, 0.0)

    def edge(inside: float, outside: float) -> float:
        if excess(outside) <= 0:
            return outside
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if excess(middle) <= 0 else (inside, middle)
        return outside

    found = (lost - gained) / count
    return edge(found, -1.0), edge(found, 1.0)


def _indices(name: str, values: ArrayLike, rows: int, columns: int) -> NDArray[np.int64]:
    found = np.asarray(values)
    if found.shape != (rows,) or not np.issubdtype(found.dtype, np.integer):
        raise InputError(
            f"{name} have shape {list(found.shape)}, {found.dtype}; need {rows} ints, one per row"
        )
    if found.min() < 0 or found.max() >= columns:
        raise InputError(
            f"{name} span {found.min()} to {found.max()}; allowed are 0 to {columns - 1}"
        )
    return found.astype(np.int64)
