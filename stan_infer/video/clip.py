"""Read T frames of a video as the authors' test pipeline does: sample, decode, resize, crop."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.config import StanConfig
from stan_infer.errors import InputError, check_whole
from stan_infer.system.file_kind import read_kind
from stan_infer.system.outside_file import open_regular
from stan_infer.video.decord_reader import read_decord
from stan_infer.video.gaps import seconds_between
from stan_infer.video.pyav_reader import Found, Indices, Sample, Shrink, errors_named, read_pyav
from stan_infer.video.resize import resize_and_crop
from stan_infer.video.rgb import Image
from stan_infer.video.spec import ClipSpec, check_frames

# How a folder's manifest describes what `sample_indices` and `resize_and_crop` compute: whoever
# changes one of these changes its words here, and older versions refuse such a folder.
RULES: dict[str, Any] = {
    "sampling": {"rule": "round_half_even((n-1)/T*i) + trunc((n-1)/T/2)"},
    "resize": {"filter": "bilinear", "antialias": False, "rounding": "int(side * scale + 0.5)"},
    "crop": "center",
}
READERS: dict[str, Callable[[Path, Sample, Shrink], Found]] = {
    "pyav": read_pyav,
    "decord": read_decord,
    "decord-as-is": partial(read_decord, as_is=True),
}


@dataclass(frozen=True)
class Clip:
    """T frames of one video, and where they come from.

    pixels: uint8 [T, crop, crop, 3], RGB; of V views [V, T, crop, crop, 3]. indices: int64 [T],
    frame numbers from 0; of views [V, T]. total_frames: frames of the video. decoder: "pyav",
    "decord" or "decord-as-is". source_size: (height, width) of the first frame read, after
    rotation, before resizing. gap_s: see gaps.seconds_between. seconds: start and end of the part
    of the video that it shows, None: all. sampling: "clip", by the authors' rule within what it
    shows, or "grid" (video.grid). length_s: seconds that the whole video lasts, as its
    header says; None: it does not say it. hdr: "PQ" or "HLG", the transfer of a video in HDR, whose
    values are taken as they are stored.
    """

    pixels: NDArray[np.uint8]
    indices: Indices
    total_frames: int
    decoder: str
    source_size: tuple[int, int]
    gap_s: float | None = 0.0
    seconds: tuple[float, float] | None = None
    length_s: float | None = None
    hdr: str | None = None
    sampling: str = "clip"


def sample_indices(total_frames: int, frames: int, clip: int = 0, clips: int = 1) -> Indices:
    """Return the frame numbers that the authors' test pipeline takes.

    They are spread evenly by frame number, not by time; a video shorter than `frames` repeats some.
    Source: the release's SampleFrames in test mode (double arithmetic, ties to even).

    Args:
        total_frames: N, of the video, at least 1.
        frames: T, 1 to 64.
        clip: which of `clips` interleaved samples, from 0.
        clips: how many samples in time.

    Returns:
        int64 [T], from 0.

    Raises:
        InputError: a number that is out of range.

    Example:
        >>> import stan_infer as si
        >>> si.sample_indices(100, 4).tolist()
        [12, 37, 62, 86]
    """
    check_whole("total_frames", total_frames, 0)
    if total_frames < 1:
        raise InputError(f"cannot sample frames: the video has {total_frames}; it needs at least 1")
    check_frames(frames)
    check_whole("clips", clips, 1)
    check_whole("clip", clip, 0, clips - 1)
    segment = (total_frames - 1) / frames
    starts = np.round(segment * np.arange(frames, dtype=np.float64))
    return starts.astype(np.int64) + int(segment / (clips + 1) * (clip + 1))


def read_clip(
    path: str | os.PathLike[str],
    frames: int | None = None,
    *,
    config: StanConfig | None = None,
    short_side: int | None = None,
    crop: int | None = None,
    decoder: str = "auto",
) -> NDArray[np.uint8]:
    """Read one video file as a clip; `session.read_clip` takes the sizes from its model.

    Args:
        path: a video file.
        frames: T, 1 to 64. Without it and config 12, which the released MSR-VTT models have.
        config: of a model, which gives T and sizes; each of the others replaces its value.
        short_side: pixels of the shorter side after resizing. Without it and config 224.
        crop: side S of the centred square in pixels. Without it and config 224: CLIP's B/32, B/16
            and L/14.
        decoder: "auto" (PyAV), "pyav", "decord" (the authors'), "decord-as-is".

    Returns:
        uint8 [T, S, S, 3] RGB.

    Raises:
        InputError: see read_clip_info; a number that is not allowed.
        MissingError: the decoder is not installed.

    Example:
        >>> import stan_infer as si
        >>> si.read_clip("examples/motion/clips/green_bar_grows.mp4", 4).shape
        (4, 224, 224, 3)
        >>> with si.open_session("examples/motion/motion.safetensors") as session:
        ...     config = session.config
        >>> si.read_clip("examples/motion/clips/green_bar_grows.mp4", config=config).shape
        (8, 64, 64, 3)
    """
    if config is not None and not isinstance(config, StanConfig):
        raise InputError(
            f"config is of type {type(config).__name__}; give a StanConfig, such as session.config"
        )
    spec = ClipSpec(decoder=decoder) if config is None else ClipSpec.of(config, decoder=decoder)
    given = {"frames": frames, "short_side": short_side, "crop": crop}
    replaced: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    spec = dataclasses.replace(spec, **replaced)
    return read_clip_info(path, spec).pixels


def read_clip_info(path: str | os.PathLike[str], spec: ClipSpec) -> Clip:
    """Sample, decode, resize and crop one video file.

    The container's rotation and mirroring are applied. Raises InputError for a file that is not a
    video, is cut off, or is damaged where a frame is needed (decord conceals damage; PyAV does
    not); MissingError without the decoder's package.
    """
    clips, crops = spec.views or (1, 1)
    name = reader_of(spec)
    file = regular_file(Path(path))

    def shrink(image: Image) -> Image:
        return resize_and_crop(image, spec.short_side, spec.crop, crops)

    def sample(total: int) -> Indices:
        return np.concatenate([sample_indices(total, spec.frames, i, clips) for i in range(clips)])

    with errors_named(file):
        found = READERS[name](file, sample, shrink)
    # [crops, clips * T, S, S, 3] -> one view after the other
    taken = np.stack([found.images[i] for i in found.indices.tolist()], axis=1)
    views = taken.reshape(crops, clips, spec.frames, *taken.shape[2:]).swapaxes(0, 1)
    pixels = np.ascontiguousarray(views).reshape(spec.shape)
    indices = found.indices.reshape(clips, spec.frames).repeat(crops, axis=0)
    if spec.views is None:
        indices = indices[0]
    stated = found.stated
    gap = seconds_between(stated.seconds, found.total_frames, spec.frames)
    return Clip(
        pixels,
        indices,
        found.total_frames,
        name,
        found.size,
        gap,
        length_s=stated.seconds,
        hdr=stated.hdr,
    )


def reader_of(spec: ClipSpec) -> str:
    """The name of the decoder in READERS that a spec asks for."""
    return "pyav" if spec.decoder == "auto" else spec.decoder


def resize_crop(
    frames: NDArray[np.uint8] | Sequence[Image], short_side: int, crop: int
) -> NDArray[np.uint8]:
    """Resize uint8 frames [T, H, W, 3] (or T images of any sizes) and cut the centred square.

    Returns uint8 [T, crop, crop, 3]. Bilinear without antialias (OpenCV INTER_LINEAR), as the
    release does; small frames are enlarged. Raises InputError for frames of another type or shape
    and if crop exceeds short_side.
    """
    ClipSpec(short_side=short_side, crop=crop)  # checks them
    result = np.empty((len(frames), crop, crop, 3), np.uint8)
    for i, image in enumerate(frames):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"frame {i} is {image.dtype} {list(image.shape)}; it must be uint8 [H, W, 3]"
            )
        result[i] = resize_and_crop(image, short_side, crop)[0]
    return result


def check_rules(
    said: Mapping[str, Any], name: str, rules: Mapping[str, Any] = RULES, *, complete: bool = False
) -> None:
    """Raise InputError where a part of a manifest says something else than `rules`.

    complete: it must say all of them. name: of the part, for errors.
    """
    for key, known in rules.items():
        if key not in said and complete:
            raise InputError(f"{name}.{key} is missing: export the model again")
        value = said.get(key, known)
        if isinstance(known, dict) and isinstance(value, dict):
            check_rules(value, f"{name}.{key}", known, complete=complete)
        elif value != known or isinstance(value, bool) != isinstance(known, bool):
            raise InputError(
                f"{name}.{key} is {str(value)[:80]!r}; it must be {str(known)!r}, as the model or "
                "this version has it: export the model again"
            )


def regular_file(path: Path) -> Path:
    """Return the path if it may be that of a video: a regular file, not empty, of no other kind.

    Raises InputError, which says what the file is. A file of unknown kind, or one that FFmpeg knows
    better, such as sound with a video stream, is let through.
    """
    try:
        file, size = open_regular(path)
        with file:
            kind = read_kind(file)
    except (InputError, OSError) as e:
        raise InputError(f"cannot read video {path}: {getattr(e, 'strerror', e)}") from e
    if not size:
        raise InputError(f"{path} is empty (0 bytes); fetch or encode it again")
    if kind is not None and kind.family not in ("video", "sound", "unsure"):
        raise kind.refused(path)
    return path
