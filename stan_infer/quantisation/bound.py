"""The bound that 8 bits must keep, how it is measured, and the search for what keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.folder import Artefact
from stan_infer.engines.inputs import as_numpy
from stan_infer.engines.open import open_session
from stan_infer.engines.session import Session
from stan_infer.errors import InputError
from stan_infer.evaluation.datasets import Task, read_task
from stan_infer.evaluation.evaluate import Protocol, evaluate
from stan_infer.evaluation.metrics import paired_interval
from stan_infer.library.readings import EmbedOptions
from stan_infer.quantisation.hold_out import Parts
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.video.find import locate_videos


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """What must hold: a smallest cosine to fp32 or, with a task, a loss of at most max_drop points.

    metric: top1 (recognition) or r1 (text to video). paths: the task's videos, in its order.
    held: of these the ones that count; None for all.
    """

    min_cosine: float = 0.995
    max_drop: float = 0.5
    metric: str = "top1"
    task: Task | None = None
    paths: Sequence[Path] = ()
    held: Collection[Path] | None = None

    def figures(self) -> dict[str, Any]:
        """The bound, for the record."""
        if self.task is None:
            return {"min_cosine": self.min_cosine}
        return {"max_drop": self.max_drop, "metric": self.metric}

    def on(self, parts: Parts) -> Bound:
        """The same bound where only the task's videos in parts.held count, and no copy.

        A search for a text still has all other videos to choose from.
        """
        if self.task is None:
            return self
        held = frozenset(parts.held)
        away = parts.double if self.task.is_retrieval else set(self.paths) - held
        kept = [i for i, path in enumerate(self.paths) if path not in away]
        paths = [self.paths[i] for i in kept]
        return dataclasses.replace(self, task=self.task.keep(kept), paths=paths, held=held)

    @property
    def counts(self) -> np.ndarray:
        """Which of the task's questions count, bool [N]: those whose video is in `held`."""
        assert self.task is not None
        is_held = np.array([self.held is None or path in self.held for path in self.paths])
        return is_held[list(self.task.owners)] if self.task.is_retrieval else is_held


def read_bound(options: CalibrationOptions, root: Path | None) -> Bound:
    """Return the bound that the options ask for. root: the folder of the labelled videos.

    Raises InputError for labels that cannot be read and for videos that are missing.
    """
    if options.labels is None:
        return Bound() if options.min_cosine is None else Bound(min_cosine=options.min_cosine)
    if root is None:
        raise InputError("labels name videos in a folder: give the folder instead of files")
    metric = options.metric or "top1"
    task = read_task("retrieval" if metric == "r1" else "recognition", options.labels)
    found = locate_videos(root, task.videos)
    missing = [name for name, path in zip(task.videos, found, strict=True) if path is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(found)} videos of {options.labels} are not in {root}: "
            f"{missing[0]}"
        )
    return Bound(
        max_drop=0.5 if options.max_drop is None else options.max_drop,
        metric=metric,
        task=task,
        paths=[p for p in found if p is not None],
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """How 8 bits in one engine differ from fp32: cosines or, for a task, the drop of its metric."""

    cosine: float | None = None  # the smallest
    mean_cosine: float | None = None
    drop: float | None = None  # points
    interval: tuple[float, float] | None = None
    agreement: float | None = None  # percent
    is_met: bool = True

    def figures(self) -> dict[str, Any]:
        """What was measured, for the record."""
        return {k: v for k, v in vars(self).items() if k != "is_met"}

    @property
    def score(self) -> float:
        """Larger is better."""
        return -self.drop if self.drop is not None else float(self.cosine or -1.0)


class Comparison:
    """Compares what sessions give with fp32 in ONNX Runtime, on the bound's task or on clips."""

    def __init__(
        self,
        exact: Artefact,
        bound: Bound,
        clips: Sequence[np.ndarray],
        options: CalibrationOptions,
    ) -> None:
        """Run fp32. clips: uint8 [T, S, S, 3], from which cosines are taken; unused with a task."""
        self._bound, self._clips, self._options = bound, clips, options
        self.failed: dict[str, str] = {}  # videos of the task that cannot be read, with the reason
        with closing(open_session(exact.path, "ort", threads=options.threads)) as session:
            self._exact = self._answers(session)
        # A clip on which fp32 gives NaN shows nothing of 8 bits.
        known = np.isfinite(self._exact.reshape(len(self._exact), -1)).all(1)
        self.count, self.lost = int(known.sum()), int((~known).sum())
        if bound.task is None:
            self._exact = self._exact[known]
            self._clips = [clip for clip, kept in zip(clips, known, strict=True) if kept]

    def folder(self, artefact: Artefact) -> Measured:
        """Measure a folder in ONNX Runtime."""
        with closing(open_session(artefact.path, "ort", threads=self._options.threads)) as session:
            return self.session(session)

    def session(self, session: Session) -> Measured:
        """Measure an open session."""
        a, b = self._answers(session), self._exact
        if self._bound.task is None:
            cosines = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
            cosines = np.nan_to_num(cosines, nan=-1.0)  # NaN is as wrong as can be
            smallest = float(cosines.min())
            return Measured(
                cosine=smallest,
                mean_cosine=float(cosines.mean()),
                is_met=smallest >= self._bound.min_cosine,
            )
        both = np.isfinite(a) & np.isfinite(b)
        lost, gained, count = int((b[both] > a[both]).sum()), int((b < a).sum()), int(both.sum())
        low, high = paired_interval(lost, gained, count)
        drop = 100 * (lost - gained) / count
        return Measured(
            drop=drop,
            interval=(100 * low, 100 * high),
            agreement=100 * (1 - (lost + gained) / count),
            is_met=drop <= self._bound.max_drop,
        )

    def _answers(self, session: Session) -> np.ndarray:
        """Embeddings [clips, E]; or [Q], 1 for each question of the task that is answered right,
        else 0, and NaN where its video cannot be read.
        """
        o, task = self._options, self._bound.task
        if task is None:
            parts = [as_numpy(session.embed_video(c[None])) for c in self._clips]
            found = [p.mean(1) if p.ndim == 3 else p for p in parts]  # a Mug head's
            return np.concatenate(found).astype(np.float64)
        how = EmbedOptions(workers=o.workers, timeout_s=o.timeout_s)
        result = evaluate(session, task, self._bound.paths, Protocol(session.config), how)
        self.failed |= result.failed
        owners = np.array(task.owners if task.is_retrieval else range(len(task.videos)))
        is_read = np.array([name not in result.failed for name in task.videos])[owners]
        answers = np.full(len(owners), np.nan)
        outcomes = np.array(result.outcomes["text_to_video" if task.is_retrieval else "videos"])
        answers[is_read] = outcomes == 1
        return answers[self._bound.counts]


@dataclasses.dataclass(frozen=True)
class Search:
    """What was tried: measurements by the number of linears in fp32. kept: paths of the chosen."""

    tried: dict[int, Measured]
    kept: list[str]

    @property
    def best(self) -> Measured:
        """The measurement of `kept`."""
        return self.tried[len(self.kept)]

    def rows(self) -> list[dict[str, Any]]:
        """One row of the record per try."""
        return [
            {"in_fp32": n, "is_met": m.is_met, **m.figures()} for n, m in sorted(self.tried.items())
        ]


def fewest_returned(order: Sequence[str], measure: Callable[[Sequence[str]], Measured]) -> Search:
    """Try the first n of `order` in fp32: n is doubled until the bound holds, then bisected.

    Where the bound never holds, the result is the best try. At least one linear stays in 8 bits.
    """
    tried: dict[int, Measured] = {}

    def holds(n: int) -> bool:
        if n not in tried:
            tried[n] = measure(order[:n])
        return tried[n].is_met

    low, high, most = 0, 1, len(order) - 1
    if holds(0) or most < 1:
        return Search(tried, [])
    while high < most and not holds(high):
        low, high = high, min(2 * high, most)
    if not holds(high):
        best = max(tried, key=lambda n: tried[n].score)
        return Search(tried, list(order[:best]))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return Search(tried, list(order[:high]))
