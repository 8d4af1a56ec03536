"""Figures of retrieval and recognition from scores: recalls, ranks, accuracies, their intervals.

Two ways to count ties. "expected": what a random order of equal scores gives on average, for ranks
and for recalls. "authors": as the release counts, for its own figures.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stan_infer.errors import InputError, check_word
from stan_infer.scores import float_array, softmax

TIES = ("expected", "authors")
RESAMPLES = 2000  # of a bootstrap: other seeds move its ends by a few hundredths of its width

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
    own = np.take_along_axis(matrix, columns[:, None], axis=1)
    lost = np.isnan(matrix)
    own_lost = np.isnan(own)
    with np.errstate(invalid="ignore"):
        better = np.where(own_lost, ~lost, matrix > own).sum(1)
        equal = np.where(own_lost, lost, matrix == own).sum(1) - 1
    return Ranking(better, equal)


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
    wanted = -np.diag(matrix)
    return np.nonzero(np.sort(-matrix, axis=1) == wanted[:, None])[1]


def untied(ranks: NDArray[np.int64]) -> Ranking:
    """Zero-based ranks that are final, as those of the release."""
    return Ranking(ranks, np.zeros_like(ranks))


def rank_figures(ranking: Ranking) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, MdR and MnR."""
    recalls = {f"R@{k}": 100.0 * float(np.mean(ranking.recall(k))) for k in (1, 5, 10)}
    ranks = ranking.ranks
    return {**recalls, "MdR": float(np.median(ranks)), "MnR": float(np.mean(ranks))}


def retrieval_ranks(
    scores: ArrayLike,
    video_of_text: ArrayLike,
    *,
    ties: str = "expected",
    to_text: ArrayLike | None = None,
) -> dict[str, Ranking]:
    """Rank both directions of scores [Q, B], by "text_to_video", "video_to_text".

    to_text: scores [Q, B] of the second direction, if they are others (dual softmax).
    video_of_text: int [Q], the video that each text describes. From video to text, the texts of one
    video count as one, with the best of their scores (as is usual on MSVD); a video without a text
    has no rank. ties: "expected", or "authors", which needs one text per video. Texts with NaN for
    their own video are logged: "authors" leaves them out, "expected" ranks them last. Raises
    InputError.
    """
    check_word("ties", ties, TIES)
    matrix = float_array("scores", scores, 2)
    back = matrix if to_text is None else float_array("scores to text", to_text, 2)
    if back.shape != matrix.shape:
        raise InputError(
            f"scores to text have shape {list(back.shape)}, those to video {list(matrix.shape)}; "
            "they need the same"
        )
    owner = _indices("video_of_text", video_of_text, *matrix.shape)
    lost = int(np.isnan(np.take_along_axis(matrix, owner[:, None], axis=1)).sum())
    if lost == len(owner):
        raise InputError("no text has a score for its own video (all NaN): nothing to rank")
    if lost:
        effect = "are not counted" if ties == "authors" else "count as ranked last"
        _log.warning("%d texts have NaN for their own video and %s", lost, effect)
    asking, group = np.unique(owner, return_inverse=True)
    best = np.full((len(asking), back.shape[1]), -np.inf, back.dtype)
    np.maximum.at(best, group, np.where(np.isnan(back), -np.inf, back))
    # Rows: videos with texts; columns: the texts of each such video, as one.
    videos = np.where(np.isneginf(best), np.nan, best)[:, asking].T
    if ties == "expected":
        return {
            "text_to_video": rank_right(matrix, owner),
            "video_to_text": rank_right(videos, np.arange(len(asking))),
        }
    if len(owner) != len(asking) or matrix.shape[1] != len(asking):
        raise InputError(
            f"{len(owner)} texts describe {len(asking)} of {matrix.shape[1]} videos; the release's "
            'count of ties needs one text for each video: use --ties expected (ties="expected")'
        )
    order = np.argsort(owner)  # text i is then right at video i
    return {
        "text_to_video": untied(released_ranks(matrix[order])),
        "video_to_text": untied(released_ranks(back[order].T)),
    }


def dual_softmax(
    scores: ArrayLike, temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores [Q, B], each times its softmax over all queries of the test.

    Returns (text to video, video to text), both [Q, B]. The softmax takes all queries together,
    which a deployed search cannot do: say so beside the figure. NaN counts as -inf in it. Source:
    the dual softmax loss of CAMoE (arXiv 2109.04290), applied at test time.
    """
    s = float_array("scores", scores, 2).astype(np.float64)
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; it must be above 0")
    x = np.where(np.isnan(s), -np.inf, s / temperature)
    return s * softmax(x, 0), s * softmax(x, 1)


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


def bootstrap_interval(values: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of values [N], by a bootstrap of RESAMPLES resamples."""
    v = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [v[rng.integers(0, len(v), len(v))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def paired_interval(lost: int, gained: int, count: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, (lost - gained) / count.

    lost: answers right in the first only; gained: right in the second only. Tango's score interval
    (Statistics in Medicine 17, 1998), which stays honest where a bootstrap knows nothing: with 10
    answers and none changed it is -0.28 to 0.28.
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
