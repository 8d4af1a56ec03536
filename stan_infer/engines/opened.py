"""A session for the time of a block: the caller's own, or one that is opened and closed for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from stan_infer.engines.open import EngineOptions, open_session
from stan_infer.engines.session import Session
from stan_infer.errors import InputError, nearest

if TYPE_CHECKING:
    from stan_infer.network.model import Stan

_KNOWN = {"engine", "device", "precision", "settings", *EngineOptions.__annotations__}
Source: TypeAlias = Union[str, Path, "Stan", Session]


@contextmanager
def opened(source: Source, words: dict[str, Any], **more: Any) -> Iterator[Session]:
    """Yield a session of the source: one that is open stays open, any other is closed.

    words: what the caller was given for open_session; more: what it adds to them. Raises InputError
    for words beside a session, which has its own, and TypeError for one that nobody knows.
    """
    for name in words.keys() - _KNOWN:
        raise TypeError(f"there is no option {name}{nearest(name, sorted(_KNOWN))}")
    if not isinstance(source, Session):
        with open_session(source, **{**more, **words}) as session:
            yield session
        return
    given = [name for name, value in words.items() if value is not None]
    if given:
        raise InputError(
            f"{', '.join(given)}: the session was opened already; give this to open_session, or "
            "the checkpoint or folder in the session's place"
        )
    yield source


def path_of(source: Source) -> str | None:
    """Return the path or name that a source was given by; None for a model that was loaded."""
    found = source.source if isinstance(source, Session) else source
    return str(found) if isinstance(found, (str, Path)) else None
