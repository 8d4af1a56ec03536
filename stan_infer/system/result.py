"""What public functions return, their callbacks, and their options.

A result is frozen, shown in one line, and a dict of JSON types if asked.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from stan_infer.errors import one_line
from stan_infer.system.json_file import plain

Say = Callable[[str], None]  # called with one sentence
# A function of title and number of steps; its context gives a function that is called with the
# number of steps just done, 1 if none is given.
Progress = Callable[[str, float], AbstractContextManager[Callable[..., None]]]
T = TypeVar("T")


def silent(text: str) -> None:
    """Say nothing."""


def no_progress(title: str, total: float) -> AbstractContextManager[Callable[..., None]]:
    """Show nothing."""
    return nullcontext(lambda amount=1.0: None)


def divided(kind: type[T], options: Mapping[str, Any]) -> tuple[T, dict[str, Any]]:
    """Make `kind`, a dataclass, of the options that it has; return the others too."""
    assert dataclasses.is_dataclass(kind)
    own = {f.name for f in dataclasses.fields(kind)}
    given = {k: v for k, v in options.items() if k in own}
    return kind(**given), {k: v for k, v in options.items() if k not in own}


class Result(ABC):
    """A base of frozen dataclasses, which give `repr=False`."""

    @abstractmethod
    def summary(self) -> str:
        """One sentence, as str() and the notebook show it."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types: arrays are lists, paths text, NaN and infinity None."""
        assert dataclasses.is_dataclass(self)
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def __repr__(self) -> str:
        """The class and the summary."""
        return f"<{type(self).__name__}: {self}>"

    def __str__(self) -> str:
        """The summary, in one line."""
        return one_line(self.summary())
