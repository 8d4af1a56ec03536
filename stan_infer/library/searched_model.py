"""Whether a model may be used to search a library: it must be the one that made the vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from stan_infer.engines.opened import path_of
from stan_infer.engines.session import Session
from stan_infer.errors import InputError, printable
from stan_infer.library.model_files import chosen_weights, model_source
from stan_infer.library.passport import SEARCHED, Comparison, Passport
from stan_infer.system.json_file import plain
from stan_infer.system.result import Say
from stan_infer.video.spec import ClipSpec

_ENGINE = ("engine", "device", "precision")


class Made(Protocol):
    """What is asked of a library."""

    @property
    def path(self) -> Path:
        """Its folder."""

    @property
    def passport(self) -> Passport:
        """What made its vectors."""

    def compare(self, session: Session, *, timeout_s: float = 60.0) -> Comparison:
        """How its canary clips are embedded now."""


def frames_and_decoder(library: Made) -> tuple[int, str]:
    """How the library's videos were read; InputError where its passport does not say that."""
    facts = library.passport["facts"]
    frames, decoder = facts.get("reading.frames"), str(facts.get("reading.decoder", "pyav"))
    if not isinstance(frames, int):
        raise InputError(f"{library.path}: its passport does not say how many frames were read")
    return frames, decoder.partition(" ")[0]


def library_spec(library: Made, session: Session) -> ClipSpec:
    """As the library's videos were read, with the sizes of a session's model."""
    frames, decoder = frames_and_decoder(library)
    return ClipSpec.of(session.config, frames=frames, decoder=decoder)


def find_model(library: Made) -> Path:
    """The checkpoint or folder that made a library, by its name and hash.

    It is looked for in the current folder and beside the library; the passport, which may be a
    stranger's, names no place. Raises InputError where it is not there, or is another one.
    """
    name = library.passport["facts"].get("checkpoint")
    if not isinstance(name, str) or name in ("", ".", "..") or name != os.path.basename(name):
        raise InputError(f"library {library.path} does not name its model: give --model")
    shown = printable(name)
    places = [Path(name), library.path.absolute().parent / name]
    there = [place for place in places if os.path.lexists(place)]
    for place in there:
        if _same_files(library, model_source(str(place), {})):
            return place
    if there:
        raise InputError(
            f"{there[0]} is not the {shown} that made library {library.path}: it has another hash; "
            "give that one with --model"
        )
    raise InputError(
        f"library {library.path} was made by {shown}, which is neither here nor beside it: give it "
        "with --model"
    )


def check_model(
    library: Made, session: Session, *, reads: bool, timeout_s: float, say: Say
) -> Comparison | None:
    """Compare a session with what made a library; return None where its files and config are known.

    The canary clips are embedded where they are not, or where videos are read (`reads`), on which
    engine, decoder and versions act too. Says what differs. Raises CheckError where a canary's
    cosine is below passport.SEARCHED.
    """
    known = _same_weights(library, session) and _same_config(library, session)
    if known:
        facts, now = library.passport["facts"], session.describe()
        old, new = ([f.get(k) for k in _ENGINE] for f in (_engine_of(facts), now))
        if old != new:
            say(f"note: the library was made by engine {_words(old)}; this is {_words(new)}")
        if not reads:
            return None
    compared = library.compare(session, timeout_s=timeout_s)
    compared.check(SEARCHED, library.path, "searching")
    if not known:
        say(
            f"warning: it is not known whether this model made library {library.path}: {compared}; "
            "the canary clips are videos and tell nothing of how texts are embedded"
        )
    elif not compared.same:
        say(f"warning: library {library.path} was made by another stack: {compared}")
    return compared


def _engine_of(facts: dict[str, Any]) -> dict[str, Any]:
    return {k: facts.get(f"engine.{k}") for k in _ENGINE}


def _words(engine: list[Any]) -> str:
    name, device, precision = (printable(str(word)) for word in engine)
    return f"{name} in {precision} on {device}"


def _same_files(library: Made, source: Mapping[str, Any]) -> bool:
    """Whether files are those of the library's model, by what model_source says of them.

    Also a folder that was exported from its checkpoint, or the checkpoint of its folder.
    """
    facts = library.passport["facts"]
    keys = ("model", "checkpoint_sha256")
    return any(
        source[key] is not None and source[key] == facts.get(f"weights.{key}") for key in keys
    )


def _same_weights(library: Made, session: Session) -> bool:
    chosen = chosen_weights(session.options)["set"] == library.passport["facts"].get("weights.set")
    return chosen and _same_files(library, model_source(path_of(session), {}))


def _same_config(library: Made, session: Session) -> bool:
    facts = library.passport["facts"]
    now = {f"config.{k}": plain(v) for k, v in session.config.to_dict().items()}
    return now == {k: v for k, v in facts.items() if k.startswith("config.")}
