"""The authors' resize and crop, to the byte: OpenCV's INTER_LINEAR on uint8, without antialias.

OpenCV computes with whole numbers: source coordinates (d + 0.5) scale - 0.5 in double, rounded to
float; weights of 11 bits; columns first, a shift by 4, then rows, of whose products the low 16 bits
are dropped. So the package does without OpenCV's 160 MB; tests compare with it. Only pixels inside
the crop are computed. `preprocess.onnx` does the same.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ONE = np.float32(2048)  # weight 1 in 11 bits
# Source index, its neighbour, and the weight of each, for every kept row or column.
Positions = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (height, width) after scaling the shorter side to `short_side`, as mmcv rounds."""
    scale = short_side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resize_and_crop(
    image: NDArray[np.uint8], short_side: int, crop: int, crops: int = 1
) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] -> uint8 [crops, crop, crop, 3]: shorter side to `short_side`, squares kept.

    crops: 1 is the centred square; 3 are at the start, middle and end of the longer side. `crop` is
    at most `short_side`. Small pictures are enlarged.
    """
    height, width = image.shape[:2]
    new_height, new_width = resized_size(height, width, short_side)
    top, left = (new_height - crop) // 2, (new_width - crop) // 2
    if crops == 1:
        return _square(image, (new_height, new_width), top, left, crop)[None]
    places = [(0, left), (top, left), (2 * top, left)]
    if new_width >= new_height:
        places = [(top, 0), (top, left), (top, 2 * left)]
    return np.stack([_square(image, (new_height, new_width), *p, crop) for p in places])


def _square(
    image: NDArray[np.uint8], resized: tuple[int, int], top: int, begin: int, crop: int
) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    if resized == (height, width):  # every weight is 1: OpenCV's sums give the same values
        return image[top : top + crop, begin : begin + crop].copy()
    plan = _plan((height, width), resized, top, begin, crop)
    kept = image.take(plan.rows, 0)  # a quarter of the time of image[plan.rows]
    lines = kept.take(plan.left, 1) * plan.left_weight
    lines += kept.take(plan.right, 1) * plan.right_weight
    lines >>= 4
    total = lines.take(plan.upper, 0) * plan.upper_weight
    total >>= 16
    below = lines.take(plan.lower, 0) * plan.lower_weight
    below >>= 16
    total += below
    total += 2
    return (total >> 2).astype(np.uint8)


class _Plan(NamedTuple):
    """Which rows of a picture are needed; of these above and below, and the columns beside, every
    pixel that is kept, with their weights.
    """

    rows: NDArray[np.int64]
    upper: NDArray[np.int64]
    lower: NDArray[np.int64]
    upper_weight: NDArray[np.int32]
    lower_weight: NDArray[np.int32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    left_weight: NDArray[np.int32]
    right_weight: NDArray[np.int32]


@functools.lru_cache(maxsize=32)
def _plan(
    size: tuple[int, int], resized: tuple[int, int], top: int, begin: int, crop: int
) -> _Plan:
    upper, lower, upper_weight, lower_weight = _positions(size[0], resized[0], top, crop)
    left, right, left_weight, right_weight = _positions(size[1], resized[1], begin, crop, True)
    rows = np.union1d(upper, lower)
    return _Plan(
        rows,
        np.searchsorted(rows, upper),
        np.searchsorted(rows, lower),
        upper_weight[:, None, None],
        lower_weight[:, None, None],
        left,
        right,
        left_weight[:, None],
        right_weight[:, None],
    )


def _positions(
    size: int, resized: int, begin: int, crop: int, are_columns: bool = False
) -> Positions:
    scale = 1 / (resized / size)
    kept = np.arange(crop) + begin
    at = ((kept + 0.5) * scale - 0.5).astype(np.float32)
    low = np.floor(at).astype(np.int64)
    part = at - np.floor(at)
    if are_columns:  # beyond the edge OpenCV gives columns weight 1; rows keep their two weights
        part[(low < 0) | (low >= size - 1)] = 0
    one, two = (np.rint(w * _ONE).astype(np.int32) for w in (np.float32(1) - part, part))
    return np.clip(low, 0, size - 1), np.clip(low + 1, 0, size - 1), one, two
