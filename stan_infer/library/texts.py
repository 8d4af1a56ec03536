"""Texts as a session's features, ready to be scored against clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stan_infer.engines.session import Session, as_numpy, score_features, token_ids
from stan_infer.scores import softmax
from stan_infer.text.templates import Templates
from stan_infer.text.tokenizer import cut_texts


@dataclass(frozen=True)
class Texts:
    """Q texts. names: as they were given; cut: numbers of those that were too long for the model.

    features [Q, E], or [Q, L, E] with a Mug head; ids int64 [Q, L], of the first template.
    """

    session: Session
    names: list[str]
    features: np.ndarray
    ids: np.ndarray
    cut: frozenset[int]

    def scores(self, clip: np.ndarray) -> np.ndarray:
        """Score of every text with one clip [E], or [T, E] with a Mug head -> float32 [Q]."""
        config = self.session.config
        return score_features(config, self.features, self.ids, clip[None])[:, 0]

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Softmax of scores [Q] over the texts, at the model's temperature."""
        return softmax(scores.astype(np.float64) / self.session.config.temperature, 0)


def embed_texts(session: Session, names: Sequence[str], templates: Templates) -> Texts:
    """Put texts into templates and embed them; of several templates the embeddings are averaged.

    Raises InputError for several with a Mug head, and what embed_text raises.
    """
    config = session.config
    templates.check(is_mug=config.is_mug)
    filled = templates.fill(names)
    ids = token_ids(config, filled, session.vocabulary)
    features = templates.average(as_numpy(session.embed_text(ids)))
    cut = cut_texts(filled, config.context_length, vocabulary=session.vocabulary)
    numbers = frozenset(i // len(templates.sentences) for i in cut)
    return Texts(session, list(names), features, templates.first(ids), numbers)


def best(scores: np.ndarray, count: int) -> list[int]:
    """Indices of the highest scores, highest first; count 0: all. Equal ones keep their order."""
    order = np.argsort(-scores.astype(np.float64), kind="stable").tolist()
    return order[:count] if count else order
