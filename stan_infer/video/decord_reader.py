"""Decode chosen frames of one video file with decord, the decoder that the authors use."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stan_infer.errors import InputError
from stan_infer.video.pyav_reader import Found, Sample, Shrink, open_video, package


def read_decord(path: Path, sample: Sample, shrink: Shrink) -> Found:
    """As `read_pyav`, with decord and the number of frames that it counts.

    decord conceals damage, and may hang or crash if a container gives a wrong number of frames.
    PyAV opens the file first, because decord itself would follow playlists. Raises InputError,
    MissingError.
    """
    decord = package("decord")
    with open_video(path):
        pass
    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        total = len(reader)
        if total < 1:
            raise InputError(f"{path} holds no frame that decord can read; fetch it again")
        indices = sample(total)
        numbers = np.unique(indices).tolist()
        batch = reader.get_batch(numbers).asnumpy()
    except decord.DECORDError as e:
        lines = [line for line in str(e).splitlines() if line.strip()] or ["no reason given"]
        raise InputError(
            f"decord cannot decode {path}: {lines[0][-300:]}; try --decoder pyav"
        ) from e
    images = {number: shrink(image) for number, image in zip(numbers, batch, strict=True)}
    return Found(images, indices, total, (batch.shape[1], batch.shape[2]))
