"""Read a picture, or the frame that a video shows at a time: an example to search with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, number
from stan_infer.system.outside_file import open_regular
from stan_infer.system.packages import require
from stan_infer.video.decode_worker import DecodeWorker
from stan_infer.video.frames import clip_of_frames
from stan_infer.video.pyav_reader import MAX_PIXELS
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # of no other does a reader run
_SHORTEST = 1e-3  # seconds: the frame that is shown then


def read_still(given: str | Path, spec: ClipSpec, *, timeout_s: float = 60.0) -> NDArray[np.uint8]:
    """Return uint8 [T, crop, crop, 3], T times the same: of a picture, or of VIDEO@SECONDS.

    Raises InputError for a file that is none, cannot be read or is too large, and for a time that
    is not in the video; MissingError without pillow for a picture, or without the decoder.
    """
    path, at, time = str(given).rpartition("@")
    try:
        second = number(time) if at else None
    except ValueError:
        second = None  # the name of a picture may have an @
    if second is None:
        return clip_of_frames([_read_picture(Path(given))], spec)
    windows = Windows(start=second, end=second + _SHORTEST)
    with DecodeWorker() as worker:
        plan = worker.plan(Path(path), windows, timeout_s=timeout_s)
        (clip,) = worker.read_windows(
            Path(path), spec, plan.total_frames, plan.windows, timeout_s=timeout_s
        )
    if isinstance(clip, InputError):
        raise clip
    return clip.pixels


def _read_picture(path: Path) -> NDArray[np.uint8]:
    image: Any = require("PIL.Image", "reading a picture", "report")
    turned: Any = require("PIL.ImageOps", "reading a picture", "report")
    try:
        file, _ = open_regular(path)
        with file, image.open(file, formats=_FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise InputError(
                    f"{path}: {width}x{height} is too large; at most {MAX_PIXELS} pixels are "
                    "allowed: make it smaller"
                )
            return np.asarray(turned.exif_transpose(opened).convert("RGB"))
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as e:
        if isinstance(e, image.UnidentifiedImageError) or not isinstance(e, OSError):
            reason = f"it is not a picture that is read ({', '.join(_FORMATS)})"
        else:
            reason = e.strerror or str(e)
        raise InputError(
            f"cannot read picture {path}: {reason}; of a video give VIDEO@SECONDS"
        ) from e
