"""Histograms of the linears' inputs, counted by the network in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.network.eight_bits import LINEARS, NUMBER_FORMATS
from stan_infer.network.folded import FoldedLinear, VideoWeights
from stan_infer.network.fused import video_tower
from stan_infer.network.torch_ops import TorchOps, in_torch
from stan_infer.quantisation.histogram import BINS, Histogram


@torch.inference_mode()
def observe(w: VideoWeights, video: Tensor) -> tuple[dict[str, Histogram], Tensor]:
    """Run clips [B, T, ...]: histograms of every linear's input by path, and video_embeds."""
    ops = _Counting(video.shape[0], video.shape[1])
    mean, _ = video_tower(ops, w, video)
    return ops.found, mean


def counting(
    w: VideoWeights,
) -> Callable[[np.ndarray], tuple[dict[str, Histogram], np.ndarray]]:
    """Return `observe` of these weights, for arrays."""
    weights = in_torch(w)

    def run(video: np.ndarray) -> tuple[dict[str, Histogram], np.ndarray]:
        found, mean = observe(weights, torch.from_numpy(video))
        return found, mean.numpy()

    return run


class _Counting(TorchOps):
    """TorchOps that keep the histogram of every linear's input in `found`, by path."""

    def __init__(self, batch: int, frames: int) -> None:
        super().__init__(batch, frames)
        self.found: dict[str, Histogram] = {}

    def linear(self, x: Tensor, w: FoldedLinear, **options: Any) -> Tensor:
        if w.name in LINEARS:
            self.found[w.path] = count(x)
        return super().linear(x, w, **options)


def count(x: Tensor) -> Histogram:
    """Histogram of |x|; its `largest` is not finite where a value of x is not."""
    low, high = torch.aminmax(x)
    h = Histogram.up_to(float(torch.maximum(-low, high)))
    if np.isfinite(h.largest):
        # The width is a power of two, so that the bins are exact; histc takes six times as long.
        bins = (x.abs() * (1 / h.width)).flatten().to(torch.int32)
        h.counts = torch.bincount(bins, minlength=BINS).numpy()
    return h


def activation_scales(weights: VideoWeights, video: Tensor) -> dict[str, float]:
    """Largest input of each linear over `video`, as a scale for e4m3: a calibration on one clip."""
    seen, _ = observe(weights, video)
    top = NUMBER_FORMATS["fp8"].largest
    return {path: max(h.largest, 1e-6) / top for path, h in seen.items()}
