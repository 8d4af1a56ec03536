"""Artificial frames that resemble a video; made with integers, so the same bytes everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def moving_frames(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return uint8 [count, H, W, 3]: smooth colours and a bright edge that moves in each frame."""
    y, x, i = (np.arange(n) for n in (height, width, count))
    wave = x * (3 + seed) + y[:, None] * 5 + (i * 23 + seed * 91)[:, None, None]
    out = np.stack([wave * (c + 1) % 511 for c in range(3)], -1)
    out = np.minimum(out, 511 - out).clip(0, 255).astype(np.uint8)
    for t in range(count):
        left = t * width // (count + 1)
        edge = out[t, height // 4 : height // 2, left : left + max(width // 6, 1)]
        edge[:] = (230, 40, (90 + t) % 256)
    return out
