"""Prompt templates: several sentences per text, whose embeddings are averaged into one.

A template is a sentence with one {} for the text; `templates.json` has the sets of the literature,
each with its source and licence. Averaging is that of OpenAI's CLIP
(notebooks/Prompt_Engineering_for_ImageNet.ipynb): embeddings of length 1, their mean, length 1.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, nearest
from stan_infer.text.blank import check_not_blank

PLAIN = "{}"  # the text as it is
_DATA = Path(__file__).with_name("templates.json")
_MOST = 1000  # sentences per text


@dataclass(frozen=True)
class Templates:
    """What `read_templates` found. given: as the user wrote it; sentences: each with one {}."""

    given: tuple[str, ...] = (PLAIN,)
    sentences: tuple[str, ...] = (PLAIN,)

    @property
    def named(self) -> str:
        """The templates in words, for the facts of a result."""
        count = len(self.sentences)
        return " | ".join(self.given) + (f" ({count} averaged)" if count > 1 else "")

    def fill(self, texts: Sequence[str]) -> list[str]:
        """Return every sentence with every text: all of the first text, then of the next.

        Raises InputError for a blank text, which a sentence would hide.
        """
        check_not_blank(texts)
        return [s.replace("{}", text) for text in texts for s in self.sentences]

    def first(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Of rows [Q * n, ...] for the n sentences of Q texts, the first of each text [Q, ...]."""
        return rows[:: len(self.sentences)]

    def average(self, features: NDArray[Any]) -> NDArray[Any]:
        """Embeddings [Q * n, E] of what `fill` returned -> one for each text [Q, E].

        With one sentence they are what they were, else of length 1. Features of tokens
        [Q * n, L, E] of several sentences are an InputError: see `check`.
        """
        count = len(self.sentences)
        if count == 1:
            return features
        self.check(is_mug=features.ndim == 3)
        unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
        mean = unit.reshape(-1, count, features.shape[-1]).mean(1)
        return np.asarray(mean / np.linalg.norm(mean, axis=-1, keepdims=True), features.dtype)

    def check(self, *, is_mug: bool) -> None:
        """Raise InputError for several sentences with a Mug head."""
        if is_mug and len(self.sentences) > 1:
            raise InputError(
                f"{len(self.sentences)} templates cannot be averaged for this model: its Mug head "
                "scores the tokens of one sentence, and tokens of different sentences do not "
                "belong together; give one --template"
            )


def read_templates(given: str | Sequence[str]) -> Templates:
    """Return the templates that words stand for: sentences with one {}, or names of sets.

    Raises InputError for none, a sentence without {} or with several, and one that is there twice.
    """
    words = (given,) if isinstance(given, str) else tuple(given)
    sentences: list[str] = []
    for word in words:
        count = word.count("{}")
        if count == 0 and word in template_sets():
            sentences += template_sets()[word]
        elif count == 1:
            sentences.append(word)
        else:
            known = list(template_sets())
            near = nearest(word, known) if count == 0 else ""
            raise InputError(
                f"template {word[:60]!r} needs one {{}} for the text, as in 'a video of {{}}', or "
                f"is the name of a set{near} ({', '.join(known)})"
            )
    if not sentences:
        raise InputError("no template: give a sentence with one {}, as in 'a video of {}'")
    if len(sentences) > _MOST:
        raise InputError(f"{len(sentences)} templates; allowed are {_MOST}")
    twice = next((s for s in sentences if sentences.count(s) > 1), None)
    if twice is not None:
        raise InputError(f"template {twice[:60]!r} is there twice; give it once")
    return Templates(words, tuple(sentences))


@functools.cache
def template_sets() -> dict[str, tuple[str, ...]]:
    """The sets of templates.json by name."""
    found = json.loads(_DATA.read_text(encoding="utf-8"))["sets"]
    return {name: tuple(entry["templates"]) for name, entry in found.items()}
