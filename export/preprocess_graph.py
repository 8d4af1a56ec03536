"""preprocess.onnx: resizes and crops decoded frames of any size, byte for byte as OpenCV does.

OpenCV's INTER_LINEAR on uint8 (without antialias) was found by comparison to compute this way:
coordinates (d + 0.5) scale - 0.5 in double, rounded to float; weights of 11 bits; columns first, to
15 bits after a shift by 4; then rows, by products whose low 16 bits are dropped. The graph does the
same in float32, on integers below 2^24, which is exact in every runtime. It computes only the
pixels that the crop keeps. In a runtime without double (OpenVINO) pixels differ by at most one
level, up to frames of 4k: its coordinates have small errors; its sizes have none, because they are
computed in integers.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from onnx import TensorProto

from stan_infer.export.onnx_graph import GraphWriter

_ONE = 2048.0  # weight 1 in OpenCV's 11 bits
_LONGEST = 16384  # for frames whose shorter side is longer, a size of exactly n + 1/2 rounds up


def write_preprocess(path: Path, *, short_side: int, crop: int, opset: int) -> None:
    """Write the graph: frames uint8 [n, height, width, 3] -> pixels uint8 [n, crop, crop, 3].

    The shorter side becomes `short_side`, the longer one int(side * scale + 0.5); then the centred
    square of `crop` pixels is kept. `crop` is at most `short_side`. Memory of a run: a few floats
    per pixel of the output, and `crop` rows of each frame.
    """
    graph = GraphWriter("preprocess", path.parent, opset)
    frames = graph.input("frames", TensorProto.UINT8, ["n", "height", "width", 3])
    with graph.scope("preprocess"):
        sides = [graph.node("Shape", [frames], start=i, end=i + 1) for i in (1, 2)]
        doubles = [graph.node("Cast", [s], to=TensorProto.DOUBLE) for s in sides]
        sizes = _resized(graph, sides, short_side)
        rows, columns = (
            _positions(graph, name, side, double, size, crop)
            for name, side, double, size in zip(
                ("rows", "columns"), sides, doubles, sizes, strict=True
            )
        )
        _resize(graph, frames, rows, columns, crop)
    # TensorRT takes uint8 only as inputs and outputs of a network, so the last Cast is the output.
    graph.rename_last("pixels")
    graph.output("pixels", "pixels", ["n", crop, crop, 3], TensorProto.UINT8)
    graph.save(path)


def _resized(g: GraphWriter, sides: list[str], short_side: int) -> list[str]:
    """int(side * scale + 0.5) of both sides, as computed in doubles, by integers alone.

    That is side * short_side / short, rounded half up. The exception: it ends in exactly one half,
    and scale's rounding error takes the product below that. For a product of h halves, this is so
    if h error < -2^floor(log2 h), with the error that _scale_errors gives.
    """
    with g.scope("sizes"):
        two = g.constant([2])
        # At least 1, because runtimes differ in integers divided by 0. Gather refuses such frames.
        short = g.node("Max", [g.node("Min", sides), g.constant([1])])
        twice = g.node("Mul", [short, two])
        errors, unit = _scale_errors(short_side)
        index = g.node("Div", [short, g.constant([unit])])
        index = g.node("Min", [index, g.constant([len(errors) - 1])])
        error = g.node("Gather", [g.weight("scale_errors", errors), index])
        each = 2.0 ** np.arange(31)
        powers, ulps = g.constant(each, np.float32), g.constant([0, *each], np.float32)
        found = []
        for side in sides:
            total = g.node("Add", [g.node("Mul", [side, g.constant([2 * short_side])]), short])
            size = g.node("Div", [total, twice])
            tie = g.node("Equal", [g.node("Mul", [size, twice]), total])
            halves = g.node("Sub", [g.node("Mul", [size, two]), g.constant([1])])
            halves = g.node("Cast", [halves], to=TensorProto.FLOAT)
            below = g.node("Cast", [_not_less(g, halves, powers)], to=TensorProto.INT64)
            count = g.node("ReduceSum", [below, g.constant([0])], keepdims=1)
            ulp = g.node("Gather", [ulps, count])  # 0 for no half at all
            carried = g.node("Less", [g.node("Mul", [halves, error]), g.node("Neg", [ulp])])
            down = g.node("Cast", [g.node("And", [tie, carried])], to=TensorProto.INT64)
            found.append(g.node("Sub", [size, down]))
        return found


def _scale_errors(short_side: int) -> tuple[np.ndarray, int]:
    """Relative rounding errors of scale, times 2^53, and the unit of their index.

    Entry i, float32, is for the double short_side / (i unit); a product can only end in one half if
    the shorter side is a multiple of unit. The last entry, 0, is for all longer sides.
    """
    unit = 2 * (short_side & -short_side)
    sides = range(unit, _LONGEST + 1, unit)
    exact = ((Fraction(short_side / n), Fraction(short_side, n)) for n in sides)
    errors = [0.0, *(float((double / ratio - 1) * 2**53) for double, ratio in exact), 0.0]
    return np.array(errors, np.float32), unit


def _positions(
    g: GraphWriter, name: str, side: str, double: str, size: str, crop: int
) -> tuple[str, str, str, str]:
    """For each kept row or column, the indices of its two sources and their weights (0 to 2048).

    name: "rows" or "columns". side: of the frame, as integer; double: the same as double. size: of
    that side after the resize.
    """
    one, zero = g.constant([1]), g.constant([0])
    with g.scope(name):
        half = g.constant([0.5], np.float64)
        start = g.node("Div", [g.node("Sub", [size, g.constant([crop])]), g.constant([2])])
        kept = g.node("Add", [g.constant(np.arange(crop)), start])
        kept, size = (g.node("Cast", [v], to=TensorProto.DOUBLE) for v in (kept, size))
        inverse = g.node("Div", [size, double])
        step = g.node("Div", [g.constant([1.0], np.float64), inverse])
        at = g.node("Sub", [g.node("Mul", [g.node("Add", [kept, half]), step]), half])
        at = g.node("Cast", [at], to=TensorProto.FLOAT)
        floor = g.node("Floor", [at])
        part = g.node("Sub", [at, floor])
        low = g.node("Cast", [floor], to=TensorProto.INT64)
        last = g.node("Sub", [side, one])
        if name == "columns":
            # Beyond an edge, OpenCV gives the outermost column weight 1; rows keep two weights.
            inside = g.node("And", [_not_less(g, low, zero), g.node("Less", [low, last])])
            part = g.node("Mul", [part, g.node("Cast", [inside], to=TensorProto.FLOAT)])
        high = g.node("Add", [low, one])
        indices = [g.node("Min", [g.node("Max", [i, zero]), last]) for i in (low, high)]
        rest = g.node("Sub", [g.constant([1.0], np.float32), part])
        scale11 = g.constant([_ONE], np.float32)
        weights = [g.node("Round", [g.node("Mul", [w, scale11])]) for w in (rest, part)]
    return indices[0], indices[1], weights[0], weights[1]


def _not_less(g: GraphWriter, a: str, b: str) -> str:
    return g.node("Not", [g.node("Less", [a, b])])


def _resize(
    g: GraphWriter,
    frames: str,
    rows: tuple[str, str, str, str],
    columns: tuple[str, str, str, str],
    crop: int,
) -> None:
    terms = []
    for r, name in enumerate(("upper", "lower")):
        with g.scope(name):
            # Gathered as uint8, which takes a quarter of the memory of floats.
            line = g.node("Gather", [frames, rows[r]], axis=1)
            sums = []
            for c in (0, 1):
                x = g.node("Gather", [line, columns[c]], axis=2)
                x = g.node("Cast", [x], to=TensorProto.FLOAT)
                weight = g.node("Reshape", [columns[2 + c], g.constant([crop, 1])])
                sums.append(g.node("Mul", [x, weight]))
            x = _shifted(g, g.node("Add", sums), 16)  # at most 32640
            terms.append(
                _high_product(g, x, g.node("Reshape", [rows[2 + r], g.constant([crop, 1, 1])]))
            )
    total = g.node("Add", [g.node("Add", terms), g.constant(2, np.float32)])
    g.node("Cast", [_shifted(g, total, 4)], to=TensorProto.UINT8)


def _shifted(g: GraphWriter, x: str, divisor: int) -> str:
    """floor(x / divisor), exact for a power of two."""
    return g.node("Floor", [g.node("Mul", [x, g.constant(1 / divisor, np.float32)])])


def _high_product(g: GraphWriter, x: str, weight: str) -> str:
    """floor(x weight / 65536), in two parts because the product can have more than 24 bits.

    With x = 256 h + l it is floor((weight h + floor(weight l / 256)) / 256).
    """
    high = _shifted(g, x, 256)
    low = g.node("Sub", [x, g.node("Mul", [high, g.constant(256, np.float32)])])
    carry = _shifted(g, g.node("Mul", [low, weight]), 256)
    return _shifted(g, g.node("Add", [g.node("Mul", [high, weight]), carry]), 256)
