"""The encoded clip of golden data, and what its frames are, without decoding it.

An ordinary file: H.264 High of 8 bits, 4:2:0, BT.709, groups of pictures with B-frames, sides that
its blocks do not fill. Its pictures are such that encoding has not changed a sample, so the right
pixels are known on any machine. tests/golden/make_clip.py has encoded it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stan_infer.video.integer_rgb import rgb_of_planes

CLIP = Path(__file__).parent / "golden_clip.mp4"
FRAMES, SIDE = 24, 56  # of the clip; pixels
BT709 = 1  # FFmpeg's number of the matrix


def planes(number: int) -> tuple[NDArray[np.uint8], ...]:
    """Y [S, S], U and V [S / 2, S / 2] of a frame: flat blocks and a bar that moves over them.

    The blocks of the upper half change from frame to frame.
    """
    y, x = np.mgrid[: SIDE // 8, : SIDE // 8]
    i = np.where(y < 4, number, 0)
    luma = (16 + (37 * x + 59 * y + 24 * i) % 220).repeat(8, 0).repeat(8, 1)
    u = (30 + (53 * x + 29 * y + 17 * i) % 200).repeat(4, 0).repeat(4, 1)
    v = (220 - (31 * x + 61 * y + 13 * i) % 200).repeat(4, 0).repeat(4, 1)
    bar = slice(number, number + 4)
    luma[8:48, 2 * bar.start : 2 * bar.stop] = 235 - 4 * number
    u[4:24, bar], v[4:24, bar] = 60 + 5 * number, 190 - 5 * number
    return tuple(plane.astype(np.uint8) for plane in (luma, u, v))


def frames(numbers: Iterable[int]) -> NDArray[np.uint8]:
    """Return the frames of these numbers in RGB, uint8 [N, S, S, 3]."""
    return np.stack([rgb_of_planes(planes(i), BT709, full=False) for i in numbers])
