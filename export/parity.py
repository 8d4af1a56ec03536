"""Checks of one written graph: ONNX's checker, dynamic axes, and outputs against the model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.config_note import CONFIG_KEY, config_sha256
from stan_infer.artefacts.difference import Difference
from stan_infer.artefacts.opsets import oldest_runtime
from stan_infer.artefacts.precision import TOLERANCES
from stan_infer.config import StanConfig
from stan_infer.engines.graph import OpenGraph
from stan_infer.engines.open import ENGINES, graph_engines, open_graph
from stan_infer.errors import CheckError, InputError
from stan_infer.export.options import Range
from stan_infer.export.writer import writer
from stan_infer.system.outside_file import openable


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of a graph by name, and the model's outputs for them by name."""

    sizes: tuple[int, ...]  # (B, T), (Q, L), or (F,)
    feeds: dict[str, np.ndarray]
    wanted: dict[str, np.ndarray]


def case_sizes(batch: Range, frames: Range) -> list[tuple[int, int]]:
    """Sizes (B, T) within the ranges that reveal an axis which is fixed by mistake.

    They include ones, B >= 2 with several T, and the largest T.
    """
    pairs = [(1, 1), (1, 2), (2, 3), (3, 5), (7, 9), (1, 64)]

    def within(n: int, limits: Range) -> int:
        return min(max(n, limits[0]), limits[1])

    return sorted({(within(b, batch), within(t, frames)) for b, t in pairs})


def note_config(path: Path, config: StanConfig) -> None:
    """Add the hash of its config to the metadata of a written graph, of whatever writer."""
    import onnx

    entry = onnx.StringStringEntryProto(key=CONFIG_KEY, value=config_sha256(config.to_dict()))
    with path.open("ab") as f:  # a further element of a repeated field may stand at the end
        f.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())


def check_graph(
    path: Path, opset: int, dims: Mapping[str, Range], precision: str
) -> dict[str, Any]:
    """Check form and axes of a written graph; return its part of the manifest.

    dims: range of each dimension. Dimensions whose range is a single value must be fixed in the
    graph, all others dynamic. Raises CheckError.
    """
    import onnx

    with openable(path) as name:
        onnx.checker.check_model(name, full_check=True)
    proto = onnx.load(str(path), load_external_data=False)
    opsets = {o.domain or "ai.onnx": o.version for o in proto.opset_import}
    if opsets != {"ai.onnx": opset}:
        raise CheckError(
            f"{path.name} uses the operator sets {opsets}; ai.onnx {opset} was asked for"
        )
    inputs, outputs = ([_value(v) for v in vs] for vs in (proto.graph.input, proto.graph.output))
    wanted = {name for name, (low, high) in dims.items() if low < high}
    seen = {s for v in inputs for s in v["shape"] if isinstance(s, str)}
    if seen != wanted:
        raise CheckError(
            f"{path.name}: its inputs are dynamic in {sorted(seen)}, but {sorted(wanted)} must be"
        )
    return {
        "opset": opset,
        "ir": proto.ir_version,
        "min_onnxruntime": oldest_runtime(opset, precision),
        "writer": writer(),
        "nodes": len(proto.graph.node),
        "inputs": inputs,
        "outputs": outputs,
    }


def prove(
    path: Path, cases: Iterable[Case], precision: str, reference: str = "the model"
) -> dict[str, Any]:
    """Run every case in one session and compare the outputs; return the manifest's parity record.

    The graph runs on the CPU, in the first engine that has the precision there. reference: what
    computed the wanted outputs. Raises CheckError if outputs differ or the graph does not run.
    """
    difference, sizes = Difference(), []
    with closing(_opened(path, precision)) as graph:
        facts = graph.describe()
        for case in cases:
            sizes.append(list(case.sizes))
            try:
                got = graph.run(case.feeds, list(case.wanted))
            except InputError as e:
                raise CheckError(
                    f"{path.name} does not run at {case.sizes}: {e}; nothing was written"
                ) from e
            for name, w in case.wanted.items():
                g = got[name]
                if w.shape != g.shape:
                    raise CheckError(
                        f"{path.name} at {case.sizes}: {name} is {g.shape} instead of {w.shape}"
                    )
                difference.add(g, w)
    tolerance = TOLERANCES[precision]
    if not difference.relative <= tolerance:  # so written that a NaN fails
        raise CheckError(
            f"{path.name}: outputs differ from {reference} by {difference.relative:.2e} of the "
            f"largest value; allowed is {tolerance:.0e}: nothing was written"
        )
    return {
        "file": path.name,
        "backend": f"{graph.package} {facts['provider']}",
        "backend_version": facts[graph.package],
        **({} if reference == "the model" else {"reference": reference}),
        "cases": sizes,
        **difference.record(),
        "tolerance": tolerance,
        "pass": True,
    }


def _opened(path: Path, precision: str) -> OpenGraph:
    engine = next(e for e in graph_engines() if ENGINES[e].has(precision, "cpu"))
    return open_graph(path, engine)


def _value(value: Any) -> dict[str, Any]:
    import onnx

    kind = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        "shape": [d.dim_param or d.dim_value for d in kind.shape.dim],
    }
