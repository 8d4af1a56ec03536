"""What a stopped calibration has counted, in a file from which it goes on.

Needs no torch, so that places are checked before that is imported.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.calibration_file import digest
from stan_infer.artefacts.npz_file import Field, read_npz
from stan_infer.errors import InputError
from stan_infer.quantisation.histogram import BINS, Histogram
from stan_infer.system import earlier_result, kept
from stan_infer.system.atomic import check_file, new_file

_STATE = {
    "stamp": Field("str", ()),
    "names": Field("str", ("n",)),
    "clips": Field("str", ("c",)),
    "flat": Field("str", ("f",)),
    "exponents": Field("int64", ("n",)),
    "largest": Field("float64", ("n",)),
    "counts": Field("int64", ("n", BINS)),
}
why_keep_state = earlier_result.arrays(_STATE, "a calibration that was stopped")


def check_state(state: Path) -> None:
    """Raise InputError where `state` cannot be written, or is anything but an earlier state."""
    if (reason := _why_foreign(state)) is not None:
        raise InputError(
            f"the run saves its state in {state}, but {reason}: move it away, or give the result "
            "another name"
        )
    check_file(state, why_keep_state)


def remove_state(state: Path) -> None:
    """Remove the state of this run or of an earlier one; any other file of that name stays."""
    if _why_foreign(state) is None:
        state.unlink(missing_ok=True)


def _why_foreign(state: Path) -> str | None:
    """Say why `state` exists and is not a state; None where it is one, or where nothing exists."""
    if not os.path.lexists(state):
        return None
    if state.is_symlink():
        return "it is a link"
    return why_keep_state(state) if state.is_file() else "it is no regular file"


@dataclasses.dataclass
class Collected:
    """Histograms by the linear's path, and the names of the clips in them.

    flat: clips of one flat colour, which were left out. failed: videos that could not be used, with
    the reason.
    """

    ranges: dict[str, Histogram] = dataclasses.field(default_factory=dict)
    clips: list[str] = dataclasses.field(default_factory=list)
    flat: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Known:
    """Videos that have run before, and the largest |x| of each linear's input on them, by path."""

    paths: Collection[Path] = ()
    largest: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class State:
    """The file of the state, and the key of what its counts depend on.

    A state with another key is not used. known: what need not be run for method max.
    """

    path: Path
    key: Mapping[str, Any]
    known: Known = dataclasses.field(default_factory=Known)

    @property
    def stamp(self) -> str:
        """Digest of the key."""
        return digest(dict(self.key))


def save(state: State, found: Collected) -> None:
    """Write the counts; raises InputError where that is not possible."""
    names = sorted(found.ranges)
    packed = io.BytesIO()
    np.savez(
        packed,
        stamp=np.array(state.stamp),
        names=np.array(names),
        clips=np.array(found.clips),
        flat=np.array(found.flat, dtype=str),
        exponents=np.array([found.ranges[n].exponent for n in names], np.int64),
        largest=np.array([found.ranges[n].largest for n in names], np.float64),
        counts=np.stack([found.ranges[n].counts for n in names]),
    )
    try:
        state.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"cannot write {state.path}: {e.strerror}; give another place") from e
    with new_file(state.path, why_keep_state) as temporary:
        temporary.write_bytes(packed.getbuffer())
    count = len(found.clips) + len(found.flat)
    kept.note(state.path, f"keeps the ranges of {count} clips: the same command goes on from there")


def load(state: State) -> Collected | None:
    """The counts of a stopped run with the same key, or None; InputError where they are damaged."""
    if not os.path.lexists(state.path):
        return None
    z = read_npz(state.path, _STATE)
    if str(z["stamp"]) != state.stamp:
        return None
    low, high = np.frexp(z["largest"])[1], 128  # powers of two, of float32
    if (z["counts"] < 0).any() or not np.isfinite(z["largest"]).all() or (z["largest"] < 0).any():
        raise InputError(f"{state.path} holds counts or maxima that are negative or not finite")
    if (z["exponents"] < low).any() or (z["exponents"] > high).any():
        raise InputError(f"{state.path} holds exponents that do not belong to its values")
    rows = zip(z["names"].tolist(), z["exponents"], z["largest"], z["counts"], strict=True)
    ranges = {n: Histogram(int(e), float(m), c) for n, e, m, c in rows}
    return Collected(ranges, z["clips"].tolist(), z["flat"].tolist())
