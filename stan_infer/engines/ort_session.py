"""Engine "ort": an exported folder in ONNX Runtime. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.artefacts.checked_graph import CheckedGraph
from stan_infer.artefacts.folder import Artefact, Graph
from stan_infer.artefacts.onnx_file import count_ops
from stan_infer.artefacts.opsets import check_runtime
from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.config import video_flops
from stan_infer.engines.folder_session import FolderSession
from stan_infer.engines.graph import OpenGraph, Signature, TensorType, graph_name
from stan_infer.engines.ort_providers import Provider, choose_provider, open_with
from stan_infer.errors import InputError, MissingError, StanError
from stan_infer.system.machine import usable_cpus
from stan_infer.system.outside_file import openable
from stan_infer.system.packages import require
from stan_infer.system.temporary import NoTemporaryFolderError, temporary_folder

if TYPE_CHECKING:
    import onnxruntime

_DTYPES = {"tensor(float)": "float32"}  # the other types have numpy's names
_CPU = Provider("cpu", "cpu")
# The operations that linears between Q/DQ nodes become where they really run in 8 bits.
_IN_8_BITS = ("MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul")
MAX_GRAPHS = 8  # shapes that have a CUDA graph; later ones run without


def inference_session(
    graph: Path | bytes,
    *,
    name: str = "",
    device: str = "cpu",
    provider: str | None = None,
    threads: int | None = None,
    arena: bool = False,
    optimised: Path | None = None,
    yielding: bool = False,
) -> onnxruntime.InferenceSession:
    """Open one ONNX file (or its bytes) on the device asked for, and nowhere else.

    name: of the graph in errors; default: the file's. provider: one of ort_providers.PROVIDERS;
    None is the device's own. arena: keep freed memory for the next run, which is a little faster
    and takes half as much memory again. optimised: where to write the graph as ONNX Runtime will
    run it. yielding: threads sleep while they wait. A small graph then takes a quarter longer where
    no other process needs the cores, and half the time where one does.

    Raises InputError for an unknown device or provider, or a graph that ONNX Runtime refuses;
    MissingError when onnxruntime or the provider is not here (ONNX Runtime itself would run on the
    CPU then).
    """
    ort = require("onnxruntime", "engine ort", "runtime")
    chosen = choose_provider(device, provider)
    options = ort.SessionOptions()
    # No log lines: errors come as exceptions; the lines hold names from the file unescaped.
    options.log_severity_level = 4
    # Else bytes are searched for ONNX Runtime's own format, .ort; only ONNX was checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # On a CPU without VNNI the sum of two products of 8 bits may exceed 16 bits and is clipped:
    # B/32 loses as much by that as by rounding to 8 bits. This setting takes a slower, exact way.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # Threads spin some 30 ms behind a run, and take a core from the next graph or a decoder: trunk
    # and branch in turn took 1.2 times as long on two cores. Within a run they still spin.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_cpu_mem_arena = arena
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if yielding:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads:
        options.intra_op_num_threads = threads
    try:
        return _opened(chosen, graph, options)
    except StanError:
        raise
    except Exception as e:
        # onnxruntime raises its own classes, which share no base but Exception.
        name = graph_name(graph, name)
        reason = str(e).split(" failed:", 1)[-1]  # without the path
        if type(e).__name__ == "NotImplemented":
            raise MissingError(
                f"ONNX Runtime {ort.__version__} has no code on device '{device}' for a node of "
                f"{name} ({reason[:160]}); bf16 on a CPU needs --engine openvino"
            ) from e
        if "fallback" in reason and chosen.device != "cpu":
            raise chosen.missing(f"it leaves nodes of {name} to the CPU") from e
        raise InputError(f"ONNX Runtime refuses {name}: {reason[:200]}") from e


def _opened(
    provider: Provider, graph: Path | bytes, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    with nullcontext(graph) if isinstance(graph, bytes) else openable(graph) as source:
        try:
            return open_with(provider, source, options)
        except Exception as e:
            # Before 1.32, linears in fp8 are fused to an operation that has int8 only. On a CPU
            # they run in fp32 in any case.
            if provider.device != "cpu" or "float8" not in str(e) or "MatMulInteger" not in str(e):
                raise
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            return open_with(provider, source, options)


class OrtSession(FolderSession):
    """An exported folder in ONNX Runtime; see engines.session.Session."""

    engine = "ort"

    def __init__(
        self,
        artefact: Artefact,
        *,
        device: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        provider: str | None = None,
        yielding: bool = False,
    ) -> None:
        """See FolderSession, inference_session; device: None is the provider's."""
        if device is None:
            device = "cpu" if provider in (None, "cpu") else "cuda"
        self._provider, self._yielding = choose_provider(device, provider), yielding
        self._any_length = self._provider.device == "cpu"
        super().__init__(artefact, device=device, precision=precision, threads=threads)

    def open(
        self, graph: Graph, checked: CheckedGraph, precision: str, threads: int | None
    ) -> OrtGraph:
        """See FolderSession.open; of a graph in 8 bits, count the linears that really run so."""
        ort = require("onnxruntime", "engine ort", "runtime")
        check_runtime(graph.opset, ort.__version__, graph.file)
        options: dict[str, Any] = {
            "name": graph.file,
            "device": self._device,
            "provider": self._provider.word,
            "threads": threads or self._threads_beside(),
            "arena": True,
            "yielding": self._yielding,
        }
        if graph.precision in EIGHT_BITS:
            # Without a temporary folder nothing is counted, but the session runs.
            with suppress(NoTemporaryFolderError), temporary_folder("the graph as run") as folder:
                seen = folder / "optimised.onnx"
                opened = OrtGraph.open(checked.path, **options, optimised=seen)
                opened.in_8_bits = sum(count_ops(seen)[name] for name in _IN_8_BITS)
                return opened
        return OrtGraph.open(checked.path, **options)

    def _threads_beside(self) -> int | None:
        """Beside decoding processes one thread for every GFLOP of a clip; None: the runtime's own.

        A core takes some 5 ms for one. A further thread would have to be woken for each operation
        of a smaller model, for 0.1 of the time, with a core that decoding needs: the demo's model
        takes 2.0 ms with two threads and 2.3 with one, for the same bits.
        """
        if not self._yielding or self._device != "cpu":
            return None
        enough = math.ceil(video_flops(self.config, self.config.frames) / 1e9)
        return enough if enough < usable_cpus() else None


class OrtGraph(OpenGraph):
    """One graph in ONNX Runtime; on a GPU, inputs and outputs are bound to its memory."""

    package = "onnxruntime"

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        provider: Provider = _CPU,
        name: str = "the graph",
    ) -> None:
        """session: opened on `provider`. name: of the graph, for errors."""
        self._session, self._provider, self._name = session, provider, name
        self._all = [o.name for o in session.get_outputs()]
        self._kept: dict[Any, tuple[Any, ...]] = {}
        self.in_8_bits: int | None = None  # linears, where they were counted

    @classmethod
    def open(
        cls,
        graph: Path | bytes,
        *,
        name: str = "",
        device: str = "cpu",
        provider: str | None = None,
        **options: Any,
    ) -> OrtGraph:
        """Open a graph; see inference_session."""
        chosen = choose_provider(device, provider)
        session = inference_session(graph, name=name, device=device, provider=provider, **options)
        return cls(session, chosen, graph_name(graph, name))

    def signature(self) -> Signature:
        return Signature(_types(self._session.get_inputs()), _types(self._session.get_outputs()))

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        names, on_cpu = list(outputs or self._all), self._provider.device == "cpu"
        try:
            if not self._provider.is_bound:
                values = self._session.run(names, dict(feeds))
            elif self._provider.word == "cuda-graph":
                values = self._replay(names, feeds)
            else:
                values = self._bound(names, feeds)
        except Exception as e:  # onnxruntime's own classes share no base but Exception
            reason = str(e)[:200]
            # The inputs were checked, so on a CPU the graph is at fault. On a GPU the provider had
            # accepted the graph, so the GPU is.
            if on_cpu and not self._provider.is_bound:
                raise InputError(f"ONNX Runtime cannot run {self._name}: {reason}") from e
            raise MissingError(
                f"ONNX Runtime failed on {self._provider.device}:{self._provider.index}: {reason}; "
                "a GPU whose memory is full takes fewer clips at once, or frames"
            ) from e
        return dict(zip(names, values, strict=True))

    def describe(self) -> dict[str, Any]:
        import onnxruntime as ort

        graphs = {"cuda_graphs": len(self._kept)} if self._provider.word == "cuda-graph" else {}
        return {
            "provider": self._session.get_providers()[0],
            "onnxruntime": ort.__version__,
            "threads": self._session.get_session_options().intra_op_num_threads or "all",
            **({"tf32": self._provider.tf32} if self._provider.device != "cpu" else {}),
            **graphs,
        }

    def count_8_bits(self) -> int | None:
        return self.in_8_bits

    def _bound(
        self, outputs: list[str], feeds: Mapping[str, np.ndarray], options: Any = None
    ) -> list[np.ndarray]:
        import onnxruntime as ort

        place = (self._provider.device, self._provider.index)
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, *place))
        for name in outputs:
            binding.bind_output(name, *place)
        self._session.run_with_iobinding(binding, options)
        return binding.copy_outputs_to_cpu()

    def _replay(self, outputs: list[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Replay the CUDA graph of these outputs and shapes; bound memory keeps its address."""
        key = (*outputs, *(v.shape for v in feeds.values()))
        if key not in self._kept and len(self._kept) >= MAX_GRAPHS:
            # ONNX Runtime keeps a CUDA graph as long as its session, so none can be dropped.
            return self._bound(outputs, feeds, _graph_number(-1))
        if key not in self._kept:
            self._kept[key] = self._capture(outputs, feeds)
        binding, inputs, results, options = self._kept[key]
        for name, value in feeds.items():
            inputs[name].update_inplace(np.ascontiguousarray(value))
        self._session.run_with_iobinding(binding, options)
        return [result.numpy() for result in results]

    def _capture(self, outputs: list[str], feeds: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
        """Bind memory for a new CUDA graph; the first run with its number captures it."""
        import onnxruntime as ort

        place = (self._provider.device, self._provider.index)
        binding = self._session.io_binding()
        inputs: dict[str, Any] = {}
        sizes: dict[Any, int] = {}
        for given in self._session.get_inputs():
            value = feeds[given.name]
            sizes |= dict(zip(given.shape, value.shape, strict=True))
            inputs[given.name] = ort.OrtValue.ortvalue_from_numpy(value, *place)
            binding.bind_ortvalue_input(given.name, inputs[given.name])
        known, results = {o.name: o for o in self._session.get_outputs()}, []
        for name in outputs:
            shape = [n if isinstance(n, int) else sizes[n] for n in known[name].shape]
            result = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *place)
            binding.bind_ortvalue_output(name, result)
            results.append(result)
        return binding, inputs, results, _graph_number(len(self._kept) + 1)


def _graph_number(number: int) -> Any:
    """Return options of a run with the CUDA graph of this number; -1 runs without one."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _types(values: Any) -> dict[str, TensorType]:
    found: dict[str, TensorType] = {}
    for v in values:
        dtype = _DTYPES.get(v.type, v.type.removeprefix("tensor(").removesuffix(")"))
        # Names of free dimensions differ between exporters and mean nothing here.
        found[v.name] = (dtype, tuple(n if isinstance(n, int) else None for n in v.shape))
    return found
