"""Find the graph of a tower that is suspected, and what it should be.

What it should be is recomputed from the other side's checkpoint or fp32 graph, in the precision of
the suspected graph, or is the other side's graph itself where both are of one kind.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stan_infer.artefacts.calibration_record import Told
from stan_infer.artefacts.opsets import OPSETS
from stan_infer.artefacts.precision import EIGHT_BITS, TOLERANCES
from stan_infer.errors import InputError, MissingError
from stan_infer.export.writer import writer
from stan_infer.system.packages import require
from stan_infer.verification.cut import Cut
from stan_infer.verification.operations import Compared, Run, graph_operations
from stan_infer.verification.side import Claims, Side
from stan_infer.verification.stored import StoredGraph
from stan_infer.verification.weights import Departure, is_ours

if TYPE_CHECKING:
    from stan_infer.artefacts.calibration_record import Record

# Largest difference of one operation on the same inputs, relative to its largest value: fp32's
# rounding alone. Where one graph is in fp32 and the other in 16 bits it is that of TOLERANCES.
OPERATION = 1e-4
# Of a linear in 8 bits: the root mean square, and single values. A number between two levels may be
# rounded to either. On B/32 with outlier channels that measures 9e-5 and 1e-3; a weight scale x 1.1
# measures 0.1, a bias dropped 3e-2.
ROOT_MEAN_SQUARE, LEVEL = 1e-3, 2e-2


@dataclasses.dataclass(kw_only=True)
class Suspect:
    """A graph that is held to a reference, and how it departed."""

    role: str
    side: Side
    other: Side
    precision: str
    stored: StoredGraph
    wanted: StoredGraph  # what its file should hold
    whole: bool  # the nodes should be the same too
    run: Callable[[], Run]  # makes the reference's operations; MissingError without onnx
    reference: str  # in words
    tolerance: float = OPERATION  # of an operation
    but: str = "-"  # how the names of weights begin that are not compared
    letter: str = "A"  # of the other side
    calibration: Record | None = None
    smoothed: Callable[[], Run] | None = None  # the exact network's operations, smoothed
    is_8_bits: bool = False  # and recomputed
    is_written: bool = False  # `wanted` is a file of ours
    unjudged: str = ""  # why nodes may differ
    weights: list[Departure] = dataclasses.field(default_factory=list)
    compared: list[Compared] = dataclasses.field(default_factory=list)

    def judged(self, one: Compared) -> list[tuple[str, float, float]]:
        """What is compared of an operation: where, error and tolerance."""
        if f"{self.wanted.operation_of(one.name)}/weight_scale" not in self.wanted.weights:
            return [(f"operation {one.name}", one.error, self.tolerance)]
        most = max(self.tolerance, ROOT_MEAN_SQUARE)
        return [
            (f"operation {one.name}", one.error, max(self.tolerance, LEVEL)),
            (f"operation {one.name}, root mean square", one.rms, most),
        ]

    def departed(self, one: Compared) -> bool:
        """Whether an operation differs more than it may."""
        return any(not error <= most for _, error, most in self.judged(one))

    @property
    def source(self) -> Side:
        """The side that takes its input as the reference's operations do."""
        return self.side if self.is_written else self.other


def find_suspect(pair: tuple[Side, Side], role: str, folder: Path) -> Suspect | str:
    """Return the suspected graph of a tower, or the reason why there is none.

    folder: for a graph that is written to compare with. Raises InputError for a damaged file.
    """
    a, b = pair
    side, other = (b, a) if b.graph_path(role) else (a, b)
    if _claimed(other, role) not in (None, "fp32") and _claimed(side, role) == "fp32":
        side, other = other, side  # the exact one is the reference
    path = side.graph_path(role)
    if path is None:
        return f"neither side has an ONNX graph of the {role} tower"
    stored = StoredGraph(path)
    if not is_ours(stored):
        if side.claims(role).is_fused:
            raise InputError(
                f"{path.name} has none of the names of the fused graph, and the manifest says that "
                "it is one"
            )
        return f"{path.name} has none of the names of the fused graph (export --graph fused)"
    if stored.form.opset not in OPSETS:
        return f"{path.name} has opset {stored.form.opset}, which export does not write"
    claims, letter = side.claims(role), "AB"[other is b]
    precision = claims.precision or stored.precision
    input = "uint8" if side.form.dtype == "uint8" else "float"
    beside = other.graph_path(role)
    if precision != "fp32" or beside is None:
        try:
            exact = other.exact_weights(role, input)
        except MissingError as e:
            return str(e)
        if exact is not None:
            return _recomputed(role, (side, other), stored, exact, folder, letter)
    if beside is None:
        return f"one side has no {role} tower"
    if os.path.samefile(path, beside):
        return f"{path.name} is the same file on both sides"
    return _beside(role, (side, other), stored, StoredGraph(beside), letter)


def _claimed(side: Side, role: str) -> str | None:
    """The precision of a side's graph; None if it has none."""
    path = side.graph_path(role)
    return (side.claims(role).precision or StoredGraph(path).precision) if path else None


def _recomputed(
    role: str,
    sides: tuple[Side, Side],
    stored: StoredGraph,
    exact: tuple[Any, Any],
    folder: Path,
    letter: str,
) -> Suspect:
    from stan_infer.verification.recomputed import GraphKind, operations, recompute, write_graph

    side, other = sides
    claims = side.claims(role)
    precision = claims.precision or stored.precision
    input = "uint8" if side.form.dtype == "uint8" else "float"
    kind = GraphKind(role, precision, input, claims.batch, claims.frames)
    calibration = side.calibration() if precision in EIGHT_BITS else None
    weights = recompute(exact[0], kind, stored, calibration)
    held = side.labels() if role == "video" and "scores" in stored.form.outputs else None
    written = write_graph(
        weights, kind, exact[1], stored.form.opset, folder, held[2] if held else None
    )
    words = f"{letter}'s weights"
    if precision in EIGHT_BITS:
        words = f"{letter} in {precision}, recomputed with calibration.json"
        if calibration is None:
            words = f"{letter} in {precision}, with the graph's own scales: no calibration.json"
    elif precision != "fp32":
        words += f" in {precision}"
    wrong = _contradictions(calibration, precision) if calibration else []
    if stored.precision != precision:
        reason = f"is in {stored.precision}, and the manifest says {precision}"
        wrong.insert(0, Departure(stored.path.name, math.inf, reason, 0))
    return Suspect(
        role=role,
        side=side,
        other=other,
        precision=precision,
        stored=stored,
        wanted=StoredGraph(written),
        whole=claims.writer == writer(),
        unjudged=_author(claims),
        run=lambda: operations(weights, kind),
        reference=words,
        letter=letter,
        calibration=calibration,
        is_8_bits=precision in EIGHT_BITS,
        is_written=True,
        smoothed=lambda: operations(
            recompute(exact[0], kind, stored, calibration, exact=True), kind
        ),
        weights=wrong,
    )


def _beside(
    role: str, sides: tuple[Side, Side], stored: StoredGraph, wanted: StoredGraph, letter: str
) -> Suspect | str:
    side, other = sides
    (a, x), (b, y) = ((s.claims(role), g) for s, g in ((other, wanted), (side, stored)))
    kinds = [c.precision or g.precision for c, g in ((a, x), (b, y))]
    if kinds[0] != kinds[1] and set(kinds) & set(EIGHT_BITS):
        return f"{kinds[1]} cannot be recomputed from {wanted.path.name} in {kinds[0]}"
    if not is_ours(wanted):
        return f"{wanted.path.name} has none of the names of the fused graph"
    same_form = side.form == other.form
    is_same = same_form and dataclasses.replace(a, writer=b.writer) == b
    tolerance = OPERATION if kinds[0] == kinds[1] else max(TOLERANCES[k] for k in kinds)
    return Suspect(
        role=role,
        side=side,
        other=other,
        precision=kinds[1],
        stored=stored,
        wanted=wanted,
        whole=bool(is_same and a.writer and a.writer == b.writer),
        unjudged=_author(b) if is_same else "of another kind",
        run=lambda: graph_operations(Cut(wanted.path)),
        reference=f"{letter}'s graph",
        letter=letter,
        tolerance=tolerance,
        but="-" if same_form or role == "text" else "video/patches",
    )


def _author(claims: Claims) -> str:
    if claims.writer is None:
        return "no manifest says which export wrote it"
    return f"it was written by another export, {claims.writer[:40]}"


def find_helper(pair: tuple[Side, Side], role: str, folder: Path) -> Suspect | str | None:
    """Return a folder's graph "preprocess" or "score", which follows from the other side's config.

    It is a reason if it cannot be compared, None if neither side has the graph.
    """
    a, b = pair
    side, other = (b, a) if b.graph_path(role) else (a, b)
    path = side.graph_path(role)
    if path is None:
        return None
    stored, config, written = StoredGraph(path), other.config, folder / f"{role}.onnx"
    if config is None or stored.form.opset not in OPSETS:
        return f"the other side has no config, or opset {stored.form.opset} is none of export's"
    if role == "score" and not config.is_mug:
        return "the other side has no Mug head"
    try:
        for package in ("torch", "onnx"):
            require(package, "writing a graph to compare with", "cpu")
    except MissingError as e:
        return str(e)
    from stan_infer.verification.recomputed import write_helper

    write_helper(role, config, stored.form.opset, written)
    claims, letter = side.claims(role), "AB"[other is b]
    return Suspect(
        role=role,
        side=side,
        other=other,
        precision=stored.precision,
        stored=stored,
        wanted=StoredGraph(written),
        whole=claims.writer == writer(),
        unjudged=_author(claims),
        run=lambda: lambda given, note: None,
        reference=f"{role}.onnx: {letter}'s config",
        letter=letter,
        is_written=True,
    )


def _contradictions(record: Record, precision: str) -> list[Departure]:
    """Scales of calibration.json that do not follow from the ranges that it records."""
    from stan_infer.network.eight_bits import NUMBER_FORMATS

    found, top = [], NUMBER_FORMATS[precision].largest
    for name, entry in record["tensors"].items():
        told = cast(Told, entry)
        used, scale = told.get("amax_used"), float(told["scale"])
        if not isinstance(used, (int, float)):
            continue
        most = told.get("absmax")
        all_fit = record.get("method") == "max"
        if isinstance(most, (int, float)) and (
            used > most * (1 + 1e-5) or (all_fit and used < most * (1 - 1e-5))
        ):
            reason = f"has the range {used:.3g} in calibration.json, and the largest was {most:.3g}"
            found.append(Departure(f"{name}/x_scale", math.inf, reason, 0))
        elif not math.isclose(used / top, scale, rel_tol=1e-5, abs_tol=1e-30):
            reason = f"is {scale:.3g} in calibration.json, whose range gives {used / top:.3g}"
            error = abs(used / top - scale) / max(abs(scale), 1e-30)
            found.append(Departure(f"{name}/x_scale", error, reason, 0))
    return found
