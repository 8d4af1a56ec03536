"""Turn a decoded frame into upright RGB pixels: the same with every version of PyAV.

The pixels are those of decord, which the authors use. PyAV's converter depends on its version where
rows of colour are interpolated (4:2:0 of more than 8 bits or of odd height) and where fields are
marked (interlaced). So frames are copied into one that has none of that: rows of colour are spread
here, fields are taken as one picture, and matrix and range are always written down. On other
processors than x86-64 it also rounds in another way: there, `integer_rgb` does what it can.
"""

from __future__ import annotations

import platform
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError
from stan_infer.video.integer_rgb import rgb_of_planes

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.reformatter import VideoReformatter

Image: TypeAlias = NDArray[np.uint8]  # [H, W, 3], RGB

_YUV = re.compile(r"yuv([aj]?)(4\d\d)p(?:(\d+)le)?")  # FFmpeg's names of formats with planes
# FFmpeg's numbers of matrices that its converter knows; all others are taken for BT.601 (5), as
# decord does. BT.2020 with constant luminance (10) is taken for the other one (9).
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_LIMITED, _FULL = 1, 2  # FFmpeg's numbers of ranges
_local = threading.local()
_NEARLY_1 = 0.998  # FFmpeg drops weights below 0.002
_IS_X86 = platform.machine() in ("x86_64", "AMD64")
_IN_INTEGERS = ("yuv420p", "yuv422p")  # formats of `integer_rgb`, of even height
_TOLERANCE = 0.02  # of a matrix whose columns have length 1: one degree, as the ffmpeg program


def upright_rgb(frame: VideoFrame, path: Path) -> Image:
    """Return a frame as uint8 [H, W, 3], turned and mirrored as its container asks for.

    path: names the file in errors. Raises InputError for a picture that is to be slanted, or turned
    by an angle that is not a multiple of 90 degrees.
    """
    return _upright(_rgb(frame, _plain(frame)), display_matrix(frame), path)


def _rgb(frame: VideoFrame, plain: VideoFrame) -> Image:
    known = plain is not frame and plain.format.name in _IN_INTEGERS and plain.height % 2 == 0
    if known and not _IS_X86:
        planes = [_rows(plane, 8) for plane in plain.planes]
        return rgb_of_planes(planes, int(plain.colorspace), plain.color_range == _FULL)
    rgb = _converter().reformat(
        plain, format="rgb24", interpolation="BILINEAR", dst_color_range=_FULL, threads=1
    )
    return np.asarray(rgb.to_ndarray(), np.uint8)


def _converter() -> VideoReformatter:
    """This thread's converter, which keeps what FFmpeg prepares for a size and a format."""
    if not hasattr(_local, "converter"):
        from av.video.reformatter import VideoReformatter

        _local.converter = VideoReformatter()
    found: VideoReformatter = _local.converter
    return found


def _plain(frame: VideoFrame) -> VideoFrame:
    """Copy a frame of planes; the copy has a known matrix and range, and no fields."""
    found = _YUV.fullmatch(frame.format.name)
    # Lines that are stored upwards are not where PyAV says; no codec with such planes has them.
    if not found or any(p.line_size <= 0 for p in frame.planes):
        return frame
    kind, sampling, bits = found[1], found[2], int(found[3] or 8)
    odd = frame.height % 2 == 1
    spread = sampling == "420" and (bits > 8 or odd)
    depth = min(16, bits + 2 + bits % 2) if spread and odd else bits  # 2 bits more, for halves
    name = f"yuv{'422' if spread else sampling}p{f'{depth}le' if depth > 8 else ''}"
    import av

    copy = av.VideoFrame(frame.width, frame.height, name)
    copy.colorspace = _MATRICES.get(frame.colorspace, 5)
    copy.color_range = _FULL if kind == "j" or frame.color_range == _FULL else _LIMITED
    for source, target in zip(frame.planes, copy.planes, strict=False):  # an alpha plane is left
        rows, to = _rows(source, bits), _rows(target, depth)
        if len(rows) == len(to):
            to[:] = rows if depth == bits else rows.astype(to.dtype) << (depth - bits)
        else:
            upper, lower = _neighbours(len(rows), len(to))
            both = np.add(rows[upper], rows[lower], dtype=np.uint32 if depth == 16 else np.uint16)
            np.right_shift(both << (depth - bits), 1, out=to, casting="unsafe")
    return copy


def _rows(plane: Any, bits: int) -> NDArray[Any]:
    """The samples [height, width] of a plane, without copying."""
    dtype = np.dtype("<u2" if bits > 8 else np.uint8)
    lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return lines[:, : plane.width * dtype.itemsize].view(dtype)


def _neighbours(count: int, height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of `height` lines, the two of `count` rows of colour whose mean it takes.

    As FFmpeg's converter in decord: of the two nearest rows the upper one alone where its weight is
    more than a half, else the mean of both. Its numbers: 16 bits of fraction, weights of 12 bits.
    """
    step = ((count << 16) + height // 2) // height
    place = (np.arange(height) * 2 + 1) * step / 2 / 65536 - 0.5
    upper = np.floor(place).astype(np.int64)
    weight = place - upper  # of the lower row
    whole = weight > _NEARLY_1
    upper[whole] += 1
    two = (np.rint(weight * 4096) >= 2048) & ~whole
    two = np.where(upper < 0, False, np.where(upper >= count - 1, True, two))
    upper = upper.clip(0, max(count - 2, 0))
    return upper, np.minimum(upper + two, count - 1)


def display_matrix(frame: VideoFrame) -> tuple[float, float, float, float] | None:
    """Return (a, b, c, d) of a frame, None without one: x' = a x + c y, y' = b x + d y.

    x and y are to the right and down. Source: ISO/IEC 14496-12, 6.2.2, and libavutil/display.h.
    """
    from av.sidedata.sidedata import Type

    if "_missing_" not in vars(Type):  # before PyAV 19 a type that it does not know is an error
        Type._missing_ = classmethod(_unknown_type)  # type: ignore[method-assign,assignment]
    found: Any = frame.side_data
    data = found.get(Type.DISPLAYMATRIX)
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(data, np.int32, 5).astype(np.float64)
    wide, high = np.hypot(a, c), np.hypot(b, d)
    # The ffmpeg program ignores a matrix that would leave nothing, and all scaling.
    return None if not wide or not high else (a / wide, b / high, c / wide, d / high)


def _unknown_type(cls: Any, value: object) -> Any:
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


def _upright(image: Image, matrix: tuple[float, float, float, float] | None, path: Path) -> Image:
    if matrix is None:
        return image
    a, b, c, d = (round(x) for x in matrix)
    off = max(abs(x - y) for x, y in zip(matrix, (a, b, c, d), strict=True))
    if off > _TOLERANCE or abs(a * d - b * c) != 1:
        numbers = ", ".join(f"{x:.3g}" for x in matrix)
        raise InputError(
            f"{path}: its container asks players to slant the picture, or to turn it by an angle "
            f"that is not a multiple of 90 degrees (display matrix {numbers}); re-encode it with "
            "ffmpeg, which applies that"
        )
    if b:  # x and y change places
        image = image.swapaxes(0, 1)
    if a + c < 0:
        image = image[:, ::-1]
    if b + d < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)
