"""The one check that texts have words: without any, a model still gives features, of nothing."""

from __future__ import annotations

from collections.abc import Sequence

from stan_infer.errors import InputError


def check_not_blank(texts: Sequence[str], option: str = "") -> None:
    """Raise InputError for the first blank text. option: where they come from, as in "--text"."""
    for i, text in enumerate(texts):
        if not text.strip():
            where = f" of {option}" if option else ""
            raise InputError(f"text {i}{where} is blank ({text[:20]!r}); give words")
