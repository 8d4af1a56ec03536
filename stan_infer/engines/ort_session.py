"""Engine "ort": an exported folder in ONNX Runtime. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stan_infer.artefacts.folder import Artefact, Graph
from stan_infer.artefacts.graph_source import GraphSource
from stan_infer.artefacts.onnx_file import count_ops
from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.engines.folder_session import FolderSession, Signature, Value
from stan_infer.engines.ort_providers import Provider, choose_provider, open_with
from stan_infer.errors import InputError, MissingError, StanError
from stan_infer.system.outside_file import openable
from stan_infer.system.packages import require
from stan_infer.system.temporary import NoTemporaryFolderError, temporary_folder

if TYPE_CHECKING:
    import onnxruntime

_DTYPES = {"tensor(float)": "float32"}  # the others bear numpy's name
_CPU = Provider("cpu", "cpu")
# What products between Q/DQ nodes become where they really run in 8 bits.
_IN_8_BITS = ("MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul")
MAX_GRAPHS = 8  # shapes that have a CUDA graph; later ones run without


def open_graph(
    graph: Path | bytes,
    *,
    name: str = "",
    device: str = "cpu",
    provider: str | None = None,
    threads: int | None = None,
    arena: bool = True,
    optimised: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open one ONNX file (or its bytes) on the device asked for, and nowhere else.

    name: what errors call it, if not its file's. provider: one of ort_providers.PROVIDERS; None is
    the device's own. arena: keep freed memory for the next run: a little faster, and half as much
    again. optimised: where to write the graph as ONNX Runtime will run it.

    Raises InputError for an unknown device or provider, or a graph that ONNX Runtime refuses;
    MissingError when onnxruntime or the provider is not here: ONNX Runtime itself would go on on
    the CPU.
    """
    ort = require("onnxruntime", "engine ort", "runtime")
    chosen = choose_provider(device, provider)
    options = ort.SessionOptions()
    # What is wrong comes as an exception. ONNX Runtime's own lines hold names from the file as they
    # stand there, with whatever a terminal takes for a command.
    options.log_severity_level = 4
    # Its own format, .ort, is chosen by content for bytes; only ONNX was checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # On a CPU without VNNI a sum of two products of 8 bits overflows 16 bits and is cut off: B/32
    # loses as much by that as by rounding to 8 bits. With this it takes a slower, exact way there.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.enable_cpu_mem_arena = arena
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if threads:
        options.intra_op_num_threads = threads
    try:
        if isinstance(graph, bytes):
            return open_with(chosen, graph, options)
        with openable(graph) as path:
            return open_with(chosen, path, options)
    except StanError:
        raise
    except Exception as e:
        # onnxruntime raises its own classes, which share no base but Exception.
        name = name or ("the graph" if isinstance(graph, bytes) else graph.name)
        reason = str(e).split(" failed:", 1)[-1]  # before it stands the path
        if type(e).__name__ == "NotImplemented":
            raise MissingError(
                f"ONNX Runtime {ort.__version__} has no code on device '{device}' for a node of "
                f"{name} ({reason[:160]}); bf16 on a CPU needs --engine openvino"
            ) from e
        if "fallback" in reason and chosen.device != "cpu":
            raise chosen.missing(f"it leaves nodes of {name} to the CPU") from e
        raise InputError(f"ONNX Runtime refuses {name}: {reason[:200]}") from e


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

    def __init__(
        self,
        artefact: Artefact,
        *,
        device: str = "cpu",
        precision: str | None = None,
        threads: int | None = None,
        provider: str | None = None,
    ) -> None:
        """See FolderSession; provider: see open_graph."""
        self._provider = choose_provider(device, provider)
        super().__init__(artefact, device=device, precision=precision, threads=threads)

    def open(
        self, graph: Graph, source: GraphSource, precision: str, threads: int | None
    ) -> OrtGraph:
        """See FolderSession.open; of a graph in 8 bits it is counted what really runs so."""
        options: dict[str, Any] = {
            "name": graph.file,
            "device": self._device,
            "provider": self._provider.word,
            "threads": threads,
        }
        if graph.precision not in EIGHT_BITS:
            return OrtGraph(open_graph(source.path, **options), self._provider)
        try:
            with temporary_folder("the graph as it will run") as folder:
                seen = folder / "optimised.onnx"
                session = open_graph(source.path, **options, optimised=seen)
                ops = count_ops(seen)
        except NoTemporaryFolderError:  # nothing is counted then, but the session runs
            return OrtGraph(open_graph(source.path, **options), self._provider)
        return OrtGraph(session, self._provider, sum(ops[name] for name in _IN_8_BITS))


class OrtGraph:
    """One graph in ONNX Runtime; see folder_session.OpenGraph."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        provider: Provider | None = None,
        in_8_bits: int | None = None,
    ) -> None:
        """Take what open_graph returned, the provider that it was opened on (None: the CPU) and
        how many products it runs in 8 bits."""
        self._in_8_bits = in_8_bits
        self._session, self._provider = session, provider or _CPU
        self._kept: dict[Any, tuple[Any, ...]] = {}

    def signature(self) -> Signature:
        return Signature(_values(self._session.get_inputs()), _values(self._session.get_outputs()))

    def run(self, output: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """See OpenGraph.run; on a GPU, inputs and outputs are bound to its memory."""
        provider = self._provider
        if provider.device == "cpu" and not provider.is_bound:
            return run_graph(self._session, output, feeds)
        try:
            if not provider.is_bound:
                return self._session.run([output], dict(feeds))[0]
            replay = provider.word == "cuda-graph"
            return self._replay(output, feeds) if replay else self._bound(output, feeds)
        except Exception as e:
            # See run_graph; the graph was taken by the GPU's provider, so the GPU is at fault.
            raise MissingError(
                f"ONNX Runtime failed on {provider.device}:{provider.index}: {str(e)[:200]}; a GPU "
                "whose memory is full takes fewer clips at once, or frames"
            ) from e

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
        """See OpenGraph.count_8_bits."""
        return self._in_8_bits

    def _bound(
        self, output: str, feeds: Mapping[str, np.ndarray], options: Any = None
    ) -> np.ndarray:
        import onnxruntime as ort

        place = (self._provider.device, self._provider.index)
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, *place))
        binding.bind_output(output, *place)
        self._session.run_with_iobinding(binding, options)
        return binding.copy_outputs_to_cpu()[0]

    def _replay(self, output: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """One captured graph per output and shapes: what is bound keeps its place."""
        key = (output, *(v.shape for v in feeds.values()))
        if key not in self._kept and len(self._kept) >= MAX_GRAPHS:
            # A graph lives as long as its session, so no earlier one can make room.
            return self._bound(output, feeds, _graph_number(-1))
        if key not in self._kept:
            self._kept[key] = self._capture(output, feeds)
        binding, inputs, result, options = self._kept[key]
        for name, value in feeds.items():
            inputs[name].update_inplace(np.ascontiguousarray(value))
        self._session.run_with_iobinding(binding, options)
        return result.numpy()

    def _capture(self, output: str, feeds: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
        """Bind places of their own; the first run with a new number captures."""
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
        wanted = next(o for o in self._session.get_outputs() if o.name == output)
        shape = [n if isinstance(n, int) else sizes[n] for n in wanted.shape]
        result = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *place)
        binding.bind_ortvalue_output(output, result)
        return binding, inputs, result, _graph_number(len(self._kept) + 1)


def _graph_number(number: int) -> Any:
    """Options of a run whose CUDA graph has this number; -1 runs without one."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _values(values: Any) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for v in values:
        dtype = _DTYPES.get(v.type, v.type.removeprefix("tensor(").removesuffix(")"))
        # Names of free dimensions differ between exporters and mean nothing here.
        found[v.name] = (dtype, tuple(n if isinstance(n, int) else None for n in v.shape))
    return found
