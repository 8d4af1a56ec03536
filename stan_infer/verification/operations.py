"""The operations of an ONNX graph, each run alone on the reference's values.

So a fault in one operation does not reach the next, rounding does not add up, and 8 bits round to
the same levels on both sides: each operation agrees to fp32's rounding, whatever the precision.
Only a number between two of 255 levels may be rounded to either, which is rare, so that a linear in
8 bits is judged by the root mean square too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from stan_infer.artefacts.difference import relative_error
from stan_infer.errors import InputError
from stan_infer.verification.cut import Cut
from stan_infer.verification.stored import BLOCK

Note = Callable[[str, np.ndarray], None]  # called with an operation's name and value
Run = Callable[[np.ndarray, Note], None]  # of a tower's input


@dataclasses.dataclass(frozen=True)
class Compared:
    """One operation on one input."""

    name: str
    error: float  # largest difference relative to the largest wanted value; inf: not comparable
    rms: float  # root of the mean square of the difference, relative to that of the wanted values
    reason: str = ""


def graph_operations(cut: Cut) -> Run:
    """Return a function that runs an ONNX graph block by block, and notes every operation."""

    def run(given: np.ndarray, note: Note) -> None:
        known: dict[str, np.ndarray] = {}
        for names in _blocks(cut):
            made = dict(zip(names, cut.run(names, known, given), strict=True))
            known |= {n: v for n, v in made.items() if BLOCK.fullmatch(n)}
            for name, value in made.items():
                note(name, value)

    return run


def compare_operations(
    cut: Cut, reference: Run, given: tuple[np.ndarray, np.ndarray], say: Callable[[str], None]
) -> list[Compared]:
    """Run each operation of a graph on the reference's values, in the reference's order.

    given: the same input of the tower as the reference and as the graph takes it. Raises InputError
    for a graph that has no names of ours.
    """
    values, inner = set(cut.named), set(cut.stored.makers)
    found: list[Compared] = []
    known: dict[str, np.ndarray] = {}
    new: dict[str, np.ndarray] = {}

    def note(name: str, value: np.ndarray) -> None:
        here = name
        if name.endswith("/Add"):  # a linear with its bias, before an activation or residual
            in_8_bits = f"{name[:-3]}Sub"  # where Add is another node, as of a gelu
            here = in_8_bits if in_8_bits in inner else name
        if here not in (inner if name.endswith("/Add") else values):
            return
        new[here] = value
        if here in values and BLOCK.fullmatch(here):
            say(f"operations of {here}")
            found.extend(_compare(cut, new, {**known, **new}, given[1]))
            known[here] = value
            new.clear()

    reference(given[0], note)
    if not found:
        raise InputError(f"{cut.stored.path.name} has no operation with a name of ours")
    return found


def _blocks(cut: Cut) -> Iterator[list[str]]:
    """Names of operations, block by block."""
    names: list[str] = []
    for name in cut.named:
        names.append(name)
        if BLOCK.fullmatch(name):
            yield names
            names = []


def _compare(
    cut: Cut,
    wanted: dict[str, np.ndarray],
    known: dict[str, np.ndarray],
    given: np.ndarray,
) -> list[Compared]:
    names = list(wanted)
    try:
        got = cut.run(names, known, given)
    except InputError as e:
        if len(names) == 1:
            return [Compared(names[0], math.inf, math.inf, str(e)[:300])]
        return [c for n in names for c in _compare(cut, {n: wanted[n]}, known, given)]
    return [_compared(n, g, wanted[n]) for n, g in zip(names, got, strict=True)]


def _compared(name: str, got: np.ndarray, want: np.ndarray) -> Compared:
    if got.shape != want.shape:
        reason = f"its shape is {list(got.shape)} instead of {list(want.shape)}"
        return Compared(name, math.inf, math.inf, reason)
    want = want.astype(np.float64)
    error = relative_error(got, want, max(float(np.abs(want).max(initial=0)), 1e-30))
    if not math.isfinite(error):
        return Compared(name, math.inf, math.inf, "values that are not finite")
    rms = float(np.linalg.norm(got - want) / max(float(np.linalg.norm(want)), 1e-30))
    return Compared(name, error, rms)
