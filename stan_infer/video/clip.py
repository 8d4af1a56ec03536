"""Read T frames of a video as the authors' test pipeline does: sample, decode, resize, crop."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, nearest
from stan_infer.video.pyav_reader import (
    MAX_PIXELS,
    Found,
    Image,
    Indices,
    Sample,
    Shrink,
    open_video,
    package,
    read_pyav,
    told,
)
from stan_infer.video.resize import resize_and_crop

MAX_FRAMES = 64
MAX_CLIPS = 16  # views in time; the literature has up to 10
SAMPLING_RULE = "round_half_even((n-1)/T*i) + trunc((n-1)/T/2)"  # what sample_indices computes
DECODERS = ("auto", "pyav", "decord")
SUFFIXES = tuple(".mp4 .mkv .webm .avi .mov .m4v .mpg .mpeg .ts .flv .wmv .3gp .gif".split())


@dataclass(frozen=True)
class Clip:
    """T frames of one video, and where they come from.

    pixels: uint8 [T, crop, crop, 3], RGB; where views were asked for [V, T, crop, crop, 3].
    indices: int64 [T], frame numbers from 0; with views [V, T]. total_frames: frames of the
    video. decoder: "pyav" or "decord".
    source_size: (height, width) of the first frame read, after rotation, before resizing.
    """

    pixels: NDArray[np.uint8]
    indices: Indices
    total_frames: int
    decoder: str
    source_size: tuple[int, int]


def sample_indices(total_frames: int, frames: int, clip: int = 0, clips: int = 1) -> Indices:
    """Return the frame numbers int64 [frames] that the authors' test pipeline takes.

    They go by frame number, not by time; a video shorter than `frames` repeats some. clip: which
    of `clips` interleaved samples. Raises InputError unless total_frames >= 1 and
    1 <= frames <= 64. Source: the release's SampleFrames in test mode (double arithmetic, ties to
    even).
    """
    if total_frames < 1:
        raise InputError(f"cannot sample frames: the video has {total_frames}; it needs at least 1")
    _check_frames(frames)
    segment = (total_frames - 1) / frames
    starts = np.round(segment * np.arange(frames, dtype=np.float64))
    return starts.astype(np.int64) + int(segment / (clips + 1) * (clip + 1))


def read_clip(
    path: str | os.PathLike[str],
    frames: int = 12,
    *,
    short_side: int = 224,
    crop: int = 224,
    decoder: str = "auto",
) -> NDArray[np.uint8]:
    """Return the pixels uint8 [frames, crop, crop, 3] (RGB) of `read_clip_info`."""
    clip = read_clip_info(path, frames=frames, short_side=short_side, crop=crop, decoder=decoder)
    return clip.pixels


def read_clip_info(
    path: str | os.PathLike[str],
    *,
    frames: int = 12,
    short_side: int = 224,
    crop: int = 224,
    decoder: str = "auto",
    views: tuple[int, int] | None = None,
) -> Clip:
    """Sample, decode, resize and crop one video file.

    frames: 1 to 64. short_side: pixels of the shorter side after resizing (the longer one follows).
    crop: side of the centred square, at most short_side. decoder: "auto" (PyAV), "pyav", "decord".
    views: (clips, crops) of a test with several views: samples in time, and 1 or 3 squares along
    the longer side (start, middle, end).
    The container's rotation is applied. Raises InputError for wrong options and for a file that is
    no video, is cut off, or is damaged where a frame is needed (decord conceals damage; PyAV does
    not); MissingError without the decoder's package.
    """
    check_options(frames=frames, short_side=short_side, crop=crop, decoder=decoder, views=views)
    clips, crops = views or (1, 1)
    name = "pyav" if decoder == "auto" else decoder
    file = regular_file(Path(path))

    def shrink(image: Image) -> Image:
        return resize_and_crop(image, short_side, crop, crops)

    def sample(total: int) -> Indices:
        return np.concatenate([sample_indices(total, frames, i, clips) for i in range(clips)])

    with told(file):
        read = read_pyav if name == "pyav" else _read_decord
        found = read(file, sample, shrink)
    # [crops, clips * T, S, S, 3] -> one view after the other
    taken = np.stack([found.images[i] for i in found.indices.tolist()], axis=1)
    pixels = np.ascontiguousarray(
        taken.reshape(crops, clips, frames, *taken.shape[2:]).swapaxes(0, 1)
    ).reshape(clips * crops, frames, *taken.shape[2:])
    indices = found.indices.reshape(clips, frames).repeat(crops, axis=0)
    if views is None:
        pixels, indices = pixels[0], indices[0]
    return Clip(pixels, indices, found.total_frames, name, found.size)


def check_options(
    *,
    frames: int,
    short_side: int,
    crop: int,
    decoder: str,
    views: tuple[int, int] | None = None,
) -> None:
    """Raise InputError for options that `read_clip_info` would refuse for every file."""
    _check_frames(frames)
    if views is not None and not (1 <= views[0] <= MAX_CLIPS and views[1] in (1, 3)):
        raise InputError(
            f"views are {views[0]}x{views[1]} (clips x crops); clips must lie in 1 to {MAX_CLIPS}, "
            "crops are 1 or 3"
        )
    if decoder not in DECODERS:
        hint = nearest(decoder, DECODERS)
        raise InputError(f"no decoder '{decoder}'{hint}; choose one of {', '.join(DECODERS)}")
    if short_side < 1 or short_side**2 > MAX_PIXELS:
        raise InputError(f"short_side is {short_side}; it must lie in 1 to {int(MAX_PIXELS**0.5)}")
    if not 1 <= crop <= short_side:
        raise InputError(
            f"crop is {crop}; it must lie in 1 to short_side ({short_side}): lower crop or raise "
            "short_side"
        )


def resize_crop(
    frames: NDArray[np.uint8] | Sequence[Image], short_side: int, crop: int
) -> NDArray[np.uint8]:
    """Resize uint8 frames [T, H, W, 3] (or T images of any sizes) and cut the centred square.

    Returns uint8 [T, crop, crop, 3]. Bilinear without antialias (OpenCV INTER_LINEAR), as the
    release does; small frames grow. Raises InputError if the frames are no such pictures or if crop
    exceeds short_side.
    """
    check_options(frames=1, short_side=short_side, crop=crop, decoder="auto")
    result = np.empty((len(frames), crop, crop, 3), np.uint8)
    for i, image in enumerate(frames):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"frame {i} is {image.dtype} {list(image.shape)}; it must be uint8 [H, W, 3]"
            )
        result[i] = resize_and_crop(image, short_side, crop)[0]
    return result


def list_videos(paths: Sequence[Path]) -> list[Path]:
    """Return the videos that `paths` name: files as given, folders walked in sorted order.

    A folder gives everything below it with a known suffix (SUFFIXES, any case), also what turns out
    to be no readable file, so that it is reported; hidden names and links to folders are passed
    over. Raises InputError for a path
    that does not exist, a folder that cannot be read and a folder without any video.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):
            inside = _walk(path)
            if not inside:
                raise InputError(f"folder {path} holds no video ({' '.join(SUFFIXES)})")
            found += inside
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise InputError(f"no such video file or folder: {path}; check the spelling")
    return found


def _walk(folder: Path) -> list[Path]:
    def fail(e: OSError) -> None:
        raise InputError(f"cannot read folder {e.filename}: {e.strerror}; check its permissions")

    found = []
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            file = Path(place, name)
            if not name.startswith(".") and file.suffix.lower() in SUFFIXES:
                found.append(file)
    return sorted(found)


def _check_frames(frames: int) -> None:
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError(
            f"frames is {frames}; it must lie in 1 to {MAX_FRAMES}: the model's time table has "
            f"{MAX_FRAMES} rows"
        )


def regular_file(path: Path) -> Path:
    """Return the path of a file that can be opened without waiting; InputError for another."""
    # Opening a FIFO would wait for ever, and a device may do anything: look before opening.
    try:
        status = path.stat()
    except (OSError, ValueError) as e:
        raise InputError(f"cannot read video {path}: {getattr(e, 'strerror', e)}") from e
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a folder; a video file is needed")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a pipe, socket or device; a regular video file is needed")
    if status.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); fetch or encode it again")
    return path


def _read_decord(path: Path, sample: Sample, shrink: Shrink) -> Found:
    """As `read_pyav` with decord, the authors' decoder, by its own count of frames.

    It conceals damage, and on a container that lies it may hang or crash. PyAV checks the file
    first, as decord itself would follow playlists. Raises InputError, MissingError.
    """
    decord = package("decord")
    with open_video(path):
        pass
    images: dict[int, Image] = {}
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
    for number, image in zip(numbers, batch, strict=True):
        images[number] = shrink(image)
    return Found(images, indices, total, (batch.shape[1], batch.shape[2]))
