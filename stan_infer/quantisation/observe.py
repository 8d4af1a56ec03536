"""The inputs of the linears on real clips: ranges, channel maxima, a few rows; a clip at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.network.eight_bits import LINEARS, NUMBER_FORMATS
from stan_infer.network.folded import FoldedLinear, VideoWeights, linears
from stan_infer.network.fused import video_tower
from stan_infer.network.torch_ops import TorchOps
from stan_infer.quantisation.histogram import BINS, Histogram

ROWS = 32  # of an input that are kept per clip, evenly spaced
SMALL = 2e8  # operations of one product, which one thread computes in about 2 ms


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
    with threads_for(w, _rows(w, video)):
        mean, _ = video_tower(ops, w, video)
    return ops.found, mean


@torch.inference_mode()
def sample(w: VideoWeights, video: Tensor) -> dict[str, Sample]:
    """Run one clip: channel maxima and rows of every linear's input, by path."""
    ops = _Watching(video.shape[0], video.shape[1], _sample)
    with threads_for(w, _rows(w, video)):
        video_tower(ops, w, video)
    return ops.found


def samples_of(w: VideoWeights, clips: Iterable[Tensor]) -> dict[str, Sample]:
    """Samples of several clips put together; an input that is not finite is left out."""
    found: dict[str, Sample] = {}
    for clip in clips:
        for name, s in sample(w, clip).items():
            if not bool(torch.isfinite(s.channels).all()):
                continue
            if old := found.get(name):
                channels = torch.maximum(old.channels, s.channels)
                s = Sample(channels, torch.cat([old.rows, s.rows]), s.count)
            found[name] = s
    return found


@contextmanager
def threads_for(w: VideoWeights, rows: int) -> Iterator[None]:
    """One thread of the CPU where all products of the linears are small; else torch's own number.

    rows: of a linear's input. The threads of a product that takes microseconds wait for each other
    after it. Where another process has one of their cores, that takes longer than the product.
    """
    product = 2 * rows * max(linear.weight.numel() for linear in linears(w).values())
    before = torch.get_num_threads()
    torch.set_num_threads(1 if product < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rows(w: VideoWeights, video: Tensor) -> int:
    return video.shape[0] * video.shape[1] * (len(w.patches.table) + 1)


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
    seen = sample(weights, video)
    top = NUMBER_FORMATS["fp8"].largest
    return {path: max(float(s.channels.max()), 1e-6) / top for path, s in seen.items()}
