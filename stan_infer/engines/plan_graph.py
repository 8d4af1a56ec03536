"""One plan in TensorRT, on torch CUDA tensors: contexts, streams and CUDA graphs by shape."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.atomic import new_file
from stan_infer.cache_folder import cache_folder
from stan_infer.engines.cuda_graphs import CudaGraphs
from stan_infer.engines.folder_session import Signature, Value
from stan_infer.errors import InputError, MissingError
from stan_infer.plan_file import Plan
from stan_infer.tensorrt_api import message_log, reason

MAX_SHAPES = 8  # contexts, and with them graphs, that are kept
_TORCH = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


class PlanGraph:
    """A plan with one input, ready to run; see folder_session.OpenGraph. For one thread."""

    def __init__(
        self,
        plan: Plan,
        module: Any,
        device: torch.device,
        *,
        cuda_graphs: bool = True,
        cuda: Any = torch.cuda,
    ) -> None:
        """Deserialise a plan that was checked for this version and GPU.

        module: the package of its engine. cuda_graphs: replay a graph per shape; else inputs and
        outputs are used where they lie, and every call is launched. cuda: torch.cuda, or what
        stands in for it. Raises InputError for a plan that was changed since it was checked,
        MissingError where TensorRT does not take it.
        """
        self._plan, self._module, self._device, self._cuda = plan, module, device, cuda
        self._log = message_log(module)
        self._thread = threading.get_ident()
        self._log.errors.clear()
        self._runtime = module.Runtime(self._log)
        # Host code inside a plan stays forbidden: engine_host_code_allowed is never set.
        self._engine = self._runtime.deserialize_cuda_engine(plan.load())
        if self._engine is None:
            raise MissingError(
                f"{plan.flavor} does not take plan {plan.path}: {reason(list(self._log.errors))}; "
                f"build it again: {plan.rebuild()}"
            )
        self._io = self._tensors()
        (self._input, *more) = [n for n, (mode, *_) in self._io.items() if mode == "input"]
        if more:
            raise InputError(f"plan {plan.path} has several inputs; a session runs towers only")
        self._outputs = [n for n, (mode, *_) in self._io.items() if mode == "output"]
        self._is_rtx = plan.engine == "trt-rtx"
        self._use_graphs = cuda_graphs
        self._contexts: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._static: dict[tuple[int, ...], tuple[Tensor, list[Tensor]]] = {}
        self._graphs = CudaGraphs(
            self._launch, device, MAX_SHAPES, cuda, dtype=self._io[self._input][1],
            on_drop=lambda shape: self._contexts.pop(shape, None),
        )  # fmt: skip
        self._runtime_config: Any = None
        self._runtime_cache: Any = None
        if self._is_rtx:
            self._runtime_config, self._runtime_cache = self._configure()

    def signature(self) -> Signature:
        """See OpenGraph.signature."""
        found: dict[str, dict[str, Value]] = {"input": {}, "output": {}}
        for name, (mode, dtype, shape) in self._io.items():
            sizes = tuple(None if n < 0 else n for n in shape)
            found[mode][name] = (str(dtype).removeprefix("torch."), sizes)
        return Signature(found["input"], found["output"])

    def run(self, output: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """See OpenGraph.run."""
        return self.run_all([output], feeds)[0]

    def run_all(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Several outputs of one run, as arrays."""
        ((_, value),) = feeds.items()
        found = self(torch.from_numpy(np.ascontiguousarray(value)).to(self._device))
        return [found[name].cpu().numpy() for name in names]

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Run on a tensor of this device and the current stream; does not wait for the GPU.

        Raises InputError for a shape outside every profile, with the ranges, or another thread
        than the one that opened the session; MissingError where the GPU fails.
        """
        if threading.get_ident() != self._thread:
            raise InputError(
                f"a session of engine {self._plan.engine} belongs to the thread that opened it: "
                "open one in each thread"
            )
        shape = tuple(x.shape)
        self._plan.profile_of({self._input: shape})
        x = x.contiguous()
        with torch.inference_mode(), self._cuda.device(self._device):
            if self._use_graphs and not self._is_rtx:
                values = self._graphs(x)
            elif self._use_graphs:
                values = self._replay_rtx(x)
            else:
                values = self._launch(x)
        return dict(zip(self._outputs, values, strict=True))

    def describe(self) -> dict[str, Any]:
        """See OpenGraph.describe."""
        kept = self._static if self._is_rtx else self._contexts
        graphs: dict[str, Any] = {"cuda_graphs": [list(shape[:2]) for shape in kept]}
        if self._use_graphs and not self._is_rtx:
            graphs = self._graphs.describe()
        return {
            self._plan.flavor: str(self._module.__version__),
            "plan": self._plan.path.name,
            "tf32": self._plan.sidecar.get("tf32"),
            "torch": torch.__version__,
            **(graphs if self._use_graphs else {}),
        }

    def close(self) -> None:
        """Free contexts and engine; RTX's compiled code is kept for the next start."""
        if self._runtime_cache is not None:
            data = bytes(self._runtime_cache.serialize())
            if data:
                with new_file(self._cache_path()) as temporary:
                    temporary.write_bytes(data)
        self._graphs.clear()
        self._contexts.clear()
        self._static.clear()
        self._runtime_cache = self._runtime_config = self._engine = None

    def _tensors(self) -> dict[str, tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name -> "input" or "output", dtype, shape (-1 where free)."""
        found = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            is_input = self._engine.get_tensor_mode(name) == self._module.TensorIOMode.INPUT
            dtype = str(self._engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]
            if dtype not in _TORCH:
                raise InputError(f"plan {self._plan.path}: {name} is {dtype}, which torch has not")
            shape = tuple(int(n) for n in self._engine.get_tensor_shape(name))
            found[name] = ("input" if is_input else "output", _TORCH[dtype], shape)
        return found

    def _launch(self, x: Tensor) -> list[Tensor]:
        """Run into new tensors, on the current stream, from and to where they lie."""
        shape = tuple(x.shape)
        context = self._contexts.get(shape)
        if context is None:
            if not self._use_graphs:  # with graphs, a context lives as long as its graph
                while len(self._contexts) >= MAX_SHAPES:
                    self._contexts.popitem(last=False)
            context = self._contexts[shape] = self._context(shape)
        self._contexts.move_to_end(shape)
        outputs = []
        for name in self._outputs:
            sizes = tuple(int(n) for n in context.get_tensor_shape(name))
            outputs.append(torch.empty(sizes, dtype=self._io[name][1], device=self._device))
        self._enqueue(context, x, outputs)
        return outputs

    def _enqueue(self, context: Any, x: Tensor, outputs: Sequence[Tensor]) -> None:
        context.set_tensor_address(self._input, x.data_ptr())
        for name, value in zip(self._outputs, outputs, strict=True):
            context.set_tensor_address(name, value.data_ptr())
        self._log.errors.clear()
        if not context.execute_async_v3(self._cuda.current_stream().cuda_stream):
            raise MissingError(
                f"{self._plan.flavor} could not run {self._plan.path.name} on "
                f"{list(x.shape)}: {reason(list(self._log.errors))}"
            )

    def _context(self, shape: tuple[int, ...]) -> Any:
        """A context of its own for each shape: a captured graph forbids to change its context."""
        profile = self._plan.profile_of({self._input: shape})
        self._log.errors.clear()
        given = [self._runtime_config] if self._is_rtx else []
        context = self._engine.create_execution_context(*given)
        stream = self._cuda.current_stream().cuda_stream
        ready = (
            context is not None
            and context.set_optimization_profile_async(profile, stream)
            and context.set_input_shape(self._input, shape)
            and not context.infer_shapes()
        )
        if not ready:
            raise MissingError(
                f"{self._plan.flavor} has no context for {list(shape)} of "
                f"{self._plan.path.name}: {reason(list(self._log.errors))}; a GPU whose memory is "
                "full takes profiles with a smaller batch or fewer frames"
            )
        return context

    def _replay_rtx(self, x: Tensor) -> list[Tensor]:
        """RTX captures by itself, and replays what keeps its addresses."""
        shape = tuple(x.shape)
        if shape not in self._static:
            while len(self._static) >= MAX_SHAPES:
                oldest = next(iter(self._static))
                del self._static[oldest]
                self._contexts.pop(oldest, None)
            self._static[shape] = torch.empty_like(x), self._launch(x)
        static, outputs = self._static[shape]
        static.copy_(x)
        self._enqueue(self._contexts[shape], static, outputs)
        return [value.clone() for value in outputs]

    def _configure(self) -> tuple[Any, Any]:
        """RTX: CUDA graphs by the runtime, and its compiled kernels from the last time."""
        config = self._engine.create_runtime_config()
        if self._use_graphs:
            config.cuda_graph_strategy = self._module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = config.create_runtime_cache()
        path = self._cache_path()
        if path.is_file():
            cache.deserialize(path.read_bytes())  # False: of another GPU or driver; made anew
        config.set_runtime_cache(cache)
        return config, cache

    def _cache_path(self) -> Path:
        sm = "".join(map(str, self._cuda.get_device_capability(self._device)))
        name = f"{self._plan.sidecar['plan_sha256'][:32]}-sm_{sm}.cache"
        return cache_folder("trt-rtx") / name
