"""The clips and texts that every engine takes, checked, and its results as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.errors import InputError
from stan_infer.text.blank import check_not_blank
from stan_infer.text.tokenizer import tokenize

Check = Callable[[tuple[int, ...], str], object]  # see clip_array


def any_clips(shape: tuple[int, ...], dtype: str) -> None:
    """The check of an engine that takes all clips; see clip_array."""


def clip_array(config: StanConfig, video: Any, check: Check = any_clips) -> np.ndarray:
    """Clips, see Session.embed_video -> a contiguous array uint8 or float32, checked.

    check: the engine's own check of shape and dtype ("uint8" or "float32"), before values are read.
    """
    given = video
    if isinstance(video, (list, tuple)):
        if not video:
            raise InputError("video holds no clips: B is 0")
        given, video = video[0], _stacked(video, "clips")
    clips = np.asarray(as_numpy(video))
    is_uint8 = clips.dtype == np.uint8
    if clips.dtype.kind in "OSTU":
        raise wrong_dtype(_a(given))
    if not is_uint8 and clips.dtype.kind != "f":
        raise wrong_dtype(clips.dtype)
    check_video(config, clips.shape, is_uint8)
    check(clips.shape, "uint8" if is_uint8 else "float32")
    if is_uint8:
        return np.ascontiguousarray(clips)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        clips = np.ascontiguousarray(clips, np.float32)
    check_finite(i for i, clip in enumerate(clips) if not np.isfinite(clip).all())
    return clips


def normalised(config: StanConfig, clips: np.ndarray) -> np.ndarray:
    """Clips uint8 [B, T, S, S, 3] -> what a graph for floats takes, float32 [B, T, 3, S, S]."""
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    values = (clips.astype(np.float32) - mean) / std
    return np.ascontiguousarray(np.moveaxis(values, -1, 2))


def wrong_dtype(dtype: object) -> InputError:
    """Return the error for clips of a dtype, or of a type, that no engine takes."""
    return InputError(
        f"video is {dtype}; give uint8 [B,T,H,W,3] or float [B,T,3,H,W]: an array, a tensor or a "
        "list of clips"
    )


def check_finite(bad: Iterable[int]) -> None:
    """Raise InputError if there is a number of a clip that holds NaN or infinity."""
    for i in bad:
        raise InputError(
            f"clip {i} of video holds NaN or infinite values, for which engines differ: give "
            "finite floats"
        )


def check_video(config: StanConfig, shape: tuple[int, ...], is_uint8: bool) -> None:
    """Raise InputError for clips of a wrong shape; the layout follows the dtype, not the sizes."""
    s, layout = config.image_size, "[B,T,H,W,3]" if is_uint8 else "[B,T,3,H,W]"
    kind = "uint8" if is_uint8 else "float"
    want = (s, s, 3) if is_uint8 else (3, s, s)
    if len(shape) != 5 or shape[2:] != want:
        full = ", ".join(map(str, ("B", "T", *want)))
        raise InputError(f"video has shape {list(shape)}; {kind} clips are {layout}: [{full}]")
    if shape[0] < 1:
        raise InputError("video holds no clips: B is 0")
    if not 1 <= shape[1] <= config.max_frames:
        raise InputError(
            f"video has {shape[1]} frames; this model's time table has {config.max_frames} rows: "
            f"give 1 to {config.max_frames} frames"
        )


def token_ids(config: StanConfig, texts: Any, vocabulary: Path | None = None) -> np.ndarray:
    """Texts or ids, see Session.embed_text -> int64 [Q, L], checked against the tower's tables.

    Raises InputError for a model without a text tower, no texts, a blank one, wrong shapes, ids out
    of range.
    """
    if not config.has_text:
        raise InputError("this model has no text tower: its checkpoint holds the video side only")
    ids = _texts_or_ids(texts)
    if isinstance(ids, list):
        if config.vocab_size != 49408:
            raise InputError(
                f"the vocabulary has {config.vocab_size} entries, not CLIP's 49408: strings cannot "
                "be tokenised; give int ids [Q, L]"
            )
        check_not_blank(ids)
        return tokenize(ids, config.context_length, vocabulary=vocabulary)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or 0 in ids.shape:
        raise InputError(
            f"token ids have shape {list(ids.shape)}, {ids.dtype}; need int [Q, L], or a "
            "list of strings"
        )
    if ids.shape[1] > config.context_positions:
        raise InputError(
            f"token ids are {ids.shape[1]} long; the text tower has {config.context_positions} rows"
        )
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise InputError(
            f"token ids span {ids.min()} to {ids.max()}; allowed are 0 to {config.vocab_size - 1}"
        )
    return ids.astype(np.int64)


def until_end(ids: np.ndarray, least: int = 1) -> np.ndarray:
    """Ids [Q, L] without the columns behind the last end token, but at least `least` of them.

    The end token is the largest id of a text, the first if several. The tower is causal, so what
    follows changes nothing there: a sentence has some 10 of 32 or 77 tokens.
    """
    return ids[:, : max(least, int(ids.argmax(1).max()) + 1)]


def _texts_or_ids(texts: Any) -> list[str] | np.ndarray:
    """Return a list of strings, or an array of what should be ids."""
    if isinstance(texts, (str, bytes)):
        texts = [texts]
    if hasattr(texts, "dtype"):
        values = np.asarray(as_numpy(texts))
        if values.dtype.kind not in "OSTU" or values.ndim > 1:
            return values
        texts = np.atleast_1d(values)
    try:
        items = list(texts)
    except TypeError as e:
        raise InputError(
            f"texts is {_a(texts)}; give a string, a list of strings, or int ids [Q, L]"
        ) from e
    if not items:
        raise InputError("no texts: Q is 0")
    if not any(isinstance(t, (str, bytes)) for t in items):
        return _stacked(items, "token ids")
    for i, text in enumerate(items):
        if not isinstance(text, str):
            raise InputError(f"text {i} is {_a(text)}, not a string")
    return [str(t) for t in items]


def _stacked(items: Sequence[Any], name: str) -> np.ndarray:
    try:
        return np.asarray([as_numpy(item) for item in items])
    except ValueError as e:
        raise InputError(f"{name} have different sizes: make them equal, or give them apart") from e


def _a(value: Any) -> str:
    return f"of type {type(value).__name__}"


def as_numpy(values: Any) -> Any:
    """Return a tensor on any device as a numpy array; anything else as it is."""
    if not hasattr(values, "cpu"):
        return values
    try:
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # numpy has no such type
            values = values.float()
        return values.numpy()
    except (TypeError, NotImplementedError, RuntimeError) as e:  # sparse, without values
        raise InputError(f"this tensor cannot be read as an array ({_first_line(e)})") from e


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0][:200]
