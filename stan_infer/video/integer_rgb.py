"""8-bit 4:2:0 and 4:2:2 of even height to RGB in integers: the bytes of FFmpeg on x86-64.

On other processors FFmpeg's converter rounds in another way, by up to 3 levels, and takes every
second row of colour of 4:2:2. Odd heights it converts in a way of its own everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# What a step of V adds to red, a step of U to blue, and both take from green, of 65536, in limited
# range; by FFmpeg's number of the matrix. Source: libswscale/yuv2rgb.c.
_WEIGHTS = {
    1: (117489, 138438, 13975, 34925),
    4: (104448, 132798, 24759, 53109),
    5: (104597, 132201, 25675, 53279),
    7: (117579, 136230, 16907, 35559),
    9: (110013, 140363, 12277, 42626),
}


def rgb_of_planes(
    planes: Sequence[NDArray[np.uint8]], matrix: int, full: bool
) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3] of Y [H, W], U and V [H or H / 2, W / 2], halves rounded up.

    matrix: FFmpeg's number: 1, 4, 5, 7 or 9. full: samples are 0 to 255, not 16 to 235. A sample of
    colour counts for two columns, and for two lines where there are half as many rows.
    """
    y, u, v = planes
    weights: Sequence[int] = _WEIGHTS[matrix]
    weights = [w * 224 // 255 for w in weights] if full else weights
    red, blue = _steps(128, weights[0])[v], _steps(128, weights[1])[u]
    green = _steps(128, -weights[2])[u] + _steps(128, -weights[3])[v]
    colour = np.stack([red, green, blue], -1).repeat(2, 1)
    if len(u) < len(y):
        colour = colour.repeat(2, 0)
    height, width = y.shape
    black, white = (0, 65536) if full else (16, 65536 * 255 // 219)
    rgb = _steps(black, white)[y][..., None] + colour[:height, :width]
    return rgb.clip(0, 255).astype(np.uint8)


def _steps(zero: int, weight: int) -> NDArray[np.int16]:
    """For each sample, what it is above `zero` times `weight` of 65536; always rounded down."""
    samples = np.arange(256, dtype=np.int32) - zero
    return (samples * 8 * ((weight + 4) >> 3) >> 16).astype(np.int16)
