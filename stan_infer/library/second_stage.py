"""The scores of a Mug head for rows that were found: their videos are read and embedded again.

A library has one vector for a row; a Mug head scores the words of a text with every frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.engines.inputs import as_numpy
from stan_infer.engines.session import Session
from stan_infer.errors import InputError
from stan_infer.library.query import Term
from stan_infer.library.row_reader import RowReader
from stan_infer.library.texts import Texts, embed_texts
from stan_infer.text.templates import Templates

if TYPE_CHECKING:
    from stan_infer.video.clip import Clip

FIRST = 100  # rows of the first stage that are scored


def check_mug_head(session: Session) -> None:
    """Raise InputError for a model without a Mug head."""
    if not session.config.is_mug:
        raise InputError("this model's head is no Mug head: its scores are exact already")


class MugScores:
    """Scores of texts with videos that are read again."""

    def __init__(self, session: Session, asked: Sequence[Term], templates: Templates) -> None:
        """Embed the texts. Raises InputError for a model without a Mug head, and without texts."""
        check_mug_head(session)
        self._session, self.asked = session, asked
        self._places = [i for i, t in enumerate(asked) if t.kind in ("text", "without")]
        if not self._places:
            raise InputError("a Mug head scores texts: give one, or leave --mug away")
        names = [asked[i].value for i in self._places]
        self._texts: Texts = embed_texts(session, names, templates)

    def of(
        self,
        reader: RowReader,
        video: str,
        times: tuple[float | None, float | None],
        cosines: NDArray[np.float64],
    ) -> NDArray[Any]:
        """The scores of a row: `cosines` [Q], in which those of texts are the head's.

        Raises InputError where its video cannot be read.
        """
        clip: Clip = reader.read(Path(video), *times)
        features = as_numpy(self._session.embed_video(clip.pixels[None]))[0]  # [T, E]
        found = cosines.copy()
        found[self._places] = self._texts.scores(features)
        if not np.isfinite(found).all():
            raise InputError(f"{video}: the model gives values that are not finite")
        return found
