"""python -m benchmarks.engines: CPU engines on both graphs, interleaved, as shares of a ceiling.

The ceiling is the fastest matrix product that any library reached during the same run, sampled
between the rounds. GFLOP/s count the reference's products, so that a graph which does less shows
as more than it does. Random weights: speed does not depend on them. Appends rows to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import append_rows
from stan_infer.bench import Lane, bench_videos
from stan_infer.config import StanConfig, preset
from stan_infer.engines import open_session
from stan_infer.export import export_model
from stan_infer.fold import fold_video
from stan_infer.model import Stan, init_random
from stan_infer.torch_ops import encode_video


class TorchLane:
    """A torch function of uint8 clips -> [B, E] as the session that a lane needs."""

    def __init__(self, config: StanConfig, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Wrap `run`."""
        self.config, self._run = config, run

    @torch.inference_mode()
    def embed_video(self, clips: np.ndarray) -> torch.Tensor:
        """Run one batch."""
        return self._run(torch.from_numpy(clips))

    def describe(self) -> dict[str, Any]:
        """What runs."""
        return {"device": "cpu", "precision": "fp32", "torch": torch.__version__}


class Ceiling:
    """Fastest product that any library reaches, over all samples taken."""

    def __init__(self, rows: int, width: int, hidden: int, threads: int) -> None:
        """Prepare products of the network's own largest shape, and of a square one."""
        self.best, self.by = 0.0, ""
        rng = np.random.default_rng(0)
        self._products: list[tuple[str, int, Callable[[], Any]]] = []
        for m, k, n in ((rows, width, hidden), (1536, 1536, 1536)):
            a, b = (rng.standard_normal(s, np.float32) for s in ((m, k), (k, n)))
            x, y = torch.from_numpy(a), torch.from_numpy(b)
            shape = f"{m}x{k}x{n}"
            self._products += [
                (f"torch {shape}", 2 * m * k * n, lambda x=x, y=y: x @ y),
                (f"torch linear {shape}", 2 * m * k * n, _linear(x, y)),
                (f"onnxruntime {shape}", 2 * m * k * n, _ort(a, b, threads)),
                (f"openvino {shape}", 2 * m * k * n, _openvino(a, b, threads)),
            ]

    def sample(self) -> None:
        """Time every product three times."""
        for name, flops, run in self._products:
            run()
            for _ in range(3):
                start = time.perf_counter()
                run()
                rate = flops / (time.perf_counter() - start) / 1e9
                if rate > self.best:
                    self.best, self.by = rate, name


def _linear(x: torch.Tensor, y: torch.Tensor) -> Callable[[], Any]:
    weight = y.T.contiguous()
    return lambda: torch.nn.functional.linear(x, weight)


def _product_graph(b: np.ndarray) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    (k, n) = b.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, ["m", n])],
        [numpy_helper.from_array(b, "b")],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()


def _ort(a: np.ndarray, b: np.ndarray, threads: int) -> Callable[[], Any]:
    from stan_infer.engines.ort_session import open_graph

    session = open_graph(_product_graph(b), threads=threads)
    return lambda: session.run(None, {"a": a})


def _openvino(a: np.ndarray, b: np.ndarray, threads: int) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    model = core.compile_model(core.read_model(_product_graph(b)), "CPU", settings)
    return lambda: model({"a": a})


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="stan-b32,stan-b16,stan-l14")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    args = parser.parse_args()
    for name in args.presets.split(","):
        model = init_random(Stan(preset(name))).eval().requires_grad_(False)
        with tempfile.TemporaryDirectory() as folder:
            paths = {g: Path(folder) / g for g in ("reference", "fused")}
            t = args.frames
            for graph, path in paths.items():
                # Dynamic in T, in a narrow range: the export proves every size, which takes longer
                # than the measurement.
                limits = (max(t - 1, 1), t)
                export_model(model, path, graph=graph, tower="video", frames=limits, batch=1)
            for threads in (int(n) for n in args.threads.split(",")):
                rows = _measure(model, paths, threads, args)
                path = append_rows("engines", [{"model": name, **row} for row in rows])
                print(f"{len(rows)} rows of {name}, {threads} threads -> {path.name}", flush=True)


def _measure(
    model: Stan, paths: dict[str, Path], threads: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    config = model.config
    weights = fold_video(model)
    compiled = torch.compile(model.encode_video)
    torch_lanes = {
        ("eager", "reference"): lambda x: model.encode_video(x).mean(1),
        ("compile", "reference"): lambda x: compiled(x).mean(1),
        ("eager", "fused"): lambda x: encode_video(weights, x)[0],
    }
    # A lane needs no more of a session than TorchLane has: it embeds no text.
    lanes = [Lane("/".join(k), TorchLane(config, f)) for k, f in torch_lanes.items()]  # type: ignore[arg-type]
    for engine in ("ort", "openvino"):
        for graph, path in paths.items():
            session = open_session(path, engine, threads=threads)
            lanes.append(Lane(f"{engine}/{graph}", session))
    rows = args.frames * (1 + config.patches)
    ceiling = Ceiling(rows, config.width, config.mlp_width, threads)
    measured = bench_videos(
        lanes,
        batches=[1],
        frames=[args.frames],
        warmup=args.warmup,
        repeats=args.repeats,
        on_round=ceiling.sample,
    )
    for row in measured:
        row["engine"], row["graph"] = row["engine"].split("/")
        row |= {
            "threads": threads,
            "ceiling_gflop_per_s": ceiling.best,
            "ceiling_by": ceiling.by,
            "share_of_ceiling": row["gflop_per_s"] / ceiling.best,
        }
    for lane in lanes[len(torch_lanes) :]:
        lane.session.close()
    return measured


if __name__ == "__main__":
    main()
