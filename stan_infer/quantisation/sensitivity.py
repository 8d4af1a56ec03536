"""Which linear costs how much accuracy in 8 bits, and how much time it saves: one by one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto
from torch import Tensor

from stan_infer.engines.open import open_graph
from stan_infer.export.onnx_graph import GraphWriter
from stan_infer.export.onnx_nodes import Nodes
from stan_infer.export.onnx_ops import OnnxOps
from stan_infer.network.eight_bits import QuantProduct, map_products, products
from stan_infer.network.fold import Product, VideoWeights
from stan_infer.quantisation.replay import Replay
from stan_infer.system.temporary import temporary_folder

CLIPS = 2  # that every layer is tried on: its error hardly depends on the clip
ROUNDS = 7


def layer_errors(
    exact: VideoWeights,
    quantised: VideoWeights,
    clips: Sequence[Tensor],
    on_layer: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Relative error of video_embeds with one linear in 8 bits and all others exact, by name.

    Both weights have the same factors through V. |y - y'| / |y| over all clips. on_layer: called
    for each linear and clip.
    """
    low = {n: p for n, p in products(quantised).items() if isinstance(p, QuantProduct)}
    square = dict.fromkeys(low, 0.0)
    whole = 0.0
    for clip in clips:  # outside, so that what is kept is that of one clip
        replay = Replay(exact, clip)
        whole += float(replay.embeds.square().sum())
        for name, p in low.items():
            got = replay.changed(_with(exact, name, p), name)
            square[name] += float((got - replay.embeds).square().sum())
            on_layer()
    return {name: math.sqrt(s / whole) for name, s in square.items()}


def _with(weights: VideoWeights, name: str, product: Product) -> VideoWeights:
    return map_products(weights, lambda n, p: product if n == name else p)


def times_saved(
    exact: VideoWeights, quantised: VideoWeights, rows: Mapping[str, int], threads: int
) -> dict[str, float]:
    """Milliseconds that each linear saves in 8 bits in ONNX Runtime on this machine, by name.

    rows: of each linear's input for one clip. Linears of one shape are timed once, fp32 and 8 bits
    in turn. Negative where 8 bits are slower.
    """
    shapes: dict[tuple[int, int, int], float] = {}
    found = {}
    plain = products(exact)
    with temporary_folder("the graphs that are timed") as folder:
        for name, p in products(quantised).items():
            if isinstance(p, QuantProduct):
                shape = (rows[name], *p.weight.shape)
                if shape not in shapes:
                    shapes[shape] = _saved(folder, plain[name], p, rows[name], threads)
                found[name] = shapes[shape]
    return found


def _saved(folder: Path, exact: Product, quantised: Product, rows: int, threads: int) -> float:
    feeds = {"x": np.random.default_rng(0).standard_normal((rows, exact.weight.shape[1]), "f4")}
    sessions = []
    for i, p in enumerate((exact, quantised)):
        path = folder / f"{i}.onnx"
        graph = GraphWriter("linear", folder, 20)
        graph.input("x", TensorProto.FLOAT, ["rows", p.weight.shape[1]])
        nodes = Nodes(graph, "x", batch=None, frames=None, precision="fp32")
        y = OnnxOps(nodes, width=1, tokens=1).product("linear", "x", p)
        graph.output(y, "y", ["rows", p.weight.shape[0]])
        graph.save(path)
        sessions.append(open_graph(path, threads=threads))
    times: list[list[float]] = [[], []]
    for i in range(ROUNDS + 2):
        for session, spent in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(feeds)
            if i >= 2:
                spent.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[0]) - np.median(times[1]))


def return_order(errors: Mapping[str, float], saved: Mapping[str, float]) -> list[str]:
    """Linears in the order in which they go back: most error per millisecond lost first.

    One that 8 bits make no faster goes first of all.
    """

    def worth(name: str) -> Any:
        ms = saved[name]
        return (0, -errors[name]) if ms <= 0 else (1, -(errors[name] ** 2) / ms)

    return sorted(errors, key=lambda n: (worth(n), n))
