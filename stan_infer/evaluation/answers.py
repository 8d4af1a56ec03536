"""What a model answered to each question, and the same in rows: per query, class and category."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import storable
from stan_infer.evaluation.metrics import Ranking, best_columns, rank_figures
from stan_infer.evaluation.task import Task

SHOWN = 5  # answers of a question
RECALLS = {True: {"R@1": 1, "R@5": 5, "R@10": 10}, False: {"top-1": 1, "top-5": 5}}  # retrieval?


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers to the questions of a task: which video a text means, or a video's class.

    scores: [Q, B] of texts and videos, or [N, C] of videos and classes (with several views mean
    probabilities). best: int [questions, up to SHOWN], the best columns, by `best_scores` (after a
    dual softmax those); right_scores: [questions], of the right column. rankings: by direction,
    with ties as "expected", in the order of `asked`.
    """

    task: Task
    scores: NDArray[Any]
    best: NDArray[np.int64]
    best_scores: NDArray[Any]
    right_scores: NDArray[Any]
    rankings: Mapping[str, Ranking]

    @property
    def ranking(self) -> Ranking:
        """Of the direction that the rows show: text to video, or videos to classes."""
        return next(iter(self.rankings.values()))

    @property
    def right(self) -> tuple[int, ...]:
        """The right column of each question."""
        return self.task.owners if self.task.is_retrieval else self.task.labels

    @property
    def hits(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """By direction and figure the chance between 0 and 1 that each answer is right."""
        figures = RECALLS[self.task.is_retrieval]
        return {
            direction: {name: ranking.recall(k) for name, k in figures.items()}
            for direction, ranking in self.rankings.items()
        }

    @property
    def worst(self) -> NDArray[np.int64]:
        """The questions whose right answer is not first, the worst first."""
        ranks = self.ranking.ranks
        wrong = np.nonzero(ranks > 1)[0]
        return wrong[np.argsort(-ranks[wrong], kind="stable")]


def best_answers(
    scores: NDArray[Any], right: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """The best columns of each row of [questions, M], their scores and that of the right column."""
    best = best_columns(scores, SHOWN)
    own = np.take_along_axis(scores, np.array(right)[:, None], axis=1)[:, 0]
    return best, np.take_along_axis(scores, best, axis=1), own


def asked(task: Task) -> dict[str, list[str]]:
    """By direction a name of each question, the same for every model and every form of a file."""
    if not task.is_retrieval:
        # Without case and signs, as a class is brush_hair in one file and "brush hair" in another.
        plain = ["".join(filter(str.isalnum, c.casefold())) for c in task.classes]
        pairs = zip(task.videos, task.labels, strict=True)
        return {"videos": [_name(video, plain[label]) for video, label in pairs]}
    seen: Counter[tuple[int, str]] = Counter()
    texts = []
    for owner, text in zip(task.owners, task.texts, strict=True):
        seen[owner, text] += 1
        texts.append(_name(task.videos[owner], text, str(seen[owner, text])))
    videos = [_name(task.videos[i]) for i in sorted(set(task.owners))]
    return {"text_to_video": texts, "video_to_text": videos}


def candidates(task: Task) -> str:
    """A name of what can be answered: the set of videos, or of classes."""
    return _name(*sorted(task.videos if task.is_retrieval else task.classes))


def _name(*parts: str) -> str:
    text = "\0".join(map(storable, parts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def query_rows(answers: Answers) -> tuple[list[str], list[list[Any]]]:
    """The header and rows of ranks.csv, or of recognition.csv."""
    task, ranks = answers.task, answers.ranking.ranks
    shown = [
        f"{word} {i}" for i in range(1, answers.best.shape[1] + 1) for word in ("top", "score")
    ]
    names = task.videos if task.is_retrieval else task.classes
    head = ["query", "text", "video"] if task.is_retrieval else ["video", "label"]
    kinds = ["category"] if task.categories else []
    rows = []
    for q, right in enumerate(answers.right):
        video = right if task.is_retrieval else q
        own = (
            [q, task.texts[q], names[right]]
            if task.is_retrieval
            else [task.videos[q], names[right]]
        )
        own += [task.categories[video]] if kinds else []
        best = zip(answers.best[q].tolist(), answers.best_scores[q].tolist(), strict=True)
        place = f"{ranks[q]:g}", f"{answers.right_scores[q]:.7g}"
        rows.append([*own, *place, *(x for i, s in best for x in (names[i], f"{s:.7g}"))])
    return [*head, *kinds, "rank", "right score", *shown], rows


def group_rows(answers: Answers) -> list[dict[str, Any]]:
    """Figures of each category of the file, in percent; none where it has no categories."""
    task = answers.task
    if not task.categories:
        return []
    video = np.array(task.owners) if task.is_retrieval else np.arange(len(task.videos))
    return _figures(answers, [task.categories[v] or "(none)" for v in video], "category")


def class_rows(answers: Answers) -> list[dict[str, Any]]:
    """Figures of each class that occurs, in percent, and which wrong class is answered most."""
    task = answers.task
    if task.is_retrieval:
        return []
    found = _figures(answers, [task.classes[i] for i in task.labels], "class")
    pairs = {right: (wrong, count) for right, wrong, count in reversed(confused(answers))}
    for row in found:
        wrong, count = pairs.get(row["class"], ("", 0))
        row |= {"taken for": wrong, "times": count}
    return found


def confused(answers: Answers) -> list[tuple[str, str, int]]:
    """(right class, wrong first answer, how often), the most frequent first."""
    task = answers.task
    first = answers.best[:, 0].tolist()
    pairs = Counter((r, f) for r, f in zip(task.labels, first, strict=True) if r != f)
    order = sorted(pairs.items(), key=lambda p: (-p[1], p[0]))
    return [(task.classes[r], task.classes[f], count) for (r, f), count in order]


def confusion(answers: Answers) -> NDArray[np.int64]:
    """How often a video of class i got class j as its first answer, [C, C]."""
    count = len(answers.task.classes)
    found = np.zeros((count, count), np.int64)
    np.add.at(found, (np.array(answers.task.labels), answers.best[:, 0]), 1)
    return found


def _figures(answers: Answers, groups: Sequence[str], word: str) -> list[dict[str, Any]]:
    """One row per group, in the order of their names."""
    better, equal = answers.ranking
    unit = "texts" if answers.task.is_retrieval else "videos"
    place: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        place.setdefault(group, []).append(i)
    rows = []
    for group in sorted(place):
        own = np.array(place[group])
        ranking = Ranking(better[own], equal[own])
        figures = rank_figures(ranking)
        if not answers.task.is_retrieval:
            figures = {n: 100 * float(ranking.recall(k).mean()) for n, k in RECALLS[False].items()}
        rows.append({word: group, unit: len(own), **figures})
    return rows
