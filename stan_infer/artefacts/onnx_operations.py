"""The sizes of each ONNX operation's outputs, for the operations that a graph of ours may have.

They are worked out as in ONNX's shape inference, together with those small arrays of integers on
which later sizes depend. The keys of OPERATIONS are the operations that our exporters write, and
torch.onnx for the reference graph. Semantics: ONNX operator sets 18 to 25.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from stan_infer.artefacts.onnx_file import DTYPES, MAX_RANK, Node, Weight

KNOWN = 64  # the most elements of a value whose elements are worked out, not only its sizes
LARGEST = 2**40  # elements of one value: far beyond any use, and sums of such numbers stay exact
_BOOL, _INT64, _FLOAT = 9, 7, 1
# Runtimes differ in fp16, in sums and powers of floats, and in integers beyond 32 bits (OpenVINO).
_WHOLE, _LIMIT = ("int32", "int64", "uint8", "bool"), 2**31 - 1


@dataclass(frozen=True)
class Value:
    """The sizes of a value of a graph."""

    dtype: int  # TensorProto.DataType
    dims: tuple[int, ...]
    known: np.ndarray | None = None  # its elements, where they are few and known
    folds: bool = False  # computed from constants only, so a runtime may compute it once

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.elements * DTYPES[self.dtype][1] // 8


class CannotTell(Exception):
    """The sizes of a node's outputs do not follow from those of its inputs."""


Taken = list[Value | None]  # the inputs of a node; None where an optional one is not given
# A node and its inputs -> its outputs, and its work beyond writing their elements (see Need.work).
Rule = Callable[[Node, Taken], tuple[list[Value], int]]


def _need(taken: Taken, i: int) -> Value:
    value = taken[i] if i < len(taken) else None
    if value is None:
        raise CannotTell(f"input {i} is missing")
    return value


def _numbers(taken: Taken, i: int) -> list[int] | None:
    """The elements of an input that is a list of integers; None where it is not given."""
    if i >= len(taken) or taken[i] is None:
        return None
    known = _need(taken, i).known
    if known is None or known.dtype.kind not in "iu" or known.ndim > 1:
        raise CannotTell(f"input {i} is not a known list of integers")
    return [int(n) for n in known.ravel()]


def whole(array: np.ndarray | None, dtype: int, *, computed: bool = True) -> np.ndarray | None:
    """The elements if every runtime has the same: few integers, within 32 bits if computed."""
    if array is None or array.size > KNOWN or DTYPES[dtype][0] not in _WHOLE:
        return None
    if computed and array.size and not -_LIMIT <= int(array.min()) <= int(array.max()) <= _LIMIT:
        return None
    return array.astype(DTYPES[dtype][0])


def _elementwise(compute: Any, dtype: int | None = None, first: int = 0) -> Rule:
    """The rule of an elementwise operation with broadcasting; compute: in numpy, None if floats.

    dtype: of the output; None: that of input number `first`.
    """

    def rule(node: Node, taken: Taken) -> tuple[list[Value], int]:
        given = [v for v in taken if v is not None]
        dims = np.broadcast_shapes(*(v.dims for v in given))
        kind = dtype or _need(taken, first).dtype
        found = None
        values = [k for v in given if (k := whole(v.known, v.dtype)) is not None]
        if compute and prod(dims) <= KNOWN and len(values) == len(given):
            found = whole(np.broadcast_to(compute(*values), dims), kind)
        return [Value(kind, dims, found)], 0

    return rule


def _typed_and_sized(dtype: int, dims: int) -> Rule:
    """The rule of an output with the dtype of one input and the sizes of one, given by number."""
    return lambda _, taken: ([Value(_need(taken, dtype).dtype, _need(taken, dims).dims)], 0)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not np.all(b > 0) or not np.all(a >= 0):
        raise CannotTell("a division by 0, or with a negative number")
    return a // b


def _cast(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x, to = _need(taken, 0), int(node.attributes["to"])
    return [Value(to, x.dims, whole(x.known, to))], 0


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise CannotTell(f"axis {axis} of {rank}")
    return axis % rank


def _shape(node: Node, taken: Taken) -> tuple[list[Value], int]:
    dims = _need(taken, 0).dims[node.attributes.get("start", 0) : node.attributes.get("end")]
    return [Value(_INT64, (len(dims),), np.array(dims, np.int64))], 0


def _reshape(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x, wanted = _need(taken, 0), _numbers(taken, 1)
    if wanted is None or len(wanted) > MAX_RANK or wanted.count(-1) > 1:
        raise CannotTell("its shape")
    if not node.attributes.get("allowzero", 0):
        wanted = [x.dims[i] if n == 0 else n for i, n in enumerate(wanted)]
    if -1 in wanted:
        rest = -prod(wanted)
        wanted[wanted.index(-1)] = x.elements // rest if rest else 0
    if prod(wanted) != x.elements:
        raise CannotTell(f"{x.dims} is not {wanted}")
    return _reshaped(x, wanted)


def _reshaped(x: Value, dims: Iterable[int]) -> tuple[list[Value], int]:
    dims = tuple(dims)
    return [Value(x.dtype, dims, None if x.known is None else x.known.reshape(dims))], 0


def _axes(node: Node, taken: Taken) -> list[int] | None:
    """The axes of a node: an input from operator set 18 on, no longer an attribute."""
    if "axes" in node.attributes:
        raise CannotTell("an attribute that its operator set does not have")
    return _numbers(taken, 1)


def _squeeze(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x, axes = _need(taken, 0), _axes(node, taken)
    rank = len(x.dims)
    gone = {_axis(a, rank) for a in axes} if axes is not None else None
    dims = [n for i, n in enumerate(x.dims) if (n != 1 if gone is None else i not in gone)]
    if prod(dims) != x.elements:
        raise CannotTell("a size that is not 1")
    return _reshaped(x, dims)


def _unsqueeze(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x, axes = _need(taken, 0), _axes(node, taken)
    if axes is None or len(axes) + len(x.dims) > MAX_RANK:
        raise CannotTell("its axes")
    rank = len(x.dims) + len(axes)
    at, rest = {_axis(a, rank) for a in axes}, iter(x.dims)
    return _reshaped(x, (1 if i in at else next(rest) for i in range(rank)))


def _expand(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x, wanted = _need(taken, 0), _numbers(taken, 1) or []
    if len(wanted) > MAX_RANK:
        raise CannotTell("its shape")
    dims = np.broadcast_shapes(x.dims, tuple(wanted))
    known = None
    if x.known is not None and prod(dims) <= KNOWN:
        known = np.broadcast_to(x.known, dims)
    return [Value(x.dtype, dims, known)], 0


def _concat(node: Node, taken: Taken) -> tuple[list[Value], int]:
    parts = [_need(taken, i) for i in range(len(taken))]
    axis = _axis(int(node.attributes["axis"]), len(parts[0].dims))
    others = {v.dims[:axis] + v.dims[axis + 1 :] for v in parts}
    if len(others) != 1 or len({v.dtype for v in parts}) != 1:
        raise CannotTell("parts of different sizes")
    total = sum(v.dims[axis] for v in parts)
    dims = (*parts[0].dims[:axis], total, *parts[0].dims[axis + 1 :])
    known = [v.known for v in parts if v.known is not None]
    is_known = prod(dims) <= KNOWN and len(known) == len(parts)
    return [Value(parts[0].dtype, dims, np.concatenate(known, axis) if is_known else None)], 0


def _split(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x, sizes = _need(taken, 0), _numbers(taken, 1)
    if "split" in node.attributes or not node.outputs:
        raise CannotTell("its parts")
    axis, count = _axis(node.attributes.get("axis", 0), len(x.dims)), len(node.outputs)
    size = x.dims[axis]
    if sizes is None:
        step = -(-size // count)
        sizes = [min(step, size - i * step) for i in range(count)]
    if sum(sizes) != size or min(sizes, default=0) < 0 or len(sizes) != count:
        raise CannotTell(f"{size} is not {sizes[:8]}")
    return [Value(x.dtype, (*x.dims[:axis], n, *x.dims[axis + 1 :])) for n in sizes], 0


def _slice(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x, starts, ends = _need(taken, 0), _numbers(taken, 1), _numbers(taken, 2)
    if starts is None or ends is None:
        raise CannotTell("its ends")
    axes, steps = _numbers(taken, 3), _numbers(taken, 4)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cuts = [slice(None)] * len(x.dims)
    for a, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step != 1:
            raise CannotTell("a step that is not 1")
        cuts[_axis(a, len(x.dims))] = slice(start, end)
    dims = tuple(len(range(*cut.indices(n))) for cut, n in zip(cuts, x.dims, strict=True))
    return [Value(x.dtype, dims, None if x.known is None else x.known[tuple(cuts)])], 0


def _gather(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x, at = _need(taken, 0), _need(taken, 1)
    axis = _axis(node.attributes.get("axis", 0), len(x.dims))
    dims = (*x.dims[:axis], *at.dims, *x.dims[axis + 1 :])
    known = None
    if x.known is not None and at.known is not None and prod(dims) <= KNOWN:
        known = np.take(x.known, at.known, axis)
    return [Value(x.dtype, dims, known)], 0


def _transpose(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x = _need(taken, 0)
    order = node.attributes.get("perm") or list(range(len(x.dims)))[::-1]
    if sorted(order) != list(range(len(x.dims))):
        raise CannotTell("its order")
    known = None if x.known is None else x.known.transpose(order)
    return [Value(x.dtype, tuple(x.dims[i] for i in order), known)], 0


def _reduce(compute: Any, dtype: int | None = None) -> Rule:
    def rule(node: Node, taken: Taken) -> tuple[list[Value], int]:
        x, axes = _need(taken, 0), _axes(node, taken)
        if "axis" in node.attributes or dtype == _INT64:  # ArgMax
            axes = [int(node.attributes.get("axis", 0))]
        rank = len(x.dims)
        if not axes and node.attributes.get("noop_with_empty_axes", 0):
            return [Value(x.dtype, x.dims, x.known)], 0
        gone = {_axis(a, rank) for a in axes} if axes else set(range(rank))
        keep = node.attributes.get("keepdims", 1)
        dims = tuple(1 if i in gone else n for i, n in enumerate(x.dims) if keep or i not in gone)
        known = None
        if compute and x.elements and whole(x.known, x.dtype) is not None:
            known = whole(compute(x.known, tuple(gone), keepdims=bool(keep)), x.dtype)
        return [Value(dtype or x.dtype, dims, known)], x.elements

    return rule


def _layer_norm(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x = _need(taken, 0)
    axis = _axis(node.attributes.get("axis", -1), len(x.dims))
    rows = (*x.dims[:axis], *([1] * (len(x.dims) - axis)))
    return [Value(x.dtype, x.dims), Value(_FLOAT, rows), Value(_FLOAT, rows)], 4 * x.elements


def _matmul(node: Node, taken: Taken) -> tuple[list[Value], int]:
    a, b = _need(taken, 0), _need(taken, 1)
    if not a.dims or not b.dims:
        raise CannotTell("sizes of a product")
    # A vector is a matrix of one row on the left, of one column on the right.
    *left, m, k = a.dims if len(a.dims) > 1 else (1, *a.dims)
    *right, inner, n = b.dims if len(b.dims) > 1 else (*b.dims, 1)
    if k != inner:
        raise CannotTell("sizes of a product")
    batch = np.broadcast_shapes(tuple(left), tuple(right))
    rows, columns = (m,) if len(a.dims) > 1 else (), (n,) if len(b.dims) > 1 else ()
    return [Value(a.dtype, (*batch, *rows, *columns))], 2 * prod(batch) * m * n * k


def _gemm(node: Node, taken: Taken) -> tuple[list[Value], int]:
    a, b = _need(taken, 0).dims, _need(taken, 1).dims
    (m, k) = a[::-1] if node.attributes.get("transA", 0) else a
    (inner, n) = b[::-1] if node.attributes.get("transB", 0) else b
    if k != inner:
        raise CannotTell("sizes of a product")
    return [Value(_need(taken, 0).dtype, (m, n))], 2 * m * n * k


def _conv(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x, w, get = _need(taken, 0), _need(taken, 1), node.attributes.get
    space = len(x.dims) - 2
    if space < 1 or len(w.dims) != space + 2 or get("auto_pad", "NOTSET") != "NOTSET":
        raise CannotTell("sizes of a convolution")
    strides, dilations = get("strides") or [1] * space, get("dilations") or [1] * space
    pads = get("pads") or [0] * (2 * space)
    if x.dims[1] != w.dims[1] * get("group", 1) or min(*strides, *dilations) < 1 or min(pads) < 0:
        raise CannotTell("sizes of a convolution")
    dims = [x.dims[0], w.dims[0]]
    for i in range(space):
        reach = dilations[i] * (w.dims[i + 2] - 1) + 1
        dims.append((x.dims[i + 2] + pads[i] + pads[i + space] - reach) // strides[i] + 1)
    return [Value(x.dtype, tuple(dims))], 2 * prod(dims) * prod(w.dims[1:])


def _constant(node: Node, taken: Taken) -> tuple[list[Value], int]:
    ((name, value),) = node.attributes.items()
    if isinstance(value, Weight):
        known = whole(value.value, value.dtype, computed=False)
        return [Value(value.dtype, value.dims, known)], 0
    kind = _FLOAT if name in ("value_float", "value_floats") else _INT64
    array = np.array(value, DTYPES[kind][0])
    return [Value(kind, array.shape, whole(array, kind))], 0


def _filled(node: Node, taken: Taken) -> tuple[list[Value], int]:
    dims, value = _numbers(taken, 0), node.attributes.get("value")
    if dims is None or min(dims, default=0) < 0:
        raise CannotTell("its shape")
    dtype = value.dtype if isinstance(value, Weight) else _FLOAT
    known = None
    if prod(dims) <= KNOWN and isinstance(value, Weight) and value.value is not None:
        known = whole(np.full(dims, value.value.ravel()[0]), dtype)
    return [Value(dtype, tuple(dims), known)], 0


def _range(node: Node, taken: Taken) -> tuple[list[Value], int]:
    ends = [_need(taken, i).known for i in range(3)]
    if any(e is None or e.size != 1 or e.dtype.kind not in "iu" for e in ends):
        raise CannotTell("its ends")
    start, end, step = (int(e.ravel()[0]) for e in ends if e is not None)
    numbers = range(start, end, step)
    if len(numbers) >= LARGEST:
        raise CannotTell("its length")
    dtype = _need(taken, 0).dtype
    known = whole(np.array(numbers, np.int64), dtype) if len(numbers) <= KNOWN else None
    return [Value(dtype, (len(numbers),), known)], 0


def _quantised(node: Node, taken: Taken) -> tuple[list[Value], int]:
    x, dtype = _need(taken, 0), node.attributes.get("output_dtype", 0)
    if node.op == "DequantizeLinear":
        return [Value(_need(taken, 1).dtype, x.dims)], 0
    zero = taken[2].dtype if len(taken) > 2 and taken[2] is not None else 2
    return [Value(dtype or zero, x.dims)], 0


_ELEMENTWISE: dict[str, Any] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Neg": np.negative,
    "Not": np.logical_not, "And": np.logical_and, "Or": np.logical_or,
    "Max": lambda *v: np.maximum.reduce(np.broadcast_arrays(*v)),
    "Min": lambda *v: np.minimum.reduce(np.broadcast_arrays(*v)),
    **dict.fromkeys(("Abs", "Floor", "Ceil", "Round", "Sqrt", "Pow", "Reciprocal", "Exp", "Erf",
                     "Sigmoid", "Tanh", "Gelu", "Clip")),
}  # fmt: skip
OPERATIONS: dict[str, Rule] = {
    **{name: _elementwise(compute) for name, compute in _ELEMENTWISE.items()},
    "Identity": _elementwise(lambda x: x),
    "Equal": _elementwise(np.equal, _BOOL),
    "Less": _elementwise(np.less, _BOOL),
    "Greater": _elementwise(np.greater, _BOOL),
    "LessOrEqual": _elementwise(np.less_equal, _BOOL),
    "GreaterOrEqual": _elementwise(np.greater_equal, _BOOL),
    "Where": _elementwise(np.where, first=1),
    "Cast": _cast,
    "CastLike": _typed_and_sized(1, 0),
    "Shape": _shape,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _typed_and_sized(0, 1),
    "Transpose": _transpose,
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceSum": _reduce(np.sum),
    "ReduceProd": _reduce(np.prod),
    "ReduceMean": _reduce(None),
    "ReduceL2": _reduce(None),
    "ArgMax": _reduce(None, _INT64),
    "Softmax": _typed_and_sized(0, 0),
    "Trilu": _typed_and_sized(0, 0),
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Range": _range,
    "QuantizeLinear": _quantised,
    "DequantizeLinear": _quantised,
}
