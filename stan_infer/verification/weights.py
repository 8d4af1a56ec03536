"""Two stored graphs compared without running them: every weight, and the nodes.

Weights of one type are equal but for the last bits, which another machine's sums may round
otherwise; a weight in 16 bits is within half a step of the fp32 one. So no fault hides behind the
tolerance of a number format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from stan_infer.artefacts.onnx_file import Weight
from stan_infer.verification.stored import OURS, StoredGraph

# Relative step between neighbouring numbers, and the smallest step, by TensorProto's type.
_STEPS = {1: (2.0**-23, 2.0**-149), 10: (2.0**-10, 2.0**-24), 16: (2.0**-7, 2.0**-133)}
_FP32, _INT8, _FP8 = 1, 3, 17
# Of weights in 16 and 8 bits: a number between two steps may be rounded to either if the weight
# that is rounded differs in its last bit. On clean folders no more than 2 in a million did.
FLIPS = 1e-3
# Steps by which fp32 may differ. Scales that follow from a factor of smoothing, which is itself
# taken from a scale, differ by three on B/32.
_LAST_BITS = 8
# Share of a weight's largest element by which any element of fp32 may differ: sums cancel. The
# times and positions that are taken apart from a table of fixed T differ by up to 1e-7.
_CANCELLED = 5e-7
_CONSTANT = "constant/"  # how the names of small constants begin; a number follows


@dataclasses.dataclass(frozen=True)
class Departure:
    """One weight or node that differs."""

    name: str
    error: float  # largest difference relative to the largest element; inf: not comparable
    reason: str
    place: int  # of the first node that reads it, in the graph's order


def departures(
    wanted: StoredGraph, got: StoredGraph, *, whole: bool, but: str = "-"
) -> list[Departure]:
    """What differs, in the order of the graph.

    whole: both graphs are written by this version, so that their nodes are the same too; otherwise
    only our weights of the same name, and attributes of our nodes of the same name, are compared.
    but: how names begin that are not compared.
    """
    found: list[Departure] = []
    places: dict[str, int] = {}
    for i, node in enumerate(wanted.form.nodes):
        for name in node.inputs:
            places.setdefault(name, i)
        for name in node.outputs:
            places[name] = i
    for name in wanted.form.weights if whole else wanted.weights:
        if name.startswith((but, _CONSTANT)):  # constants are compared where nodes read them
            continue
        if name not in got.form.weights:
            if whole:
                found.append(Departure(name, np.inf, "is missing", places.get(name, 0)))
            continue
        error, reason = _weight(wanted, got, name)
        if reason:
            found.append(Departure(name, error, reason, places.get(name, 0)))
    found += [Departure(n, np.inf, r, places[n]) for n, r in _nodes(wanted, got, whole, but)]
    return sorted(found, key=lambda d: d.place)


def count_other_nodes(wanted: StoredGraph, got: StoredGraph, but: str = "-") -> int:
    """How many nodes differ in anything."""
    return sum(1 for _ in _nodes(wanted, got, True, but))


def _nodes(
    wanted: StoredGraph, got: StoredGraph, whole: bool, but: str
) -> Iterator[tuple[str, str]]:
    for name in wanted.makers:
        if name.startswith(but) or not (whole or name.startswith(OURS)):
            continue
        if reason := _node(wanted, got, name, whole):
            yield name, reason


def count_shared(wanted: StoredGraph, got: StoredGraph) -> int:
    """How many weights of ours both graphs have by name."""
    return len(wanted.weights.keys() & got.weights.keys())


def _weight(wanted: StoredGraph, got: StoredGraph, name: str) -> tuple[float, str]:
    """The error of one weight, and what is wrong with it; "" if nothing is."""
    a, b = wanted.form.weights[name], got.form.weights[name]
    if a.dims != b.dims:
        return np.inf, f"has the shape {list(b.dims)} instead of {list(a.dims)}"
    same = a.dtype == b.dtype
    if not same and not {a.dtype, b.dtype} <= _STEPS.keys():
        return np.inf, f"has another type than {wanted.path.name}'s"
    want, have = (g.array(name).ravel() for g in (wanted, got))
    if same and np.array_equal(want, have):
        return 0.0, ""
    with np.errstate(all="ignore"):
        want, have = want.astype(np.float64), have.astype(np.float64)
        apart = np.abs(want - have)
        largest = float(np.abs(want).max(initial=0))
        error = float(apart.max(initial=0)) / largest if largest else np.inf
        allowed, share = _allowed(a, b, want, largest)
    if not np.isfinite(have).all():
        return np.inf, "holds a value that is not finite"
    wrong, moved = int((apart > allowed).sum()), int((apart > 0).sum())
    if wrong:
        if len(want) == 1:
            return error, f"is {have[0]:.6g} instead of {want[0]:.6g}"
        far = f", by up to {error:.1e} of the largest" if largest else ", where all should be 0"
        return error, f"differs in {wrong} of {len(want)} elements{far}"
    if moved > max(3, share * len(want)):
        return error, f"is rounded otherwise in {moved} of {len(want)} elements"
    return error, ""


def _allowed(a: Weight, b: Weight, want: np.ndarray, largest: float) -> tuple[Any, float]:
    """How far each element may be off, and the share of elements that may be."""
    if a.dtype in (_INT8, _FP8) and len(a.dims) < 2:  # a zero point
        return 0.0, 0.0
    if a.dtype == _INT8:
        return 1.0, FLIPS
    if a.dtype == _FP8:
        return np.abs(want) * 2.0**-3 + 2.0**-9, FLIPS
    if a.dtype not in _STEPS:
        return 0.0, 0.0
    if a.dtype != b.dtype:  # one of them was rounded from the other
        step, least = max(_STEPS[a.dtype], _STEPS[b.dtype])
        return np.abs(want) * step * 0.51 + least * 0.51, 1.0
    step, least = _STEPS[a.dtype]
    if a.dtype == _FP32:
        return np.abs(want) * _LAST_BITS * step + largest * _CANCELLED, 1.0
    return np.abs(want) * step + least, FLIPS


def _node(wanted: StoredGraph, got: StoredGraph, name: str, whole: bool) -> str:
    """What is wrong with a node; "" if nothing is."""
    a, b = wanted.makers[name], got.makers.get(name)
    if b is None:
        return "is missing" if whole else ""
    if a.op != b.op:
        return f"is {b.op} instead of {a.op}" if whole else ""
    for key in sorted(a.attributes.keys() | b.attributes.keys()):
        x, y = (_plain(n.attributes.get(key)) for n in (a, b))
        if x != y and (whole or (None not in (x, y) and key != "to")):  # to: the precision
            return f"has {key} {_short(y)} instead of {_short(x)}"
    if whole:
        for i in range(max(len(a.inputs), len(b.inputs))):
            x, y = (n.inputs[i] if i < len(n.inputs) else "nothing" for n in (a, b))
            x, y = _constant(wanted, x), _constant(got, y)
            if x != y:
                return f"reads {_short(y)} instead of {_short(x)}"
    return ""


def _constant(graph: StoredGraph, name: str) -> Any:
    """The value of a small constant, whose name is a number; the name of anything else."""
    weight = graph.form.weights.get(name)
    if weight is None or weight.value is None or not name.startswith(_CONSTANT):
        return name
    return weight.value.tolist()


def _plain(value: Any) -> Any:
    if isinstance(value, Weight):
        return value.dtype, value.dims, None if value.value is None else value.value.tolist()
    return value


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:60]


def is_ours(graph: StoredGraph) -> bool:
    """Whether a graph has the names of our operations."""
    return any(name.startswith(OURS) for name in graph.makers if graph.is_operation(name))
