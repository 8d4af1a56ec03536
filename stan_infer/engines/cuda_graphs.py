"""CUDA graphs of a network, one per shape of its input, a bounded number of them in one pool."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_GRAPHS = 8  # shapes of clips or frames that an engine keeps graphs of
WARM_UP = 2  # runs before a capture: kernels are compiled and libraries make their plans

_Captured = tuple[Any, Sequence[Tensor], Sequence[Tensor]]  # graph, its inputs, its outputs


class CudaGraphs:
    """Captures `run` once per shape and replays it; keeps the `limit` shapes that were used last.

    Inputs, where `run` takes several, have one shape.

    All graphs share one memory pool: they never run at the same time, and the outputs of a replay
    are copied before the next one.
    """

    def __init__(
        self,
        run: Callable[..., Sequence[Tensor]],
        device: torch.device,
        limit: int,
        cuda: Any,
        *,
        inputs: int = 1,
        dtype: torch.dtype = torch.uint8,
        on_drop: Callable[[tuple[int, ...]], object] = lambda shape: None,
    ) -> None:
        """run: tensors of `dtype` on the device -> tensors. limit: shapes. cuda: torch.cuda.

        inputs: how many tensors `run` takes. on_drop: called with the shape of each graph that is
        dropped.
        """
        self._run, self._device, self._limit, self._cuda = run, device, limit, cuda
        self._inputs, self._dtype, self._on_drop = inputs, dtype, on_drop
        self._pool: Any = None
        # Our own, because torch's capture stream belongs to the GPU that captured first.
        self._stream: Any = None
        self._captured: OrderedDict[tuple[int, ...], _Captured] = OrderedDict()
        self._reserved: dict[tuple[int, ...], int] = {}

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run on tensors of the device, and capture a new shape; the results are copies."""
        graph, static, outputs = self.capture(tuple(inputs[0].shape))
        for own, x in zip(static, inputs, strict=True):
            own.copy_(x)
        graph.replay()
        return [out.clone() for out in outputs]

    def capture(self, shape: tuple[int, ...]) -> _Captured:
        """Return the graph of a shape, its inputs and outputs; capture it unless it is there."""
        if shape in self._captured:
            self._captured.move_to_end(shape)
            return self._captured[shape]
        while len(self._captured) >= self._limit:
            oldest, _ = self._captured.popitem(last=False)
            self._reserved.pop(oldest)
            self._on_drop(oldest)
        self._captured[shape] = self._capture(shape)
        return self._captured[shape]

    def clear(self) -> None:
        """Drop every graph, because graphs hold the addresses of the weights."""
        for shape in self._captured:
            self._on_drop(shape)
        self._captured.clear()
        self._reserved.clear()
        self._pool = None

    def describe(self) -> dict[str, Any]:
        """Shapes [B, T], the most recently used last, and MiB that captures reserved."""
        return {
            "cuda_graphs": [list(shape[:2]) for shape in self._captured],
            "cuda_graphs_mib": round(sum(self._reserved.values()) / 2**20, 1),
        }

    def _capture(self, shape: tuple[int, ...]) -> _Captured:
        cuda, before = self._cuda, self._cuda.memory_reserved(self._device)
        static = [
            torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(self._inputs)
        ]
        if self._stream is None:
            self._stream = cuda.Stream()
        aside = self._stream
        aside.wait_stream(cuda.current_stream())
        with cuda.stream(aside):
            for _ in range(WARM_UP):
                self._run(*static)
        cuda.current_stream().wait_stream(aside)
        if self._pool is None:
            self._pool = cuda.graph_pool_handle()
        graph = cuda.CUDAGraph()
        # Other threads may use CUDA meanwhile, as a data loader does: that is no part of the graph.
        mode = "thread_local"
        with cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode=mode):
            outputs = self._run(*static)
        self._reserved[shape] = max(0, cuda.memory_reserved(self._device) - before)
        return graph, static, outputs
