"""The lifetime of a session: it is closed once, refuses work afterwards, and can be pickled."""

from __future__ import annotations

import functools
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import FunctionType
from typing import Any, Self

from stan_infer.errors import InputError


class Lifetime(ABC):
    """Something that is open until `close`, and opened again where it is unpickled.

    Every public method and property of a class that inherits this raises InputError once it is
    closed, without a line in the class itself.
    """

    _is_closed = False
    _reopen: tuple[Callable[..., Any], tuple[Any, ...]] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Guard what the class defines; what it inherits was guarded in its own class."""
        super().__init_subclass__(**options)
        for name, value in list(vars(cls).items()):
            if name.startswith("_") or name == "close":
                continue
            if isinstance(value, FunctionType):
                setattr(cls, name, _while_open(value))
            elif isinstance(value, property) and value.fget is not None:
                setattr(cls, name, property(_while_open(value.fget), doc=value.__doc__))

    @abstractmethod
    def _free(self) -> None:
        """Free the memory; called at most once, and nothing else is called after it."""

    def close(self) -> None:
        """Free the memory; afterwards everything but `close` raises InputError."""
        if not self._is_closed:
            self._is_closed = True
            self._free()

    def reopened_by(self, function: Callable[..., Any], *given: Any) -> None:
        """Note what opens it where it is unpickled: `function(*given)`, all of which pickle."""
        self._reopen = function, given

    def __enter__(self) -> Self:
        """Return self; the block's end closes it."""
        self._check_open()
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle how it was opened; copy.copy opens it again, too."""
        self._check_open()
        if self._reopen is None:
            raise pickle.PicklingError(
                f"this {type(self).__name__} was made by its class; open_session makes sessions "
                "that can be pickled"
            )
        return self._reopen

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError("this session is closed: open the model again with open_session")


def _while_open(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(self: Lifetime, *args: Any, **options: Any) -> Any:
        self._check_open()
        return function(self, *args, **options)

    return guarded
