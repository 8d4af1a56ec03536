"""The error that each linear causes in 8 bits, and the time that it saves, one by one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from stan_infer.engines.open import open_graph
from stan_infer.export.onnx_graph import GraphWriter
from stan_infer.export.onnx_nodes import Nodes
from stan_infer.export.onnx_ops import OnnxOps
from stan_infer.network.cpu_threads import rows_of, threads_for
from stan_infer.network.eight_bits import QuantisedLinear
from stan_infer.network.folded import (
    Conv,
    FoldedLinear,
    LastSpatial,
    Patches,
    TowerConfig,
    VideoWeights,
    linears,
    map_linears,
)
from stan_infer.network.fused import Schedule, video_tower
from stan_infer.network.torch_ops import TorchOps, in_torch
from stan_infer.system.temporary import temporary_folder

CLIPS = 2  # on which every linear is tried: its error hardly depends on the clip
ROUNDS = 7  # of timing


class Replay:
    """The video tower on one clip, which can be run again from one linear's block on.

    The residual stream of the first run is kept: at most 3 values [T, P + 1, D] per layer.
    """

    @torch.inference_mode()
    def __init__(self, weights: VideoWeights, video: Tensor) -> None:
        """Run clips [B, T, ...] once; `embeds` is their video_embeds [B, E]."""
        self._video = video
        self._kept: dict[str, Tensor] = {}
        self.embeds = self._run(weights, None)

    @torch.inference_mode()
    def changed(self, weights: VideoWeights, linear: FoldedLinear) -> Tensor:
        """video_embeds [B, E] of weights that differ from the first ones in that linear alone."""
        return self._run(weights, linear.block)

    def _run(self, weights: VideoWeights, block: str | None) -> Tensor:
        ops = _From(self._video.shape[0], self._video.shape[1], block, self._kept)
        return video_tower(ops, weights, self._video, ops.schedule)[0]


class _InBranch(Schedule):
    """`now`: whether what runs now reads the branch, as a branch layer and the head do."""

    now = False

    @contextmanager
    def branch_layer(self, trunk: object) -> Iterator[None]:
        self.now = True
        yield
        self.now = False

    def meet(self, cls: object) -> None:
        self.now = True


class _From(TorchOps):
    """TorchOps that compute from a block on; before it they take the residual stream from `kept`.

    Other operations before it return their input, which nothing reads. block None: compute all,
    and keep the residual stream.
    """

    def __init__(self, batch: int, frames: int, block: str | None, kept: dict[str, Tensor]) -> None:
        super().__init__(batch, frames)
        self.schedule = _InBranch()
        self._block, self._kept, self._reached = block, kept, block is None
        self._from_branch = False

    def _reach(self, w: FoldedLinear) -> None:
        """Note that this block begins; called before its norm."""
        if w.block == self._block and not self._reached:
            self._reached, self._from_branch = True, self.schedule.now

    @property
    def _is_known(self) -> bool:
        return not self._reached or (self._from_branch and not self.schedule.now)

    def _stream(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """A value of the residual stream."""
        if self._is_known:
            return self._kept[name]
        value = compute()
        if self._block is None:
            self._kept[name] = value
        return value

    def embed(self, video: Tensor, w: Patches, tower: TowerConfig) -> Tensor:
        return self._stream(w.path, lambda: super(_From, self).embed(video, w, tower))

    def norm_linear(self, x: Tensor, w: FoldedLinear, tower: TowerConfig, **options: Any) -> Tensor:
        self._reach(w)
        return super().norm_linear(x, w, tower, **options)

    def linear(self, x: Tensor, w: FoldedLinear, **options: Any) -> Tensor:
        if options.get("residual") is None:
            return x if self._is_known else super().linear(x, w, **options)
        return self._stream(w.path, lambda: super(_From, self).linear(x, w, **options))

    def temporal_conv(self, patches: Tensor, w: Conv) -> Tensor:
        return self._stream(w.path, lambda: super(_From, self).temporal_conv(patches, w))

    def norm(self, name: str, x: Tensor, tower: TowerConfig, gain: Tensor | None = None) -> Tensor:
        return x if self._is_known else super().norm(name, x, tower, gain)

    def attention(
        self, name: str, qkv: Tensor, tower: TowerConfig, *, causal: bool = False
    ) -> Tensor:
        return qkv if self._is_known else super().attention(name, qkv, tower, causal=causal)

    def temporal_attention(self, name: str, qkv: Tensor, tower: TowerConfig) -> Tensor:
        return qkv if self._is_known else super().temporal_attention(name, qkv, tower)

    def spatial_attention(self, name: str, qkv: Tensor, tower: TowerConfig) -> Tensor:
        return qkv if self._is_known else super().spatial_attention(name, qkv, tower)

    def class_attention(
        self, patches: Tensor, cls: Tensor, w: LastSpatial, tower: TowerConfig
    ) -> Tensor:
        self._reach(w.q)
        return cls if self._is_known else super().class_attention(patches, cls, w, tower)


def layer_errors(
    exact: VideoWeights,
    quantised: VideoWeights,
    clips: Sequence[np.ndarray],
    on_layer: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Relative error of video_embeds with one linear in 8 bits and all others exact, by its path.

    |y - y'| / |y| over all clips uint8 [1, T, S, S, 3]. Both sets of weights have the same factors
    through V. on_layer: called for each linear and clip.
    """
    exact = in_torch(exact)
    changed = linears(in_torch(quantised))
    low = {n: w for n, w in changed.items() if isinstance(w, QuantisedLinear)}
    square = dict.fromkeys(low, 0.0)
    whole = 0.0
    for clip in map(torch.from_numpy, clips):  # outside, so that what is kept is that of one clip
        with threads_for(exact, rows_of(exact, clip)):
            replay = Replay(exact, clip)
            whole += float(replay.embeds.square().sum())
            for path, linear in low.items():
                got = replay.changed(_with(exact, linear), linear)
                square[path] += float((got - replay.embeds).square().sum())
                on_layer()
    return {path: math.sqrt(s / whole) for path, s in square.items()}


def _with(weights: VideoWeights, linear: FoldedLinear) -> VideoWeights:
    return map_linears(weights, lambda w: linear if w.path == linear.path else w)


def times_saved(
    exact: VideoWeights, quantised: VideoWeights, rows: Mapping[str, int], threads: int
) -> dict[str, float]:
    """Milliseconds that each linear saves in 8 bits in ONNX Runtime on this machine, by path.

    Negative where 8 bits are slower. rows: of each linear's input for one clip. Linears of one
    shape are timed once, fp32 and 8 bits in turn.
    """
    shapes: dict[tuple[int, int, int], float] = {}
    found = {}
    plain = linears(exact)
    with temporary_folder("the graphs that are timed") as folder:
        for path, w in linears(quantised).items():
            if isinstance(w, QuantisedLinear):
                shape = (rows[path], *w.weight.shape)
                if shape not in shapes:
                    shapes[shape] = _saved(folder, plain[path], w, rows[path], threads)
                found[path] = shapes[shape]
    return found


def _saved(
    folder: Path, exact: FoldedLinear, quantised: FoldedLinear, rows: int, threads: int
) -> float:
    feeds = {"x": np.random.default_rng(0).standard_normal((rows, exact.weight.shape[1]), "f4")}
    sessions = []
    for i, w in enumerate((exact, quantised)):
        path = folder / f"{i}.onnx"
        graph = GraphWriter("linear", folder, 20)
        graph.input("x", TensorProto.FLOAT, ["rows", w.weight.shape[1]])
        nodes = Nodes(graph, "x", batch=None, frames=None, precision="fp32")
        y = OnnxOps(nodes, width=1, tokens=1).linear("x", w)
        graph.output(y, "y", ["rows", w.weight.shape[0]])
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
    """Linears in the order in which they return to fp32: most error per millisecond saved first.

    Those that 8 bits make no faster come before all others.
    """

    def worth(name: str) -> Any:
        ms = saved[name]
        return (0, -errors[name]) if ms <= 0 else (1, -(errors[name] ** 2) / ms)

    return sorted(errors, key=lambda n: (worth(n), n))
