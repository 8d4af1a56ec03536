"""Small pictures of videos for a page: a few frames beside each other, as the model sees them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stan_infer.library.readings import EmbedOptions
from stan_infer.system.packages import require
from stan_infer.video.clip import Clip
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.spec import ClipSpec

FRAMES, SIDE = 3, 96  # of a picture; pixels
_QUALITY = 78  # of JPEG: some 8 kB a picture


def check_thumbnails() -> None:
    """Raise MissingError where pictures cannot be made; call it before long work."""
    require("PIL.Image", "drawing thumbnails", "report")


def thumbnails(
    paths: Sequence[Path],
    decoder: str,
    options: EmbedOptions,
    on_video: Callable[[], None] = lambda: None,
) -> dict[Path, str]:
    """Read each video again and return its picture as a data: URL of a JPEG, FRAMES * SIDE wide.

    A video that cannot be read now has none. The squares are the centres of the frames. Videos are
    decoded in processes of their own (decode_worker); what is packed here are pixels of a known
    size.
    """
    spec = ClipSpec(frames=FRAMES, short_side=SIDE, crop=SIDE, decoder=decoder)
    found = {}
    readings = read_clips(paths, spec, workers=options.workers, timeout_s=options.timeout_s)
    with closing(readings):
        for path, result in readings:
            on_video()
            if isinstance(result, Clip):
                found[path] = data_url(result.pixels)
    return found


def data_url(pixels: NDArray[np.uint8]) -> str:
    """A picture of frames uint8 [T, S, S, 3] beside each other, as a data: URL."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(np.concatenate(pixels, 1))).decode()


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A picture uint8 [H, W, 3] as a file. Raises MissingError without the package."""
    image = require("PIL.Image", "drawing thumbnails", "report")
    packed = io.BytesIO()
    image.fromarray(np.ascontiguousarray(picture)).save(packed, "JPEG", quality=_QUALITY)
    return packed.getvalue()
