"""One vector of a video or text, or one for every frame or token."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.engines.session import Session
from stan_infer.errors import InputError, check_word

LEVELS = ("video", "frame", "token")


class Level:
    """What is kept of each video and text: `video` one vector, `frame` one for every frame of a
    video, `token` also one for every token of a text. None: what the model's head scores.
    """

    def __init__(self, session: Session, word: str | None) -> None:
        """Have the session return what this level needs, until the end of a `with` block.

        Raises InputError for another word.
        """
        if word is not None:
            check_word("level", word, LEVELS)
        rows = session.config.is_mug
        self.frames = rows if word is None else word != "video"
        self.tokens = rows if word is None else word == "token"
        self._session, self._fine = session, session.fine
        session.fine = self.frames or self.tokens
        self._rows = session.keeps_rows

    def __enter__(self) -> Level:
        """This level."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Let the session return what it did before."""
        self._session.fine = self._fine

    def to_dict(self) -> dict[str, str]:
        """What the vectors of videos and of texts stand for."""
        return {
            "videos": "frame" if self.frames else "video",
            "texts": "token" if self.tokens else "text",
        }

    def of_video(self, features: NDArray[Any]) -> NDArray[Any]:
        """What the session gives for one video -> [E], or [T, E]."""
        return features.mean(0) if self._rows and not self.frames else features

    def of_texts(self, features: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[Any]:
        """What the session gives for ids [Q, L] -> [Q, E], at the end token, or [Q, L, E]."""
        if not self._rows or self.tokens:
            return features
        return features[np.arange(len(ids)), ids.argmax(1)]  # the end token has the largest id


def normalised(features: NDArray[Any], name: str) -> NDArray[Any]:
    """Divide every vector of [..., E] by its length. Raises InputError for one of length 0."""
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    if not length.all():
        raise InputError(f"{name}: a vector has the length 0 and cannot be normalised")
    return np.asarray(features / length, features.dtype)
