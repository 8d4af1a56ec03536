"""What a run is asked for, against what its library was made with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stan_infer.engines.open import engine_named
from stan_infer.engines.opened import Source, path_of
from stan_infer.engines.session import Session
from stan_infer.errors import InputError
from stan_infer.library.model_files import chosen_weights, model_source
from stan_infer.library.passport import (
    Comparison,
    Passport,
    changed_facts,
    facts_of,
    windows_of,
)
from stan_infer.system.json_file import plain
from stan_infer.system.result import Say
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows

_OF_ENGINES = ("engine", "device", "precision", "graph", "provider")


def check_ways(
    folder: Path, passport: Passport, batch: int, windows: Windows | None, frames: int | None
) -> None:
    """Raise InputError where the videos would be divided or sampled in another way.

    frames: None where it is not known yet.
    """
    read = passport["facts"].get("reading.frames")
    was, now = (passport["batch"], windows_of(passport)), (batch, windows)
    if was != now or frames not in (None, read):
        old, new = (f"--batch {b}, {_parts(parts)}" for b, parts in (was, now))
        if frames is not None:
            old, new = f"{old}, --frames {read!r}", f"{new}, --frames {frames}"
        raise InputError(
            f"library {folder} was made with {old}, this run has {new}: give the same, or embed "
            "into a new library"
        )


def tell_unlike(
    folder: Path,
    passport: Passport,
    source: Source,
    words: Mapping[str, Any],
    decoder: str,
    say: Say,
) -> None:
    """Say what a run asked for that is not the library's, where nothing is new and no model opened.

    words: for open_session. Raises InputError for a source or an engine that does not exist.
    """
    facts = passport["facts"]
    if isinstance(source, Session):
        frames = facts.get("reading.frames")
        spec = ClipSpec.of(
            source.config, frames=frames if isinstance(frames, int) else None, decoder=decoder
        )
        now = facts_of(source, model_source(path_of(source), {}), spec)
        found = changed_facts(facts, now)
    else:
        now = _given(path_of(source), words) | _decoder(facts, decoder)
        found = {k: [facts.get(k), v] for k, v in now.items() if not _alike(k, facts.get(k), v)}
    if found:
        say(
            f"warning: library {folder} was made with other options ("
            f"{Comparison(found, (), 1.0).differences()}); nothing is new, so they were not used"
        )


def _given(name: str | None, words: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that are known of a model before it is opened, with the words for open_session."""
    now: dict[str, Any] = {}
    if name is not None:
        if ":" not in name and not os.path.exists(name):
            raise InputError(f"{name}: no such checkpoint or folder")
        now["weights.model"] = model_source(name, {})["model"]
    given = {k: v for k, v in words.items() if v is not None}
    if "engine" in given:
        engine_named(given["engine"])
    now |= {f"engine.{k}": given[k] for k in _OF_ENGINES if k in given}
    if scales := chosen_weights(given)["scales"]:
        now["weights.scales"] = scales
    settings = dict(given.get("settings") or {})
    if "weights" in settings:
        now["weights.set"] = settings.pop("weights")
    return now | {f"config.{k}": plain(v) for k, v in settings.items()}


def _decoder(facts: Mapping[str, Any], decoder: str) -> dict[str, Any]:
    name = "pyav" if decoder == "auto" else decoder
    was = str(facts.get("reading.decoder"))
    return {} if was.partition(" ")[0] == name else {"reading.decoder": name}


def _alike(key: str, old: Any, new: Any) -> bool:
    if key == "engine.provider":  # "cuda-graph", CUDAExecutionProvider
        name = str(old).lower().removesuffix("executionprovider").removeprefix("nv")
        return name == str(new).removesuffix("-graph").replace("-", "")
    return old == new or (key == "engine.device" and old == f"{new}:0")


def _parts(windows: Windows | None) -> str:
    return "whole videos" if windows is None else f"--windows {windows}"
