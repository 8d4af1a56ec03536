"""Evaluate a session on a task: figures of retrieval or recognition, with their protocol."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.config import StanConfig
from stan_infer.engines.inputs import as_numpy
from stan_infer.engines.session import TEXT_CHUNK, Session, score_features
from stan_infer.errors import InputError, first_reasons
from stan_infer.evaluation.answers import Answers, best_answers
from stan_infer.evaluation.feature_cache import FeatureCache, file_name, ids_name
from stan_infer.evaluation.metrics import (
    Ranking,
    class_figures,
    dual_softmax,
    rank_figures,
    rank_right,
    rank_texts,
    rank_videos,
    share_interval,
)
from stan_infer.evaluation.task import Task
from stan_infer.library.embed import embed_videos
from stan_infer.library.readings import EmbedOptions
from stan_infer.scores import softmax
from stan_infer.text.templates import Templates, read_templates
from stan_infer.text.tokenizer import cut_texts, tokenize
from stan_infer.video.spec import ClipSpec

# Scores are multiplied by this before the softmax that is averaged over views, as in the release.
VIEW_SCALE = 100.0


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a task is evaluated.

    config: the model's, with the number of frames, text length and short side of the task. views:
    (clips, crops) per video, over which recognition averages. truncation: see tokenizer.tokenize.
    template: texts of a class: a sentence with one {} for its name, the name of a set, or several
    of these, which are averaged; see text.templates. ties, dual_softmax: see metrics.
    """

    config: StanConfig
    views: tuple[int, int] = (1, 1)
    decoder: str = "auto"
    truncation: str = "keep-eot"
    template: str | Sequence[str] = "{}"
    ties: str = "expected"
    dual_softmax: bool = False

    def __post_init__(self) -> None:
        """Check the templates."""
        self.templates.check(is_mug=self.config.is_mug)

    @property
    def templates(self) -> Templates:
        """The sentences that a class is put into."""
        return read_templates(self.template)

    @property
    def spec(self) -> ClipSpec:
        """How videos are read."""
        return ClipSpec.of(self.config, views=self.views, decoder=self.decoder)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures in percent by direction ("text_to_video", "video_to_text", or "videos").

    intervals: 95 % intervals of the recalls and accuracies (Wilson's), over texts or videos.
    outcomes: ranks (1 is best) or hits, by which two engines can be compared text by text or video
    by video. facts: the protocol. failed: videos that could not be read, with the reason; no figure
    counts them. answers: of each question, what is needed to look into them.
    """

    figures: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    outcomes: dict[str, list[float]]
    facts: dict[str, Any]
    failed: dict[str, str]
    answers: Answers


def evaluate(
    session: Session,
    task: Task,
    paths: Sequence[Path],
    protocol: Protocol,
    options: EmbedOptions,
    *,
    cache: FeatureCache | None = None,
    on_video: Callable[[str | None], None] = lambda error: None,
) -> Evaluation:
    """Evaluate a task.

    paths: the files of the task's videos, in the same order. on_video: is called for each video
    with its error or None. A video that cannot be read is left out with its texts and named in
    `failed`. Raises InputError if no video is left.
    """
    if task.is_retrieval and protocol.views != (1, 1):
        raise InputError("several views are averaged over class probabilities: recognition only")
    config = protocol.config
    templates = protocol.templates
    texts = list(task.texts) or templates.fill(task.classes)
    # Texts first, so that a model without a text tower fails before hours of decoding.
    ids = tokenize(
        texts, config.context_length, truncation=protocol.truncation, vocabulary=session.vocabulary
    )
    text = _text_features(session, ids, cache)
    found = _video_features(session, paths, protocol, options, cache, on_video)
    kept = [i for i, x in enumerate(found) if not isinstance(x, str)]
    failed = {task.videos[i]: x for i, x in enumerate(found) if isinstance(x, str)}
    if not kept:
        why = first_reasons(failed.values(), "no video was given")
        raise InputError(f"none of the {len(paths)} videos could be read: {why}")
    video = np.stack([x for x in found if not isinstance(x, str)])  # [N, V, E] or [N, V, T, E]
    if task.is_retrieval:
        whole, task = task, task.keep(kept)
        rows = [q for q, o in enumerate(whole.owners) if not isinstance(found[o], str)]
        scores = score_features(config, text[rows], ids[rows], video[:, 0])
        figures, intervals, outcomes, answers = _retrieval(scores, task, protocol)
        texts = [texts[q] for q in rows]
    else:
        task = task.keep(kept)
        figures, intervals, outcomes, answers = _recognition(
            templates.average(text), templates.first(ids), video, task, protocol
        )
    cut = cut_texts(texts, config.context_length, vocabulary=session.vocabulary)
    facts = _facts(task, protocol, len(texts), len(cut))
    return Evaluation(figures, intervals, outcomes, facts, failed, answers)


def _facts(task: Task, protocol: Protocol, texts: int, cut: int) -> dict[str, Any]:
    c, p = protocol.config, protocol
    facts: dict[str, Any] = {
        "videos": len(task.videos),
        **({"texts": texts} if task.is_retrieval else {"classes": len(task.classes)}),
        "frames": c.frames,
        "views": "{}x{}".format(*p.views),
        "resize, crop": f"{c.short_side}, {c.image_size}",
        "text tokens": c.context_length,
        "texts cut": cut,
        "cut by": p.truncation,
        "head": c.head,
        "ties": p.ties,
        "decoder": p.decoder,
    }
    if task.is_retrieval:
        facts["dual softmax"] = f"yes, temperature {c.temperature:g}" if p.dual_softmax else "no"
    else:
        facts["template"] = p.templates.named
    return facts


_Found = tuple[dict[str, Any], dict[str, Any], dict[str, list[float]], Answers]


def _retrieval(scores: NDArray[Any], task: Task, protocol: Protocol) -> _Found:
    owners, temperature = np.array(task.owners), protocol.config.temperature
    figures, intervals, outcomes = {}, {}, {}
    rankings: dict[str, Ranking] = {}
    best: tuple[Any, Any, Any] | None = None
    directions = {"text_to_video": rank_videos, "video_to_text": rank_texts}
    for axis, (name, rank) in enumerate(directions.items()):
        ranked = dual_softmax(scores, temperature, axis) if protocol.dual_softmax else scores
        ranking = rank(ranked, owners, ties=protocol.ties)
        rankings[name] = ranking if protocol.ties == "expected" else rank(ranked, owners)
        best = best or best_answers(ranked, task.owners)
        del ranked  # one matrix of the dual softmax is there at a time
        figures[name] = rank_figures(ranking)
        intervals[name] = {f"R@{k}": _interval(ranking.recall(k)) for k in (1, 5, 10)}
        outcomes[name] = ranking.ranks.tolist()
    assert best is not None
    return figures, intervals, outcomes, Answers(task, scores, *best, rankings)


def _recognition(
    text: NDArray[Any],
    ids: NDArray[np.int64],
    video: NDArray[Any],
    task: Task,
    protocol: Protocol,
) -> _Found:
    config = protocol.config
    views = [score_features(config, text, ids, video[:, v]).T for v in range(video.shape[1])]
    # The scores of one view are ranked directly: a softmax could round close scores to a tie.
    scores = views[0] if len(views) == 1 else _mean_probabilities(views)
    labels = np.array(task.labels)
    figures, hits = class_figures(scores, labels, ties=protocol.ties)
    intervals = {name: _interval(hit) for name, hit in hits.items()}
    best = best_answers(scores, task.labels)
    answers = Answers(task, scores, *best, {"videos": rank_right(scores, labels)})
    outcomes = {"videos": hits["top-1"].tolist()}
    return {"videos": figures}, {"videos": intervals}, outcomes, answers


def _mean_probabilities(views: list[NDArray[Any]]) -> NDArray[Any]:
    """Mean over the views of the class probabilities of scores [N, C]."""
    parts = [softmax(VIEW_SCALE * scores.astype(np.float64), 1) for scores in views]
    return np.asarray(np.mean(parts, axis=0))


def _interval(hit: NDArray[np.float64]) -> tuple[float, float]:
    low, high = share_interval(hit)
    return 100 * low, 100 * high


def _text_features(
    session: Session, ids: NDArray[np.int64], cache: FeatureCache | None
) -> NDArray[np.float32]:
    names = [ids_name(row) for row in ids]
    c = session.config
    shape = (ids.shape[1], c.embed_dim) if c.is_mug else (c.embed_dim,)
    known = {name: cache.get(name, shape) if cache is not None else None for name in names}
    todo = [i for i, name in enumerate(names) if known[name] is None]
    for start in range(0, len(todo), TEXT_CHUNK):
        part = todo[start : start + TEXT_CHUNK]
        for i, features in zip(part, as_numpy(session.embed_text(ids[part])), strict=True):
            known[names[i]] = features
            if cache is not None:
                cache.put(names[i], features)
    return np.stack([x for name in names if (x := known[name]) is not None])


def _video_features(
    session: Session,
    paths: Sequence[Path],
    protocol: Protocol,
    options: EmbedOptions,
    cache: FeatureCache | None,
    on_video: Callable[[str | None], None],
) -> list[NDArray[np.float32] | str]:
    """Features [V, ...] of each video, or its error."""
    c = protocol.config
    frames = (c.frames,) if c.is_mug else ()
    shape = (math.prod(protocol.views), *frames, c.embed_dim)
    known: dict[int, NDArray[np.float32] | str] = {}
    names: list[str] = []
    for i, path in enumerate(paths if cache is not None else ()):
        names.append(file_name(path, dataclasses.asdict(protocol.spec)))
        if cache is not None and (features := cache.get(names[i], shape)) is not None:
            known[i] = features
            on_video(None)
    todo = [i for i in range(len(paths)) if i not in known]
    readings = embed_videos(session, [paths[i] for i in todo], options, spec=protocol.spec)
    with closing(readings):
        for i, reading in zip(todo, readings, strict=True):
            if reading.features is None:
                known[i] = reading.error or "no features"
            else:
                known[i] = reading.features
                if cache is not None:
                    cache.put(names[i], reading.features)
            on_video(reading.error)
    return [known[i] for i in range(len(paths))]
