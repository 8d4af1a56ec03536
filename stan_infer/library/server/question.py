"""What a browser asks for: the parameters of /search, which may be anybody's, within bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from stan_infer.errors import InputError, check_whole, check_word, number
from stan_infer.library.query import Term, check_terms, terms, weighted
from stan_infer.library.row_filter import RowFilter

MAX_TOP = 200
MAX_TERMS, MAX_CHARACTERS = 32, 1000  # texts and examples, and characters of each value
_KINDS = {"text": "text", "not": "without", "like": "like_row"}
_FILTERS = ("path", "since", "before", "added_since", "added_before")
_LENGTHS = ("longer", "shorter")
_ONCE = ("top", "mug", *_FILTERS, *_LENGTHS)


@dataclass(frozen=True)
class Question:
    """One search: what is asked for, how many rows, of which, with the Mug head or not."""

    terms: tuple[Term, ...]
    top: int
    keep: RowFilter
    mug: bool


def question(query: bytes) -> Question:
    """Read the part of an address behind "?".

    text=, not= (texts that lower the score), like= (the number of a row), each once or more and
    perhaps with a weight as in "a dog::2"; top=, mug=1, and those of RowFilter: path=, since=,
    before=, added_since=, added_before=, longer=, shorter=. Raises InputError for anything else.
    """
    given: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=MAX_TERMS + len(_ONCE),
        )
    except ValueError as e:
        raise InputError(f"the address cannot be read: {e}") from None
    for name, value in pairs:
        check_word("parameter", name[:MAX_CHARACTERS], (*_KINDS, *_ONCE))
        if len(value) > MAX_CHARACTERS:
            raise InputError(f"{name} has {len(value)} characters; allowed are {MAX_CHARACTERS}")
        given.setdefault(name, []).append(value)
    once = {name: _once(name, given[name]) for name in _ONCE if name in given}
    asked = [
        term for name, kind in _KINDS.items() for term in _terms(name, kind, given.get(name, []))
    ]
    check_terms(asked)
    if len(asked) > MAX_TERMS:
        raise InputError(f"{len(asked)} texts and examples; allowed are {MAX_TERMS}")
    top: object = once.get("top", "10")
    top = int(top) if isinstance(top, str) and top.isascii() and top.isdecimal() else top
    check_whole("top", top, 1, MAX_TOP)
    check_word("mug", once.get("mug", "0"), ("0", "1"))
    only: dict[str, Any] = {name: once[name] for name in _FILTERS if name in once}
    only |= {name: _seconds(name, once[name]) for name in _LENGTHS if name in once}
    keep = RowFilter(**only)
    return Question(tuple(asked), int(str(top)), keep, once.get("mug") == "1")


def _seconds(name: str, text: str) -> float:
    try:
        return number(text)
    except ValueError:
        raise InputError(f"{name} {text!r} is no number of seconds") from None


def _once(name: str, values: list[str]) -> str:
    if len(values) > 1:
        raise InputError(f"{name} is given {len(values)} times: give it once")
    return values[0]


def _terms(name: str, kind: str, values: list[str]) -> list[Term]:
    found = terms("text", weighted(name, values))
    return [Term(kind, term.value, term.weight) for term in found]  # type: ignore[arg-type]
