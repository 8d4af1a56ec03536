"""Scores of texts against videos, as the authors' code computes them: a row for each text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stan_infer.errors import InputError, check_word

Floats = NDArray[Any]  # float32 or float64

_MODES = ("mug", "mug_frame_token")
# Measured: blocks of this size stay in a CPU's last cache and are large enough for fast products.
_BLOCK_TOKENS, _BLOCK_COLUMNS = 256, 4096


def normalize(x: ArrayLike) -> Floats:
    """Divide by the L2 norm of the last axis; a zero vector becomes NaN, as in the release.

    x: [..., E] floats. Returns float64 for float64, else float32. Raises InputError.
    """
    features = float_array("features", x)
    with np.errstate(all="ignore"):
        return features / np.linalg.norm(features, axis=-1, keepdims=True)


def cosine_scores(text: ArrayLike, video: ArrayLike) -> NDArray[np.float32]:
    """Cosine of every text [Q, E] with every video [B, E] -> float32 [Q, B].

    A zero vector gives NaN, as in the release (mean head). Raises InputError for wrong shapes.
    """
    texts, videos = float_array("text features", text, 2), float_array("video features", video, 2)
    _same_width(texts, videos)
    with np.errstate(all="ignore"):
        scores = normalize(texts.astype(np.float32)) @ normalize(videos.astype(np.float32)).T
    return np.asarray(scores, dtype=np.float32)


def mug_scores(
    text_tokens: ArrayLike,
    mask: ArrayLike,
    video_frames: ArrayLike,
    *,
    mode: str = "mug",
    tau: float = 100.0,
    memory_mb: int = 256,
) -> Floats:
    """Mug-STAN's score of every text with every video -> [Q, B].

    text_tokens [Q, L, E], mask [Q, L] of 0 and 1 (the release: id != 0), video_frames [B, T, E];
    features need no normalisation. float64 in gives float64 arithmetic, anything else float32.

    `mode` "mug" is the release's `mug_frame_token_simple`, which all its configs use; padding has
    no effect there. "mug_frame_token" is the release's other mode and lets padding through: the
    score of a text changes with the content of its masked tokens.

    As in the release, products that are exactly 0 get no weight, and a frame or text all of whose
    products are exactly 0 (a zero vector) gives NaN. The array [Q, B, L, T] is never built whole:
    work arrays take at most `memory_mb` MiB, or what one text with one video needs; about 80 MiB
    are enough for full speed. Source: the authors' Mug head and the Mug-STAN paper, arXiv
    2311.15075. Raises InputError for wrong shapes, dtypes, mask values or options.
    """
    text, kept, video = _check_mug(text_tokens, mask, video_frames, mode, tau, memory_mb)
    # Masked products are exactly 0 and get no weight in mode "mug": leaving them out is the same.
    packed = kept if mode == "mug" else np.ones_like(kept)
    tokens, clips = _block_sizes(text, video, memory_mb)
    blocks = _text_blocks(packed.sum(1), tokens)
    scores = np.full((len(text), len(video)), np.nan, dtype=text.dtype)
    with np.errstate(all="ignore"):
        for b in range(0, len(video), clips):
            frames = _unit(video[b : b + clips])  # [b, T, E]
            for rows in blocks:
                owner, place = np.nonzero(packed[rows])
                x = _unit(text[rows[owner], place]) * text.dtype.type(tau)  # [n, E]
                d = (x @ frames.reshape(-1, frames.shape[2]).T).reshape(-1, *frames.shape[:2])
                inside = kept[rows[owner], place]
                scores[rows, b : b + clips] = _score_block(d, inside, owner, place, mode) / tau
    return scores


def head_scores(
    head: str, text: ArrayLike, mask: ArrayLike | None, video: ArrayLike, *, tau: float = 100.0
) -> Floats:
    """Score of every text with every video -> [Q, B], as a model with this head scores them.

    "mean": cosine of text [Q, E] with video [B, E]. Other heads: the Mug score of tokens [Q, L, E]
    inside mask [Q, L] with frames [B, T, E]; see mug_scores. Raises InputError.
    """
    if head == "mean":
        return cosine_scores(text, video)
    assert mask is not None
    return mug_scores(text, mask, video, mode=head, tau=tau)


def _score_block(
    d: Floats, kept: NDArray[np.bool_], owner: NDArray[Any], place: NDArray[Any], mode: str
) -> Floats:
    """Scores [q, b] times tau, from d = tau * <token, frame> [n, b, T] of the q texts of a block.

    kept: [n] tokens inside the mask; owner, place: [n] text and position of a token.
    """
    a, c = _soft_means(d, kept, owner)  # [n, b], [q, b, T]
    # Places without a token stay exactly 0 and so get no weight.
    padded = np.zeros((len(c), int(place.max()) + 1, a.shape[1]), dtype=d.dtype)
    padded[owner, place] = a
    p = softmax(padded, 1, skip_zeros=True)
    q = softmax(c, 2)
    if mode == "mug":
        return ((p * padded).sum(1) + (q * c).sum(2)) / 2
    per_token = (d * q[owner]).sum(2) * p[owner, place]  # [n, b]
    return np.add.reduceat(per_token, _starts(owner), axis=0)


def _soft_means(d: Floats, kept: NDArray[np.bool_], owner: NDArray[Any]) -> tuple[Floats, Floats]:
    """Means of d [n, b, T], weighted by softmax of d inside the mask: [n, b] over frames, and
    [q, b, T] over the tokens of each text.

    One exponential per entry serves both: all have the same shift, which loses no precision as long
    as no sum leaves the range of the type. Where one does, the block is computed again exactly.
    """
    n, b, t = d.shape
    texts = int(owner[-1]) + 1
    s = d if kept.all() else d * kept[:, None, None].astype(d.dtype)
    top, floor = (60.0, 1e-30) if d.dtype == np.float32 else (600.0, 1e-280)
    ones = np.ones(t, dtype=d.dtype)
    member = (np.arange(texts)[:, None] == owner).astype(d.dtype)  # [q, n]

    e = np.subtract(s, d.dtype.type(_largest(s) - top))
    np.exp(e, out=e)
    weights_a = e.reshape(-1, t) @ ones
    zero = s == 0
    e_c = np.where(zero, d.dtype.type(0), e) if zero.any() else e
    weights_c = member @ e_c.reshape(n, -1)
    if not ((weights_a >= floor).all() and (weights_c >= floor).all()):
        return _soft_means_exact(d, s, _starts(owner))
    e *= d
    if e_c is not e:
        e_c *= d
    a = (e.reshape(-1, t) @ ones) / weights_a
    c = (member @ e_c.reshape(n, -1)) / weights_c
    return a.reshape(n, b), c.reshape(texts, b, t)


def _soft_means_exact(d: Floats, s: Floats, starts: NDArray[Any]) -> tuple[Floats, Floats]:
    a, c = [], []
    for lo, hi in zip(starts, [*starts[1:], len(d)], strict=True):
        one, own = s[lo:hi], d[lo:hi]
        a.append((softmax(one, 2) * own).sum(2))
        c.append((softmax(one, 0, skip_zeros=True) * own).sum(0))
    return np.concatenate(a), np.stack(c)


def softmax(x: Floats, axis: int, *, skip_zeros: bool = False) -> Floats:
    """Softmax over one axis. skip_zeros: entries that are exactly 0 get no weight."""
    if skip_zeros:
        x = np.where(x == 0, x.dtype.type(-np.inf), x)
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _largest(s: Floats) -> float:
    largest = float(s.max())
    return largest if np.isfinite(largest) else 0.0


def _starts(owner: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([[0], np.nonzero(np.diff(owner))[0] + 1])


def _unit(x: Floats) -> Floats:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), x.dtype.type(1e-6))


def _text_blocks(counts: NDArray[Any], tokens: int) -> list[NDArray[Any]]:
    """Group texts so that each group, padded to its longest, has at most `tokens` tokens.

    A text longer than that is a group of its own; a text without any token is in none.
    """
    groups: list[list[int]] = []
    longest = 0
    for row in np.nonzero(counts)[0]:
        longest = max(longest, int(counts[row]))
        if not groups or (len(groups[-1]) + 1) * longest > tokens:
            groups.append([])
            longest = int(counts[row])
        groups[-1].append(int(row))
    return [np.array(rows) for rows in groups]


def _block_sizes(text: Floats, video: Floats, memory_mb: int) -> tuple[int, int]:
    """Tokens of a text block and clips of a video block.

    Bytes counted: twelve arrays of one entry per product (at one frame the sums over frames are as
    large as the products), and raw, squared and normalised rows of both sides.
    """
    size, (_, frames, width) = text.itemsize, video.shape
    tokens, clips = _BLOCK_TOKENS, max(1, _BLOCK_COLUMNS // frames)
    while (tokens, clips) != (1, 1):
        rows, columns = max(tokens, text.shape[1]), clips * frames
        if (12 * rows * columns + 3 * (rows + columns) * width) * size <= memory_mb * 2**20:
            break
        tokens, clips = (tokens, -(-clips // 2)) if clips > 1 else (tokens // 2, 1)
    return tokens, clips


def _check_mug(
    text_tokens: ArrayLike, mask: ArrayLike, video: ArrayLike, mode: str, tau: float, memory_mb: int
) -> tuple[Floats, NDArray[np.bool_], Floats]:
    check_word("Mug mode", str(mode), _MODES)
    if not 1e-6 <= tau <= 1e6:
        raise InputError(f"tau is {tau}; allowed are 1e-6 to 1e6 (the release has 100)")
    if memory_mb < 1:
        raise InputError(f"memory_mb is {memory_mb}; give at least 1")
    text, frames = float_array("text tokens", text_tokens, 3), float_array("video frames", video, 3)
    _same_width(text, frames)
    kept = np.asarray(mask)
    if kept.shape != text.shape[:2] or kept.dtype.kind not in "biuf":
        raise InputError(
            f"mask has shape {list(kept.shape)}, {kept.dtype}; text tokens {list(text.shape)} "
            f"need 0 or 1 in {list(text.shape[:2])}"
        )
    if not ((kept == 0) | (kept == 1)).all():
        raise InputError("mask holds other values than 0 and 1; give ids != 0")
    dtype = np.result_type(text, frames)
    return text.astype(dtype, copy=False), kept == 1, frames.astype(dtype, copy=False)


def float_array(name: str, x: ArrayLike, ndim: int | None = None) -> Floats:
    """Return `x` as float64 if it is that, else float32; InputError unless it has `ndim` axes."""
    values = np.asarray(x)
    layout = {None: "[..., E]", 2: "2 axes", 3: "3 axes"}[ndim]
    if values.dtype.kind != "f" or values.size == 0 or values.ndim != (ndim or max(1, values.ndim)):
        raise InputError(
            f"{name} have shape {list(values.shape)}, {values.dtype}; need floats with {layout}, "
            "none of them 0"
        )
    return values.astype(np.float64 if values.dtype == np.float64 else np.float32, copy=False)


def _same_width(text: Floats, video: Floats) -> None:
    if text.shape[-1] != video.shape[-1]:
        raise InputError(
            f"text {list(text.shape)} and video {list(video.shape)} differ in the last axis: "
            "features of one model have the same width"
        )
