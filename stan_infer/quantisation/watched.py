"""The video tower in ONNX Runtime with further outputs: what every linear reads, a clip at a time.

On a CPU it takes half the time of the network in plain torch, which it does not import.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from onnx import TensorProto

from stan_infer.artefacts.opsets import OPSETS
from stan_infer.config import StanConfig
from stan_infer.engines.open import open_graph
from stan_infer.export.onnx_graph import GraphWriter
from stan_infer.export.onnx_nodes import END, Nodes
from stan_infer.export.onnx_ops import OnnxOps
from stan_infer.network.cpu_threads import is_small, side_by_side
from stan_infer.network.eight_bits import LINEARS
from stan_infer.network.folded import FoldedLinear, VideoWeights
from stan_infer.network.fused import video_tower
from stan_infer.system.machine import usable_cpus
from stan_infer.system.temporary import temporary_folder

ROWS = 32  # of an input that are kept per clip, evenly spaced
X = TypeVar("X")
Y = TypeVar("Y")

_KINDS = ("channels", "rows", "count")


@dataclasses.dataclass
class Sample:
    """Of one linear's input: the largest |x| of each channel [in], and some rows [n, in].

    count: how many rows one clip has.
    """

    channels: np.ndarray
    rows: np.ndarray
    count: int


class Watched:
    """The video tower, opened in ONNX Runtime for single clips."""

    def __init__(self, weights: VideoWeights, config: StanConfig) -> None:
        """Write the graph to a temporary folder and open it; raises InputError as open_graph."""
        # A large model has one clip in memory, and all threads for it.
        self._is_small = is_small(weights, config.frames * (1 + config.patches))
        threads = 1 if self._is_small else usable_cpus()
        with temporary_folder("the graph that shows what linears read") as folder:
            path = folder / "video.onnx"
            self._paths = _write(path, weights, config)
            self._graph = open_graph(path, "ort", threads=threads, yielding=True)

    def each(self, run: Callable[[X], Y], items: Iterable[X]) -> Generator[tuple[X, Y], None, None]:
        """Yield (item, run(item)) in order, side by side where the model is small."""
        if self._is_small:
            return side_by_side(run, items)
        return ((item, run(item)) for item in items)

    def largest(self, video: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Run one clip uint8 [1, T, S, S, 3].

        Returns the largest |x| per channel [in] of every linear's input by path, and video_embeds
        [1, E].
        """
        found = self._run(video, _KINDS[:1])
        return {path: found[f"{path}/channels"] for path in self._paths}, found["video_embeds"]

    def sample(self, video: np.ndarray) -> tuple[dict[str, Sample], np.ndarray]:
        """As `largest`, with rows of the inputs."""
        found = self._run(video, _KINDS)

        def of(path: str) -> Sample:
            channels, rows, count = (found[f"{path}/{kind}"] for kind in _KINDS)
            return Sample(channels, rows[:ROWS].copy(), int(count[0]))

        return {path: of(path) for path in self._paths}, found["video_embeds"]

    def _run(self, video: np.ndarray, kinds: Sequence[str]) -> dict[str, np.ndarray]:
        names = [f"{path}/{kind}" for path in self._paths for kind in kinds]
        return self._graph.run({"video": video}, [*names, "video_embeds"])


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Samples of several clips put together, by the linear's path, and the videos of these."""

    inputs: dict[str, Sample] = dataclasses.field(default_factory=dict)
    paths: list[Path] = dataclasses.field(default_factory=list)


def samples_of(
    w: VideoWeights, config: StanConfig, clips: Iterable[tuple[Path, np.ndarray]]
) -> Sampled:
    """Sample several clips; one that gives any value that is not finite is left out."""
    parts: dict[str, list[Sample]] = {}
    paths = []
    watched = Watched(w, config)
    for (path, _), (inputs, mean) in watched.each(lambda c: watched.sample(c[1]), clips):
        values = [mean, *(s.channels for s in inputs.values())]
        if all(np.isfinite(v).all() for v in values):
            paths.append(path)
            for name, s in inputs.items():
                parts.setdefault(name, []).append(s)
    return Sampled({name: _together(samples) for name, samples in parts.items()}, paths)


def _together(samples: Sequence[Sample]) -> Sample:
    channels = np.stack([s.channels for s in samples]).max(0)
    return Sample(channels, np.concatenate([s.rows for s in samples]), samples[0].count)


def _write(path: Path, weights: VideoWeights, config: StanConfig) -> list[str]:
    """Write the graph for clips of config.frames; return the paths of the linears in it."""
    graph = GraphWriter("video", path.parent, min(OPSETS))
    s, t = config.image_size, config.frames
    graph.input("video", TensorProto.UINT8, [1, t, s, s, 3])
    nodes = Nodes(graph, "video", batch=1, frames=t, precision="fp32")
    ops = _Watching(nodes, width=config.width, tokens=1 + config.patches)
    mean, _ = video_tower(ops, weights, "video")
    graph.output(mean, "video_embeds", [1, config.embed_dim])
    graph.save(path)
    return ops.paths


class _Watching(OnnxOps):
    """OnnxOps that add outputs for every linear's input; `paths` are those of the linears."""

    def __init__(self, nodes: Nodes, **sizes: Any) -> None:
        super().__init__(nodes, **sizes)
        self.paths: list[str] = []

    def linear(self, x: str, w: FoldedLinear, **options: Any) -> str:
        if w.name in LINEARS:
            self._watch(x, w.path)
        return super().linear(x, w, **options)

    def _watch(self, x: str, path: str) -> None:
        self.paths.append(path)
        g = self._nodes.graph
        first, last, end = (g.constant([n]) for n in (0, END, ROWS))
        with g.scope(path), g.scope("seen"):
            rows = g.node("Flatten", [x], axis=-1)
            channels = g.node("ReduceMax", [g.node("Abs", [rows]), first], keepdims=0)
            count = g.node("Shape", [rows], start=0, end=1)
            step = g.node("Max", [g.node("Div", [count, end]), g.constant([1])])
            kept = g.node("Slice", [rows, first, last, first, step])
        g.output(channels, f"{path}/channels", ["in"])
        g.output(kept, f"{path}/rows", ["n", "in"])
        g.output(count, f"{path}/count", [1], TensorProto.INT64)
