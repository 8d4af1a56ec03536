"""Engine "ort": an exported folder in ONNX Runtime. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.artefact import Graph
from stan_infer.engines.folder_session import FolderSession, Signature, Value
from stan_infer.engines.session import split_device
from stan_infer.errors import InputError, MissingError, require

if TYPE_CHECKING:
    import onnxruntime

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {"tensor(float)": "float32"}  # the others bear numpy's name


def open_graph(
    graph: Path | bytes,
    *,
    device: str = "cpu",
    threads: int | None = None,
    arena: bool = True,
) -> onnxruntime.InferenceSession:
    """Open one ONNX file (or its bytes) on the device asked for, and nowhere else.

    arena: keep freed memory for the next run: a little faster, and half as much again.

    Raises InputError for an unknown device or a graph that ONNX Runtime refuses, MissingError when
    onnxruntime or the device's provider is not here: ONNX Runtime itself would go on on the CPU.
    """
    ort = require("onnxruntime", "engine ort", "stan-infer[runtime]")
    kind, index = split_device(device, list(_PROVIDERS))
    wanted = _PROVIDERS[kind]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Its own format, .ort, is chosen by content for bytes; only ONNX was checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.enable_cpu_mem_arena = arena
    if threads:
        options.intra_op_num_threads = threads
    provider: Any = (wanted, {"device_id": index}) if index else wanted
    missing = (
        f"engine ort cannot use {wanted} on device '{device}' here: "
        'pip install "stan-infer[gpu]" on a machine with an NVIDIA driver, or --device cpu'
    )
    if wanted not in ort.get_available_providers():
        raise MissingError(missing)
    try:
        source = graph if isinstance(graph, bytes) else str(graph)
        session = ort.InferenceSession(source, options, providers=[provider])
    except Exception as e:
        # onnxruntime raises its own classes, which share no base but Exception.
        name = "the graph" if isinstance(graph, bytes) else graph.name
        reason = str(e).split(" failed:", 1)[-1]  # before it stands the path
        if type(e).__name__ == "NotImplemented":
            raise MissingError(
                f"ONNX Runtime {ort.__version__} has no code on device '{device}' for a node of "
                f"{name} ({reason[:160]}); bf16 on a CPU needs --engine openvino"
            ) from e
        raise InputError(f"ONNX Runtime refuses {name}: {reason[:200]}") from e
    if session.get_providers()[0] != wanted:
        raise MissingError(missing)
    return session


def run_graph(
    session: onnxruntime.InferenceSession, output: str, feeds: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Run one graph for one output; whatever ONNX Runtime raises becomes an InputError."""
    try:
        return session.run([output], dict(feeds))[0]
    except Exception as e:
        # Its own classes share no base but Exception; the inputs were checked, so the graph is bad.
        raise InputError(f"ONNX Runtime cannot run the graph: {str(e)[:200]}") from e


class OrtSession(FolderSession):
    """An artefact in ONNX Runtime; see engines.session.Session."""

    engine = "ort"

    def open(self, graph: Graph, precision: str, threads: int | None) -> OrtGraph:
        """See FolderSession.open."""
        path = self._artefact.path / graph.file
        return OrtGraph(open_graph(path, device=self._device, threads=threads))


class OrtGraph:
    """One graph in ONNX Runtime; see folder_session.OpenGraph."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        """Take what open_graph returned."""
        self._session = session

    def signature(self) -> Signature:
        """See OpenGraph.signature."""
        return Signature(_values(self._session.get_inputs()), _values(self._session.get_outputs()))

    def run(self, output: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """See OpenGraph.run."""
        return run_graph(self._session, output, feeds)

    def describe(self) -> dict[str, Any]:
        """See OpenGraph.describe."""
        import onnxruntime as ort

        return {
            "provider": self._session.get_providers()[0],
            "onnxruntime": ort.__version__,
            "threads": self._session.get_session_options().intra_op_num_threads or "all",
        }


def _values(values: Any) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for v in values:
        dtype = _DTYPES.get(v.type, v.type.removeprefix("tensor(").removesuffix(")"))
        # Names of free dimensions differ between exporters and mean nothing here.
        found[v.name] = (dtype, tuple(n if isinstance(n, int) else None for n in v.shape))
    return found
