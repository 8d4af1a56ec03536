"""What is searched for: texts and examples with weights, and the vector of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stan_infer.engines.inputs import as_numpy
from stan_infer.engines.session import Session
from stan_infer.errors import CheckError, InputError, number
from stan_infer.library.levels import Level, normalised
from stan_infer.library.texts import embed_texts
from stan_infer.text.blank import check_not_blank
from stan_infer.text.templates import Templates
from stan_infer.video.clip import Clip
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.picture import read_still
from stan_infer.video.spec import ClipSpec

Kind: TypeAlias = Literal["text", "without", "like", "like_frame", "like_row"]
Weighted: TypeAlias = str | Path | tuple[str | Path, float]
# One, several, each alone or with its weight.
Given: TypeAlias = str | Path | Iterable[Weighted] | Mapping[str, float]

MAX_TERMS = 1000
_LEAST = 1e-3  # length of the sum, as a share of the weights, below which terms cancel each other


@dataclasses.dataclass(frozen=True)
class Term:
    """One thing that a search asks for.

    kind: "text"; "without", a text that lowers the score; "like", a video; "like_frame", a picture
    or VIDEO@SECONDS; "like_row", a row of the library. value: the text, the path, or the row's
    number in Library.ids. weight: above 0.
    """

    kind: Kind
    value: str
    weight: float = 1.0

    @property
    def sign(self) -> float:
        """The weight, negative where the term lowers the score."""
        return -self.weight if self.kind == "without" else self.weight


def terms(kind: Kind, given: Given | Iterable[Term]) -> list[Term]:
    """The terms that an argument stands for; those that are terms already stay as they are.

    Raises InputError for a weight that is not above 0.
    """
    if isinstance(given, (str, Path)):
        return [Term(kind, str(given))]
    pairs = given.items() if isinstance(given, Mapping) else given
    found = []
    for item in pairs:
        if isinstance(item, Term):
            found.append(item)
            continue
        value, weight = item if isinstance(item, tuple) else (item, 1.0)
        if not isinstance(value, (str, Path)):
            raise InputError(f"{kind} is {value!r}; give texts or paths, alone or with a weight")
        if not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise InputError(
                f"the weight of {str(value)!r} is {weight!r}; it must be a number above 0: a text "
                "to avoid is given with --not (Python: without)"
            )
        found.append(Term(kind, str(value), float(weight)))
    return found


def weighted(option: str, given: Sequence[str]) -> list[tuple[str, float]]:
    """ "a dog::2" -> ("a dog", 2.0), without "::" 1; InputError where no weight stands behind it.

    Two colons, as one is in times and names of drives.
    """
    found = []
    for word in given:
        value, colons, text = word.rpartition("::")
        try:
            weight = number(text) if colons else 1.0
        except ValueError:
            weight = 0.0
        if weight <= 0:
            raise InputError(
                f"{option} {word!r}: behind :: stands a weight above 0, as in {option} "
                "'a dog::0.7'; to search for :: itself end with ::1"
            )
        found.append((value if colons else word, weight))
    return found


def place_of(ids: NDArray[np.int64], number: str) -> int | None:
    """The place among the rows `ids`, which rise, of the one with this number; None: there is none.

    number: as anybody may write it.
    """
    if not (number.isascii() and number.isdecimal() and len(number) < 19):  # else beyond int64
        return None
    place = int(np.searchsorted(ids, int(number)))
    return place if place < len(ids) and ids[place] == int(number) else None


def check_terms(asked: Sequence[Term]) -> None:
    """Raise InputError where nothing is asked for, for a blank text, and for too many terms."""
    check_not_blank([t.value for t in asked if t.kind in ("text", "without")])
    if all(t.kind == "without" for t in asked):
        raise InputError(
            "nothing to search for: give a text, --like VIDEO or --like-frame PICTURE"
            + (", as --not only lowers scores" if asked else "")
        )
    if len(asked) > MAX_TERMS:
        raise InputError(f"{len(asked)} texts and examples; allowed are {MAX_TERMS}")


def term_vectors(
    session: Session,
    asked: Sequence[Term],
    templates: Templates,
    spec: ClipSpec | None,
    timeout_s: float,
    stored: Mapping[Term, NDArray[np.float32]],
) -> NDArray[np.float64]:
    """The vector of each term, of length 1: float64 [Q, E].

    spec: how the library's videos were read, for examples. stored: vectors of the rows. Raises
    InputError for an example that cannot be read, CheckError where the model gives values that are
    not finite.
    """
    found: dict[Term, NDArray[Any]] = {**stored}
    with Level(session, "video") as level:
        texts = list(dict.fromkeys(t.value for t in asked if t.kind in ("text", "without")))
        if texts:
            embedded = embed_texts(session, texts, templates)
            rows = level.of_texts(embedded.features, embedded.ids)
            by_text = dict(zip(texts, rows, strict=True))
            found |= {t: by_text[t.value] for t in asked if t.kind in ("text", "without")}
        for term in (t for t in asked if t.kind in ("like", "like_frame")):
            assert spec is not None
            pixels = _pixels(term, spec, timeout_s)
            found[term] = level.of_video(as_numpy(session.embed_video(pixels[None]))[0])
    result = np.stack([found[t] for t in asked]).astype(np.float64)
    for term, row in zip(asked, result, strict=True):
        if not np.isfinite(row).all():
            raise CheckError(f"the model gives values that are not finite for {term.value!r}")
    return normalised(result, "what is searched for")


def _pixels(term: Term, spec: ClipSpec, timeout_s: float) -> NDArray[np.uint8]:
    if term.kind == "like_frame":
        return read_still(term.value, spec, timeout_s=timeout_s)
    ((_, clip),) = read_clips([Path(term.value)], spec, workers=1, timeout_s=timeout_s)
    if not isinstance(clip, Clip):
        raise clip
    return clip.pixels


def shares(asked: Sequence[Term]) -> NDArray[np.float64]:
    """The weights [Q], negative for "without", as shares: their sum without signs is 1."""
    weights = np.array([t.sign for t in asked])
    weights /= np.abs(weights).max()  # the sum of very large ones would be infinite
    return np.asarray(weights / np.abs(weights).sum())


def combined(asked: Sequence[Term], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector [E] whose product with a row is its score: the weighted mean of the cosines.

    A weight counts negative for "without"; the weights' sum without signs divides. Raises
    InputError where the terms cancel each other.
    """
    query = np.asarray(shares(asked) @ vectors)
    if np.linalg.norm(query) < _LEAST:
        raise InputError("the texts and examples cancel each other: nothing is left to search for")
    return query
