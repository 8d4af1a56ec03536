"""Small groups of ONNX nodes for a graph of some precision, with fixed or dynamic sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from stan_infer.errors import CheckError
from stan_infer.export.onnx_graph import GraphWriter
from stan_infer.network.eight_bits import QuantisedLinear
from stan_infer.network.folded import Array

TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_TYPES_IN_8_BITS = {
    "int8": TensorProto.INT8,
    "float8_e4m3fn": TensorProto.FLOAT8E4M3FN,
    "float8_e5m2": TensorProto.FLOAT8E5M2,
}
END = 2**63 - 1  # as the end of a Slice: up to the last element


class Nodes:
    """Adds nodes to one graph, whose input `source` has the axes "B" and "T" first.

    batch, frames: the sizes of these axes, None for a dynamic one. precision: of weights and
    linears.
    """

    def __init__(
        self,
        graph: GraphWriter,
        source: str,
        *,
        batch: int | None,
        frames: int | None,
        precision: str,
    ) -> None:
        """Add to `graph`."""
        self.graph, self.type = graph, TYPES[precision]
        self._source, self._precision = source, precision
        self.sizes = {"B": batch, "T": frames}

    def weight(self, name: str, values: Array, *, exact: bool = False) -> str:
        """Add a weight within the scope; exact: in fp32, whatever the precision.

        Raises CheckError, with the weight's name, if the precision cannot hold a value.
        """
        precision = "fp32" if exact else self._precision
        given = np.asarray(values, np.float32)
        if precision == "bf16":
            stored = _bfloat16(given)
            fits = bool(((stored & 0x7F80) != 0x7F80).all())
        else:
            with np.errstate(over="ignore"):
                stored = given.astype(np.float16 if precision == "fp16" else np.float32, copy=False)
            fits = bool(np.isfinite(stored).all())
        if not fits:
            raise CheckError(
                f"{self.graph.full_name(name)} reaches {np.abs(given).max():.3g}, which "
                f"{precision} cannot hold: export with --precision fp32 or bf16"
            )
        kind = TensorProto.BFLOAT16 if precision == "bf16" else None
        return self.graph.weight(name, stored, kind)

    def quantised_linear(self, x: str, w: QuantisedLinear) -> str:
        """MatMul behind DequantizeLinear nodes: x in 8 bits with one scale, W with one per output.

        Quantisation is symmetric, and outputs are not quantised: the form that ONNX Runtime,
        OpenVINO and TensorRT all take (ONNX Runtime's own `quantize_static` adds the same nodes).
        """
        graph, kind = self.graph, _TYPES_IN_8_BITS[w.format.name]
        weight = graph.weight("weight", np.asarray(w.weight.T), kind)
        scale = self.weight("weight_scale", w.scale)
        x_scale = self.weight("x_scale", w.x_scale)
        # The types of the zero points are those of the 8 bits. Each weight has its own zero point:
        # ONNX Runtime rewrites them on a CPU whose sums of int8 overflow, and fails over one that
        # two weights share.
        zero = graph.weight("weight_zero", np.zeros(len(w.scale), np.int8), kind)
        x_zero = graph.weight("x_zero", np.zeros((), np.int8), kind)
        x = graph.node("QuantizeLinear", [x, x_scale, x_zero])
        x = graph.node("DequantizeLinear", [x, x_scale, x_zero])
        y = graph.node("DequantizeLinear", [weight, scale, zero], axis=1)
        y = graph.node("MatMul", [x, y])
        # Sub instead of an Add of the bias: where all sizes are known, ONNX Runtime 1.32 first
        # fuses MatMul and Add to a Gemm, which it runs in fp32, weights dequantised on every call.
        return graph.node("Sub", [y, self.weight("minus_bias", -w.bias)])

    def number(self, value: float) -> str:
        """A scalar of the graph's precision."""
        return self.cast(self.graph.constant(value, np.float32), self.type)

    def cast(self, x: str, kind: int) -> str:
        """Cast to an ONNX type; `x` itself in an fp32 graph."""
        return x if self.type == TensorProto.FLOAT else self.graph.node("Cast", [x], to=kind)

    def reshape(self, x: str, shape: Sequence[int | str]) -> str:
        """Reshape; "B" and "T" stand for those sizes, 0 keeps an axis, -1 takes what is left."""
        known = [self.sizes[n] or n if isinstance(n, str) else n for n in shape]
        unknown = [n for n in known if isinstance(n, str)]
        if len(unknown) == 1 and -1 not in known:
            known = [-1 if isinstance(n, str) else n for n in known]
            unknown = []
        if not unknown:
            target = self.graph.constant(known)
        else:
            assert known[:2] == ["B", "T"], known
            both = self.graph.shared("Shape", [self._source], start=0, end=2)
            parts = [both, self.graph.constant(known[2:])]
            target = self.graph.shared("Concat", parts, axis=0)
        return self.graph.node("Reshape", [x, target])

    def transpose(self, x: str, *order: int) -> str:
        """Permute the axes."""
        return self.graph.node("Transpose", [x], perm=list(order))

    def slice(self, x: str, axis: int, start: int, end: int) -> str:
        """x[start:end] along one axis."""
        limits = [self.graph.constant([n]) for n in (start, end, axis)]
        return self.graph.node("Slice", [x, *limits])

    def first(self, x: str, axis: int) -> str:
        """x[:T] along one axis."""
        ends = self._size("T")
        inputs = [x, self.graph.constant([0]), ends, self.graph.constant([axis])]
        return self.graph.node("Slice", inputs)

    def unsqueeze(self, x: str, axis: int) -> str:
        """Insert an axis of size 1."""
        return self.graph.node("Unsqueeze", [x, self.graph.constant([axis])])

    def per_frame(self, x: str, axis: int = 1) -> str:
        """Repeat x, which has four axes, T times along an axis of size 1."""
        parts = [self.graph.constant([1])] * 4
        parts[axis] = self._size("T")
        target = self.graph.shared("Concat", parts, axis=0)
        return self.graph.node("Expand", [x, target])

    def frame_count(self) -> str:
        """T as a scalar of the graph's precision."""
        return self.graph.shared("Cast", [self._size("T")], to=self.type)

    def mean(self, x: str, axis: int, keep: int = 1) -> str:
        """Mean along one axis."""
        return self.graph.node("ReduceMean", [x, self.graph.constant([axis])], keepdims=keep)

    def layer_norm(self, x: str, gamma: str, beta: str, eps: float) -> str:
        """LayerNormalization of the last axis, in fp32; gamma and beta are fp32."""
        x = self.cast(x, TensorProto.FLOAT)
        y = self.graph.node("LayerNormalization", [x, gamma, beta], axis=-1, epsilon=eps)
        return self.cast(y, self.type)

    def softmax(self, scores: str, axis: int, scale: float = 1.0) -> str:
        """Softmax of scale times the scores along one axis, in fp32."""
        scores = self.cast(scores, TensorProto.FLOAT)
        if scale != 1:
            scores = self.graph.node("Mul", [scores, self.graph.constant(scale, np.float32)])
        return self.cast(self.graph.node("Softmax", [scores], axis=axis), self.type)

    def gelu(self, x: str) -> str:
        """x Phi(x), written with Erf: a form that every runtime recognises and fuses."""
        half = self.graph.node("Mul", [x, self.number(0.5)])
        erf = self.graph.node("Erf", [self.graph.node("Mul", [x, self.number(2**-0.5)])])
        return self.graph.node("Mul", [half, self.graph.node("Add", [erf, self.number(1.0)])])

    def _size(self, name: str) -> str:
        fixed = self.sizes[name]
        if fixed is not None:
            return self.graph.constant([fixed])
        axis = "BT".index(name)
        return self.graph.shared("Shape", [self._source], start=axis, end=axis + 1)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits uint16 of fp32 values rounded to bfloat16, nearest even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
