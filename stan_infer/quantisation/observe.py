"""The inputs of the linears on real clips: ranges, channel maxima, a few rows; a clip at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.network.cpu_threads import side_by_side
from stan_infer.network.eight_bits import LINEARS, NUMBER_FORMATS
from stan_infer.network.folded import FoldedLinear, VideoWeights
from stan_infer.network.fused import video_tower
from stan_infer.network.torch_ops import TorchOps
from stan_infer.quantisation.histogram import BINS, Histogram

ROWS = 32  # of an input that are kept per clip, evenly spaced


@dataclasses.dataclass
class Sample:
    """Of one linear's input: the largest |x| of each channel [in], and some rows [n, in].

    count: how many rows one clip has.
    """

    channels: Tensor
    rows: Tensor
    count: int


@torch.inference_mode()
def observe(
    w: VideoWeights, video: Tensor, *, only_largest: bool = False
) -> tuple[dict[str, Histogram], Tensor]:
    """Run one clip [1, T, ...]: histograms of every linear's input by path, and video_embeds.

    only_largest: histograms without counts, for which the clip takes half the time.
    """
    ops = _Watching(video.shape[0], video.shape[1], find_largest if only_largest else count)
    mean, _ = video_tower(ops, w, video)
    return ops.found, mean


@torch.inference_mode()
def sample(w: VideoWeights, video: Tensor) -> tuple[dict[str, Sample], Tensor]:
    """Run one clip: channel maxima and rows of every linear's input by path, and video_embeds."""
    ops = _Watching(video.shape[0], video.shape[1], _sample)
    mean, _ = video_tower(ops, w, video)
    return ops.found, mean


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Samples of several clips put together, by the linear's path, and the videos of these."""

    inputs: dict[str, Sample] = dataclasses.field(default_factory=dict)
    paths: list[Path] = dataclasses.field(default_factory=list)


def samples_of(w: VideoWeights, clips: Iterable[tuple[Path, Tensor]]) -> Sampled:
    """Sample several clips; one that gives any value that is not finite is left out."""
    parts: dict[str, list[Sample]] = {}
    paths = []
    for (path, _), (inputs, mean) in side_by_side(lambda c: sample(w, c[1]), clips):
        values = [mean, *(s.channels for s in inputs.values())]
        if all(bool(torch.isfinite(v).all()) for v in values):
            paths.append(path)
            for name, s in inputs.items():
                parts.setdefault(name, []).append(s)
    return Sampled({name: _together(samples) for name, samples in parts.items()}, paths)


def _together(samples: Sequence[Sample]) -> Sample:
    channels = torch.stack([s.channels for s in samples]).amax(0)
    return Sample(channels, torch.cat([s.rows for s in samples]), samples[0].count)


class _Watching(TorchOps):
    """TorchOps that keep look(x) of every linear's input x in `found`, by path."""

    def __init__(self, batch: int, frames: int, look: Callable[[Tensor], Any]) -> None:
        super().__init__(batch, frames)
        self.found: dict[str, Any] = {}
        self._look = look

    def linear(self, x: Tensor, w: FoldedLinear, **options: Any) -> Tensor:
        if w.name in LINEARS:
            self.found[w.path] = self._look(x)
        return super().linear(x, w, **options)


def _sample(x: Tensor) -> Sample:
    rows = x.flatten(0, -2)
    kept = rows[:: max(len(rows) // ROWS, 1)][:ROWS].clone()
    return Sample(rows.abs().amax(0), kept, len(rows))


def find_largest(x: Tensor) -> Histogram:
    """Histogram of |x| without counts; its `largest` is not finite where a value of x is not."""
    low, high = torch.aminmax(x)
    h, largest = Histogram(), float(torch.maximum(-low, high))
    if np.isfinite(largest):
        h.widen(largest)
    else:
        h.largest = largest
    return h


def count(x: Tensor) -> Histogram:
    """Histogram of |x|; its `largest` is not finite where a value of x is not."""
    h = find_largest(x)
    if np.isfinite(h.largest):
        # The width is a power of two, so that the bins are exact; histc takes six times as long.
        bins = (x.abs() * (1 / h.width)).flatten().to(torch.int32)
        h.counts = torch.bincount(bins, minlength=BINS).numpy()
    return h


def activation_scales(weights: VideoWeights, video: Tensor) -> dict[str, float]:
    """Largest input of each linear over `video`, as a scale for e4m3: a calibration on one clip."""
    seen, _ = sample(weights, video)
    top = NUMBER_FORMATS["fp8"].largest
    return {path: max(float(s.channels.max()), 1e-6) / top for path, s in seen.items()}
