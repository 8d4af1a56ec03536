"""Run one plan in TensorRT on torch's CUDA tensors, with a context and a CUDA graph per shape."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.engines.cuda_graphs import CudaGraphs
from stan_infer.engines.graph import OpenGraph, Signature, TensorType
from stan_infer.errors import InputError, MissingError, StanError
from stan_infer.system.atomic import new_file
from stan_infer.system.cache_folder import cache_folder
from stan_infer.tensorrt_plans.api import message_log, reason
from stan_infer.tensorrt_plans.plan_file import Plan

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
_SMALLER = (
    "a GPU whose memory is full takes fewer clips at once, or frames, and profiles of that size"
)
_logger = logging.getLogger(__name__)


@dataclasses.dataclass
class _Ready:
    """A context for one shape, and its scratch memory, which must live as long."""

    context: Any
    scratch: Tensor | None


class PlanGraph(OpenGraph):
    """A plan whose inputs have one shape, ready to run, for the thread that opened it.

    inputs: their names, in the order of a call.
    """

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

        module: the package of its engine. cuda_graphs: replay a graph per shape; else every call
        launches the plan on the given input and new outputs. cuda: torch.cuda, or its stand-in.
        Raises InputError for a plan that was changed since it was checked, MissingError where
        TensorRT does not take it.
        """
        self._plan, self._module, self._device, self._cuda = plan, module, device, cuda
        self._log = message_log(module)
        self._thread = threading.get_ident()
        self._is_rtx = plan.engine == "trt-rtx"
        self._use_graphs = cuda_graphs
        self._ready: OrderedDict[tuple[int, ...], _Ready] = OrderedDict()
        self._static: OrderedDict[tuple[int, ...], tuple[list[Tensor], list[Tensor]]] = (
            OrderedDict()
        )
        self._scratch: Tensor | None = None
        self._runtime_config: Any = None
        self._runtime_cache: Any = None
        with self._on_gpu():  # a TensorRT engine belongs to the GPU that is current here
            self._stream = cuda.Stream()
            self._log.errors.clear()
            self._runtime = module.Runtime(self._log)
            # engine_host_code_allowed stays off: code for the host in a plan is not run.
            self._engine = self._runtime.deserialize_cuda_engine(plan.load())
            if self._engine is None:
                raise MissingError(
                    f"{plan.flavor} does not take plan {plan.path}: "
                    f"{reason(list(self._log.errors))}; build it again: {plan.rebuild()}"
                )
            if self._is_rtx:
                self._runtime_config, self._runtime_cache = self._configure()
        self._io = self._tensors()
        self.inputs = [n for n, (mode, *_) in self._io.items() if mode == "input"]
        if len({self._io[n][1:] for n in self.inputs}) != 1:
            raise InputError(
                f"the {len(self.inputs)} inputs of plan {plan.path} differ in type or shape; those "
                "of a tower, or of a part of one, do not"
            )
        self._outputs = [n for n, (mode, *_) in self._io.items() if mode == "output"]
        self._graphs = CudaGraphs(
            self._launch, device, MAX_SHAPES, cuda, inputs=len(self.inputs),
            dtype=self._io[self.inputs[0]][1], on_drop=self._drop,
        )  # fmt: skip

    def signature(self) -> Signature:
        found: dict[str, dict[str, TensorType]] = {"input": {}, "output": {}}
        for name, (mode, dtype, shape) in self._io.items():
            sizes = tuple(None if n < 0 else n for n in shape)
            found[mode][name] = (str(dtype).removeprefix("torch."), sizes)
        return Signature(found["input"], found["output"])

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        arrays = [np.ascontiguousarray(feeds[name]) for name in self.inputs]
        with self._on_gpu():
            found = self(*(torch.from_numpy(x).to(self._device) for x in arrays))
            return {name: found[name].cpu().numpy() for name in outputs or found}

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Run on tensors of this device, after the work on the current stream, without waiting.

        Raises InputError for a shape outside every profile, with the ranges, and in another thread
        than the one that opened the session; MissingError where the GPU or its memory fails.
        """
        if threading.get_ident() != self._thread:
            raise InputError(
                f"a session of engine {self._plan.engine} belongs to the thread that opened it: "
                "open one in each thread"
            )
        self._profile(tuple(inputs[0].shape))
        with torch.inference_mode(), self._on_gpu():
            # On a stream of our own: torch's default one cannot capture graphs, and calls from
            # several streams share buffers, so they must not run at the same time.
            given, theirs = [x.contiguous() for x in inputs], self._cuda.current_stream()
            self._stream.wait_stream(theirs)
            with self._cuda.stream(self._stream):
                if self._use_graphs and not self._is_rtx:
                    values = self._graphs(*given)
                elif self._use_graphs:
                    values = self._replay_rtx(*given)
                else:
                    values = self._launch(*given)
            theirs.wait_stream(self._stream)
        return dict(zip(self._outputs, values, strict=True))

    def describe(self) -> dict[str, Any]:
        graphs: dict[str, Any] = self._graphs.describe() if self._use_graphs else {}
        if self._use_graphs and self._is_rtx:  # RTX captures graphs itself; see _replay_rtx
            graphs = {"cuda_graphs": [list(shape[:2]) for shape in self._static]}
        scratch = self._scratch.numel() if self._scratch is not None else 0
        return {
            self._plan.flavor: str(self._module.__version__),
            "plan": self._plan.path.name,
            "plan_sha256": self._plan.sidecar["plan_sha256"],
            "tf32": self._plan.sidecar.get("tf32"),
            "torch": torch.__version__,
            "scratch_mib": round(scratch / 2**20, 1),
            **graphs,
        }

    def close(self) -> None:
        """Free contexts and engine; the code that RTX compiled is kept in the cache folder."""
        if self._engine is None:
            return
        with self._on_gpu():
            self._cuda.synchronize()
            if self._runtime_cache is not None:
                self._keep_compiled()
            self._graphs.clear()
            self._ready.clear()
            self._static.clear()
            self._scratch = None
            self._runtime_cache = self._runtime_config = self._engine = None

    def _tensors(self) -> dict[str, tuple[str, torch.dtype, tuple[int, ...]]]:
        """Return name -> "input" or "output", dtype, shape (-1 where it may vary)."""
        found = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            is_input = self._engine.get_tensor_mode(name) == self._module.TensorIOMode.INPUT
            dtype = str(self._engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]
            if dtype not in _TORCH:
                raise InputError(f"plan {self._plan.path}: {name} is {dtype}, unknown to torch")
            shape = tuple(int(n) for n in self._engine.get_tensor_shape(name))
            found[name] = ("input" if is_input else "output", _TORCH[dtype], shape)
        return found

    def _profile(self, shape: tuple[int, ...]) -> int:
        return self._plan.profile_of(dict.fromkeys(self.inputs, shape))

    def _launch(self, *inputs: Tensor) -> list[Tensor]:
        """Run on the current stream, on these inputs themselves, into new tensors."""
        shape = tuple(inputs[0].shape)
        if shape not in self._ready:
            if not self._use_graphs:  # with graphs, the context is dropped with its graph
                while len(self._ready) >= MAX_SHAPES:
                    self._drop(next(iter(self._ready)))
            self._ready[shape] = self._context(shape)
        self._ready.move_to_end(shape)
        context = self._ready[shape].context
        try:
            outputs = []
            for name in self._outputs:
                sizes = tuple(int(n) for n in context.get_tensor_shape(name))
                outputs.append(torch.empty(sizes, dtype=self._io[name][1], device=self._device))
            self._enqueue(context, inputs, outputs)
        except BaseException:
            self._ready.pop(shape)  # no graph was made, so nothing else would drop it
            raise
        return outputs

    def _enqueue(self, context: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        names = (*self.inputs, *self._outputs)
        for name, value in zip(names, (*inputs, *outputs), strict=True):
            context.set_tensor_address(name, value.data_ptr())
        self._log.errors.clear()
        if not context.execute_async_v3(self._cuda.current_stream().cuda_stream):
            raise MissingError(
                f"{self._plan.flavor} could not run {self._plan.path.name} on "
                f"{list(inputs[0].shape)}: {reason(list(self._log.errors))}"
            )

    def _context(self, shape: tuple[int, ...]) -> _Ready:
        """Make a context for this shape alone: that of a captured graph must not be changed."""
        profile = self._profile(shape)
        self._log.errors.clear()
        # By default each context takes the memory of the largest profile. Ours never run at the
        # same time, so they share one memory, as large as the shapes that were seen need.
        strategy = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        given = self._runtime_config if self._is_rtx else strategy
        context = self._engine.create_execution_context(given)
        stream = self._cuda.current_stream().cuda_stream
        ready = (
            context is not None
            and context.set_optimization_profile_async(profile, stream)
            and all(context.set_input_shape(name, shape) for name in self.inputs)
            and not context.infer_shapes()
        )
        size = context.update_device_memory_size_for_shapes() if ready else 0
        if not ready or self._log.errors:
            raise MissingError(
                f"{self._plan.flavor} has no context for {list(shape)} of "
                f"{self._plan.path.name}: {reason(list(self._log.errors))}; {_SMALLER}"
            )
        if size and (self._scratch is None or self._scratch.numel() < size):
            self._scratch = torch.empty(size, dtype=torch.uint8, device=self._device)
        if size:
            assert self._scratch is not None
            context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        return _Ready(context, self._scratch)

    def _replay_rtx(self, *inputs: Tensor) -> list[Tensor]:
        """Run in RTX, which itself captures a graph and replays it for the same addresses."""
        shape = tuple(inputs[0].shape)
        if shape not in self._static:
            while len(self._static) >= MAX_SHAPES:
                oldest, _ = self._static.popitem(last=False)
                self._drop(oldest)
            own = [torch.empty_like(x) for x in inputs]
            self._static[shape] = own, self._launch(*inputs)
        self._static.move_to_end(shape)
        static, outputs = self._static[shape]
        for kept, x in zip(static, inputs, strict=True):
            kept.copy_(x)
        self._enqueue(self._ready[shape].context, static, outputs)
        return [value.clone() for value in outputs]

    def _drop(self, shape: tuple[int, ...]) -> None:
        """Free the context of a shape when the GPU has finished its work."""
        if shape in self._ready:
            self._cuda.synchronize()
            del self._ready[shape]

    @contextmanager
    def _on_gpu(self) -> Iterator[None]:
        """Make this GPU the current one; an error of it or of its memory is a MissingError."""
        try:
            with self._cuda.device(self._device):
                yield
        except RuntimeError as e:  # of torch and of NVIDIA's bindings
            if isinstance(e.__context__, StanError):  # ending the failed capture raised this one
                raise e.__context__ from None
            help = _SMALLER if isinstance(e, torch.OutOfMemoryError) else "see: stan-infer doctor"
            raise MissingError(
                f"{self._plan.path.name} failed on {self._device}: "
                f"{str(e).splitlines()[0][:300]}; {help}"
            ) from e

    def _configure(self) -> tuple[Any, Any]:
        """For RTX: its own CUDA graphs, and the kernels that it compiled the last time."""
        config, module = self._engine.create_runtime_config(), self._module
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        config.set_execution_context_allocation_strategy(strategy)
        if self._use_graphs:
            config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = config.create_runtime_cache()
        path = self._cache_path()
        if path.is_file():
            cache.deserialize(path.read_bytes())  # False if of another GPU or driver: made again
        config.set_runtime_cache(cache)
        return config, cache

    def _keep_compiled(self) -> None:
        """Write what RTX compiled; if that fails, the next start is slower."""
        try:
            data = self._runtime_cache.serialize()
            if data is not None and bytes(data):
                with new_file(self._cache_path()) as temporary:
                    temporary.write_bytes(bytes(data))
        except StanError as e:
            _logger.warning("compiled code of %s is not kept: %s", self._plan.path.name, e)

    def _cache_path(self) -> Path:
        sm = "".join(map(str, self._cuda.get_device_capability(self._device)))
        name = f"{self._plan.sidecar['plan_sha256'][:32]}-sm_{sm}.cache"
        return cache_folder("trt-rtx") / name
