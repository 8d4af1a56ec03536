"""Engine "openvino": an exported folder in OpenVINO, from its ONNX files. Needs no torch."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.artefacts.checked_graph import CheckedGraph
from stan_infer.artefacts.folder import Graph
from stan_infer.engines.folder_session import FolderSession
from stan_infer.engines.graph import OpenGraph, Signature, TensorType, graph_name
from stan_infer.engines.session import split_device
from stan_infer.errors import InputError, MissingError
from stan_infer.system.outside_file import openable
from stan_infer.system.packages import require
from stan_infer.system.signals import ended_at_once

# openvino ships stubs without the marker that lets a type checker read them.
Core = Any
CompiledModel = Any

_KINDS = ("cpu", "gpu")
# Arithmetic -> OpenVINO's word. Not f16: it would apply to the norms, too, which may overflow.
_HINTS = {"fp32": "f32", "bf16": "bf16"}
# OpenVINO's CPU plugin keeps what it generates for every shape that it meets: up to 5000 entries of
# each kind in a compiled model, and 1024 primitives of oneDNN in the process. Both together grew by
# 4 MiB with each (B, T) of a tiny model. A shape needs about ten of either.
_KEPT_ENTRIES, _KEPT_PRIMITIVES = 64, 16
_PRIMITIVES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
# Setting -> what was seen without it.
_NEEDED = {
    "SNIPPETS_MODE": "its results were wrong",
    "CPU_RUNTIME_CACHE_CAPACITY": "its memory grew with every new shape",
}
_LINEARS = ("FullyConnected", "MatMul")
_DTYPES = {"f32": "float32", "i32": "int32", "i64": "int64", "u8": "uint8"}


def compiled_model(
    graph: Path | bytes,
    *,
    name: str = "",
    device: str = "cpu",
    precision: str = "fp32",
    threads: int | None = None,
) -> CompiledModel:
    """Open one ONNX file (or its bytes) on the device asked for, and nowhere else.

    name: of the graph in errors; default: the file's. precision: fp32 or bf16, of all arithmetic;
    it is never left to OpenVINO, which takes bf16 wherever the CPU has it. Raises InputError for an
    unknown word or a graph that OpenVINO refuses, MissingError when openvino, the device or its
    bf16 arithmetic is not here (OpenVINO itself would compute in f32 then).
    """
    ov = _openvino()
    core = ov.Core()
    place = _device_name(core, device)
    if precision not in _HINTS:
        raise InputError(f"OpenVINO computes in {' or '.join(_HINTS)}, not {precision}")
    if precision == "bf16" and not _has_bf16(core, place):
        raise MissingError(
            f"device '{device}' ({core.get_property(place, 'FULL_DEVICE_NAME')}) has no bf16 "
            "arithmetic, and OpenVINO would silently compute in fp32: leave precision away"
        )
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[precision]}
    if place == "CPU":
        # OpenVINO 2025.0 to 2026.4 may compile softmax(q k) v to one piece of machine code. After a
        # run with one frame its results for 8 frames and more are wrong by half of their size. This
        # was seen in graphs of torch.onnx.export. Without the fusion B/32 is 1 % slower.
        settings["SNIPPETS_MODE"] = "DISABLE"
        settings["CPU_RUNTIME_CACHE_CAPACITY"] = _KEPT_ENTRIES
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
    # Errors come as exceptions; OpenVINO's log lines hold names from the file unescaped.
    settings["LOG_LEVEL"] = "LOG_NONE"
    name = graph_name(graph, name)
    try:
        # The frontend by name: read_model would guess the format from the content.
        frontend = ov.frontend.FrontEndManager().load_by_framework("onnx")
        # OpenVINO's frontend holds the GIL
        with ExitStack() as held, ended_at_once(), _few_primitives():
            if isinstance(graph, bytes):
                source: Any = io.BytesIO(graph)
            else:
                source = held.enter_context(openable(graph))
            compiled = core.compile_model(frontend.convert(frontend.load(source)), place, settings)
    except Exception as e:
        # Frontend errors have classes of their own, which share no base but Exception.
        for setting, fault in _NEEDED.items():
            if setting in str(e):
                raise MissingError(
                    f"openvino {ov.__version__} no longer has the setting {setting}, without which "
                    f'{fault}: pip install "openvino<=2026.4.1"'
                ) from e
        raise InputError(f"OpenVINO refuses {name}: {_reason(e)}") from e
    got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if got != _HINTS[precision]:
        raise MissingError(f"OpenVINO opens {name} in {got}, not {_HINTS[precision]}, on {device}")
    return compiled


class OvSession(FolderSession):
    """An exported folder in OpenVINO; see engines.session.Session."""

    engine = "openvino"
    reduced = ("bf16",)

    def open(
        self, graph: Graph, checked: CheckedGraph, precision: str, threads: int | None
    ) -> OvGraph:
        """See FolderSession.open; describe() gives the arithmetic, which may be wider."""
        arithmetic = precision
        if precision == graph.precision and precision != "fp32":
            # The file has the precision that was asked for; fp32 arithmetic loses nothing of it.
            core = _openvino().Core()
            can = precision == "bf16" and _has_bf16(core, _device_name(core, self._device))
            arithmetic = "bf16" if can else "fp32"
        return OvGraph.open(
            checked.path,
            name=graph.file,
            device=self._device,
            precision=arithmetic,
            threads=threads,
        )


class OvGraph(OpenGraph):
    """One graph in OpenVINO."""

    package = "openvino"

    def __init__(self, compiled: CompiledModel, name: str = "the graph") -> None:
        """compiled: from compiled_model. name: of the graph, for errors."""
        self._compiled, self._request = compiled, compiled.create_infer_request()
        self._lock = threading.Lock()  # a request serves one caller at a time
        self._name = name

    @classmethod
    def open(cls, graph: Path | bytes, *, name: str = "", **options: Any) -> OvGraph:
        """Open a graph; see compiled_model."""
        return cls(compiled_model(graph, name=name, **options), graph_name(graph, name))

    def signature(self) -> Signature:
        inputs, outputs = self._compiled.inputs, self._compiled.outputs
        # A value has several names if OpenVINO removed an operation that changes nothing, such as a
        # Cast. The name of an input is its node's; an output may be asked for by any of its names.
        return Signature(
            {v.node.get_friendly_name(): _value(v) for v in inputs},
            {name: _value(v) for v in outputs for name in v.names},
        )

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        # OpenVINO gives an output that another node only hands on both names.
        names = outputs or [name for v in self._compiled.outputs for name in v.names]
        try:
            with self._lock:
                results = self._request.infer(dict(feeds))
                return {name: results[name] for name in names}
        except Exception as e:  # OpenVINO's own classes share no base but Exception
            raise InputError(f"OpenVINO cannot run {self._name}: {_reason(e)}") from e

    def describe(self) -> dict[str, Any]:
        ov = _openvino()
        read = self._compiled.get_property
        return {
            "provider": "+".join(read("EXECUTION_DEVICES")),
            "arithmetic": read("INFERENCE_PRECISION_HINT").to_string(),
            "openvino": ov.__version__,
            "threads": read("INFERENCE_NUM_THREADS"),
        }

    def count_8_bits(self) -> int | None:
        return sum(
            op.get_rt_info()["runtimePrecision"] in ("i8", "u8")
            for op in self._compiled.get_runtime_model().get_ops()
            if op.get_rt_info()["layerType"] in _LINEARS
        )


def _openvino() -> Any:
    return require("openvino", "engine openvino", "openvino")


@contextmanager
def _few_primitives() -> Iterator[None]:
    """Have oneDNN in OpenVINO keep few primitives, unless the user has said how many.

    It reads the variable once, when the process makes its first primitive, which is in compiling a
    model; torch's oneDNN, which reads the same, must keep its own number.
    """
    name = _PRIMITIVES[0]
    if any(n in os.environ for n in _PRIMITIVES):
        yield
        return
    os.environ[name] = str(_KEPT_PRIMITIVES)
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _device_name(core: Core, device: str) -> str:
    kind, index = split_device(device, _KINDS)
    found = core.available_devices
    name = kind.upper() + (f".{index}" if index else "")
    if name not in found and f"{name}.0" not in found:
        raise MissingError(
            f"device '{device}' is not here: OpenVINO finds {', '.join(found) or 'no device'}; "
            "a GPU is Intel's, with its OpenCL driver; use --device cpu"
        )
    return name


def _has_bf16(core: Core, name: str) -> bool:
    return "BF16" in core.get_property(name, "OPTIMIZATION_CAPABILITIES")


def _value(value: Any) -> TensorType:
    dtype = value.element_type.to_string()
    sizes = tuple(n.get_length() if n.is_static else None for n in value.partial_shape)
    return _DTYPES.get(dtype, dtype), sizes


def _reason(error: Exception) -> str:
    """Return the last line that is not blank; those before name OpenVINO's source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]
