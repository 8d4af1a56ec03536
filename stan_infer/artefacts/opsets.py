"""The versions of ONNX's operators that exports use, and the oldest ONNX Runtime that runs each."""

from __future__ import annotations

from typing import NamedTuple

from packaging.version import Version

from stan_infer.errors import MissingError


class Opset(NamedTuple):
    """One version of the operators."""

    ir: int  # version of the file format that it belongs to, by ONNX's own table of releases
    onnxruntime: str  # the oldest version that runs graphs of ours


# A runtime refuses a file whose IR version is newer than it knows, whatever is in it, so each opset
# is written with its own. The oldest runtimes were found by running every graph that an export
# writes; `make installs` does so again from 1.15 on, as 1.14 has no wheel for Python 3.11. The
# smallest opset is 18, because ReduceMean takes its axes as an input from there on.
OPSETS = {
    18: Opset(8, "1.14"),
    19: Opset(9, "1.16"),
    20: Opset(9, "1.17"),
    21: Opset(10, "1.18"),
    22: Opset(10, "1.21"),
    23: Opset(11, "1.23"),
    24: Opset(12, "1.24"),
    25: Opset(13, "1.24"),
}
SMALLEST_FP8 = 19  # ONNX quantises to floats of 8 bits from here on
# Before, ONNX Runtime fuses a MatMul between Q/DQ nodes of fp8 to an operation that has int8 only,
# and refuses the graph; with session.disable_quant_qdq it runs what OPSETS says.
FUSES_FP8_WRONGLY_BEFORE = "1.32"


def oldest_runtime(opset: int, precision: str) -> str:
    """The oldest ONNX Runtime that runs a graph of ours without special options."""
    return FUSES_FP8_WRONGLY_BEFORE if precision == "fp8" else OPSETS[opset].onnxruntime


def check_runtime(opset: int, version: str, name: str) -> None:
    """Raise MissingError if an ONNX Runtime of this version is too old for a graph's opset.

    name: of the graph, for the message. An opset that no export of ours writes is left to the
    runtime.
    """
    oldest = OPSETS[opset].onnxruntime if opset in OPSETS else version
    if Version(version) < Version(oldest):
        fitting = [str(n) for n, o in OPSETS.items() if Version(o.onnxruntime) <= Version(version)]
        again = f", or export with --opset {fitting[-1]}" if fitting else ""
        raise MissingError(
            f"{name} has opset {opset}, which ONNX Runtime runs from {oldest} on, and {version} is "
            f"installed: pip install -U onnxruntime{again}"
        )
