"""A clip from frames that the caller has decoded: a camera's, a DataLoader's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError, check_word
from stan_infer.video.clip import Indices, resize_crop, sample_indices
from stan_infer.video.rgb import Image
from stan_infer.video.spec import MAX_FRAMES, ClipSpec

ORDERS = ("rgb", "bgr")
_GIVE = "give a list of frames uint8 [H, W, 3], or an array uint8 [N, H, W, 3]"


def clip_of_frames(
    frames: Any,
    spec: ClipSpec,
    *,
    order: str = "rgb",
    timestamps: Any = None,
    sample: bool = True,
) -> NDArray[np.uint8]:
    """Return uint8 [T, crop, crop, 3] RGB: see Session.prepare; spec: T and the sizes."""
    check_word("order", str(order), ORDERS)
    images = _sequence(frames)
    if not sample:
        if timestamps is not None:
            raise InputError("timestamps choose frames, and sample=False takes all: give one")
        if len(images) > MAX_FRAMES:
            raise InputError(
                f"frames holds {len(images)} frames, and sample=False takes them all; a model "
                f"takes at most {MAX_FRAMES}: leave sample away, or give fewer"
            )
        indices: Indices = np.arange(len(images))
    elif timestamps is None:
        indices = sample_indices(len(images), spec.frames)
    else:
        indices = indices_in_time(timestamps, len(images), spec.frames)
    # Each once: of a short video some frames are taken twice.
    taken, place = np.unique(indices, return_inverse=True)
    rgb = [_rgb(images[i], i, order) for i in taken.tolist()]
    return resize_crop(rgb, spec.short_side, spec.crop)[place]


def indices_in_time(timestamps: Any, count: int, frames: int) -> Indices:
    """Return the frame numbers int64 [frames] spread evenly by time, for frames at `timestamps`.

    The frames nearest to the times of those that sample_indices would take of as many frames at an
    even rate: where the rate is even, they are the same. Raises InputError unless timestamps are
    `count` finite numbers that do not fall.
    """
    try:
        times = np.asarray(timestamps, np.float64)
    except (TypeError, ValueError) as e:
        raise InputError(f"timestamps are no list of numbers ({e}); give seconds") from e
    if times.shape != (count,):
        raise InputError(
            f"timestamps have shape {list(times.shape)} for {count} frames; give one per frame"
        )
    with np.errstate(over="ignore"):
        span = 2 * times  # finite: so are all differences
    if not np.isfinite(span).all() or (np.diff(times) < 0).any():
        raise InputError("timestamps must be finite and must not fall; give seconds, oldest first")
    wanted = sample_indices(count, frames)
    if times[-1] == times[0]:  # one frame, or a clock that stands still
        return wanted
    at = times[0] + wanted / (count - 1) * (times[-1] - times[0])
    right = np.searchsorted(times, at).clip(1, count - 1)
    return right - (at - times[right - 1] <= times[right] - at)


def _sequence(frames: Any) -> Sequence[Any]:
    """Return what has a length and numbered items; InputError for anything else."""
    if isinstance(frames, memoryview):
        frames = np.asarray(frames)
    if hasattr(frames, "dtype"):
        shape = tuple(frames.shape)
        if len(shape) == 4 and shape[1] == 3 != shape[3]:
            raise InputError(
                f"frames have shape {list(shape)}, which looks like channels first; give uint8 "
                "[N, H, W, 3], as by frames.permute(0, 2, 3, 1) or frames.transpose(0, 2, 3, 1)"
            )
        if len(shape) == 3:
            raise InputError(
                f"frames have shape {list(shape)}: of one frame give [frame]; grey frames need "
                "three equal channels, as by numpy.repeat(frames[..., None], 3, -1)"
            )
        # An array of objects is a list of frames.
        if len(shape) != 4 and not (len(shape) == 1 and str(frames.dtype) == "object"):
            raise InputError(f"frames have shape {list(shape)}; {_GIVE}; a batch clip by clip")
    elif isinstance(frames, (str, bytes, dict)) or not (
        hasattr(frames, "__getitem__") and hasattr(frames, "__len__")
    ):
        raise InputError(
            f"frames are of type {type(frames).__name__}; {_GIVE}; keep the last ones of a stream "
            "in a collections.deque(maxlen=N)"
        )
    if not len(frames):
        raise InputError(f"frames holds no frame: N is 0; {_GIVE}")
    found: Sequence[Any] = frames
    return found


def _rgb(frame: Any, number: int, order: str) -> Image:
    """Return a frame as uint8 [H, W, 3] RGB, or InputError with what is wrong and what to do."""
    try:
        if hasattr(frame, "cpu"):
            frame = frame.detach().cpu().numpy()
        image = np.asarray(frame.asnumpy() if hasattr(frame, "asnumpy") else frame)  # decord's
    except (TypeError, ValueError, RuntimeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise InputError(
            f"frame {number}, of type {type(frame).__name__}, cannot be read as an array "
            f"({reason}); {_GIVE}"
        ) from e
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        advice = "give RGB or BGR uint8"
        if image.dtype.kind == "f":
            advice = "give the decoder's uint8, or (frame * 255).round().astype('uint8') of 0 to 1"
        elif image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
            advice = "a grey frame becomes one by numpy.dstack([frame] * 3)"
        elif image.ndim == 3 and image.shape[2] == 4:
            advice = "leave out the fourth channel: frame[:, :, :3]"
        elif image.ndim == 3 and image.shape[0] == 3:
            advice = "it looks like channels first: frame.transpose(1, 2, 0)"
        raise InputError(
            f"frame {number} is {image.dtype} {list(image.shape)}; frames are uint8 [H, W, 3]: "
            f"{advice}"
        )
    return image if order == "rgb" else image[:, :, ::-1]
