"""Peak GEMM: the rate of the fastest matrix product of any installed library on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from stan_infer.benchmarking.starvation import add_doubts, add_far_below
from stan_infer.benchmarking.timing import Clock, CudaClock, WallClock
from stan_infer.config import StanConfig
from stan_infer.engines.open import graph_engines, open_graph
from stan_infer.errors import MissingError
from stan_infer.system.packages import is_installed, require

SHARE = 0.2  # of a run's time that later samples of these products may take


class PeakGemm:
    """Time matrix products between the rounds of a benchmark, and keep the fastest.

    Products of the model's own largest shape and of a square one: on a CPU in fp32 by numpy, torch,
    ONNX Runtime and OpenVINO, as far as they are installed; on a GPU by torch in fp32, fp16, bf16.
    """

    def __init__(self, config: StanConfig, frames: int, threads: int, device: str = "cpu") -> None:
        """Prepare the products; frames: T of the largest clip."""
        self._best: dict[str, tuple[float, str]] = {}
        self._threads = threads
        self._clock: Clock = WallClock()
        rng = np.random.default_rng(0)
        rows = frames * (1 + config.patches)
        square = 1536 if device == "cpu" else 8192
        self._gemms: list[tuple[str, str, int, Callable[[], Any]]] = []
        for m, k, n in ((rows, config.width, config.mlp_width), (square, square, square)):
            a, b = (rng.standard_normal(s, np.float32) for s in ((m, k), (k, n)))
            made = _cpu_gemms(a, b, threads) if device == "cpu" else _gpu_gemms(a, b, device)
            for precision, name, run in made:
                self._gemms.append((precision, f"{name} {m}x{k}x{n}", 2 * m * k * n, run))
        if device != "cpu":
            self._clock = CudaClock(require("torch", "timing a GPU", "gpu").cuda)
        self._start = self._spent = 0.0

    def add_share(self, rows: list[dict[str, Any]]) -> None:
        """Add ceiling_gflop_per_s, ceiling_by and share_of_ceiling to rows that have a speed.

        The share is of the fastest product in the row's precision, or in fp32 if there is none. One
        that is far too small adds to the rows' doubts.
        """
        for row in rows:
            best = self._best.get(row["precision"]) or self._best.get("fp32")
            if best and row.get("gflop_per_s"):
                row["ceiling_gflop_per_s"], row["ceiling_by"] = best
                row["share_of_ceiling"] = row["gflop_per_s"] / best[0]
                add_far_below(row, self._threads)
        add_doubts(rows)

    def sample(self) -> None:
        """Time every product three times, unless earlier samples took more than SHARE."""
        now = time.perf_counter()
        if self._start == 0.0:
            self._start = now
        elif self._spent > SHARE * (now - self._start):
            return
        for precision, name, flops, run in self._gemms:
            run()
            for _ in range(3):
                _, ms, _ = self._clock.time(run)
                rate = flops / ms / 1e6
                if rate > self._best.get(precision, (0.0, ""))[0]:
                    self._best[precision] = (rate, name)
        self._spent += time.perf_counter() - now


def _gpu_gemms(
    a: np.ndarray, b: np.ndarray, device: str
) -> list[tuple[str, str, Callable[[], Any]]]:
    torch = require("torch", "timing a GPU", "gpu")
    found: list[tuple[str, str, Callable[[], Any]]] = []
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        x, y = (torch.from_numpy(v).to(device, dtype) for v in (a, b))
        found.append((name, "torch", partial(torch.matmul, x, y)))
    return found


def _cpu_gemms(
    a: np.ndarray, b: np.ndarray, threads: int
) -> list[tuple[str, str, Callable[[], Any]]]:
    found: list[tuple[str, Callable[[], Any]]] = [("numpy", lambda: a @ b)]
    if is_installed("torch"):
        import torch

        x, y = torch.from_numpy(a), torch.from_numpy(b)
        weight = y.T.contiguous()
        found.append(("torch", lambda: x @ y))
        found.append(("torch linear", lambda: torch.nn.functional.linear(x, weight)))
    if is_installed("onnx"):
        for engine in graph_engines():
            try:
                graph = open_graph(_gemm_graph(b), engine, threads=threads)
            except MissingError:
                continue
            found.append((graph.package, partial(graph.run, {"a": a})))
    return [("fp32", name, run) for name, run in found]


def _gemm_graph(b: np.ndarray) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    k, n = b.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, ["m", n])],
        [numpy_helper.from_array(b, "b")],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
