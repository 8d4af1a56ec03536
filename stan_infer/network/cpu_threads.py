"""How many threads of the CPU the network in plain torch takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stan_infer.network.folded import VideoWeights, linears

SMALL = 2e8  # operations of one product, which one thread computes in about 2 ms


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


def rows_of(w: VideoWeights, video: Tensor) -> int:
    """How many rows the linears' inputs have for clips [B, T, ...]."""
    return video.shape[0] * video.shape[1] * (len(w.patches.table) + 1)
