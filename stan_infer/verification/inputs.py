"""Inputs that show faults: videos whose frames differ, clips and ids that stress attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from stan_infer.config import StanConfig
from stan_infer.system.packages import require
from stan_infer.video.synthetic import moving_frames

TEXTS = (
    "a dog runs across a field",
    "Two people don't talk; they dance!",
    "caf\u00e9 &amp; na\u00efve \u2013 100% \u65e5\u672c\u8a9e",
    "a large and very loud crowd, " * 12,  # longer than any context
    "x",
)
# Bytes of the pixels of the largest batch that is tried: 64 frames of 224 pixels, as many as a clip
# of T = 64 has, so that it takes no more memory than that. Batches of smaller frames are larger.
LARGEST_BATCH = 64 * 224 * 224 * 3
MOST_TEXTS = 256  # likewise: 5 tokens each are fewer than the longest texts have together
# Of a frame, an eighth of the patches and at most 8 are nearly flat: enough to show, and their
# rounding errors, which grow as the variance falls, stay below the tolerance.
FLAT_PATCHES = 8
FLAT_VARIANCE = 3e-4  # of a row: thirty times CLIP's eps


def write_videos(folder: Path, side: int) -> list[Path]:
    """Write short videos whose frames all differ; `side` is the short side of the model, in pixels.

    Wide, tall and small ones, some longer than T and one shorter, one of a single frame, and one
    that its container turns by 90 degrees. Raises MissingError without av.
    """
    av = require("av", "golden videos", "runtime")
    even = [2 * math.ceil(side * share / 2) for share in (0.5, 0.7, 1.3, 1.8)]
    sizes = {
        "wide": (40, even[2], even[3]),
        "tall": (75, even[3], even[2]),
        "short": (5, even[1], even[0]),
        "one": (1, even[2], even[2] + 2),
        "turned": (31, even[2], even[3]),
    }
    paths = []
    for seed, (name, (count, height, width)) in enumerate(sizes.items()):
        path = folder / f"{name}.mp4"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("mpeg4", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for i, image in enumerate(moving_frames(count, height, width, seed)):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        paths.append(path)
    data = bytearray(paths[-1].read_bytes())
    at = data.find(b"tkhd") + 44  # the track's matrix, 16.16 fixed point
    quarter = np.array([0, 1, 0, -1, 0, 0, 0, 0, 0x4000], np.int64) * 0x10000
    data[at : at + 36] = quarter.astype(">i4").tobytes()
    paths[-1].write_bytes(data)
    return paths


def noise_frames(side: int) -> list[tuple[str, list[np.ndarray]]]:
    """Frames of noise by name, of sizes that show a resize or crop that is off by one pixel."""
    rng, sizes = np.random.default_rng(0), [(side, side), (side + 1, 2 * side - 3), (7, 5)]
    sizes += [(3 * side // 2 + 1, side), (2 * side + 1, 2 * side + 2)]
    return [
        (f"noise {h}x{w}", list(rng.integers(0, 256, (2, h, w, 3), np.uint8))) for h, w in sizes
    ]


def hard_clips(frames: int, side: int) -> list[tuple[str, np.ndarray]]:
    """Clips uint8 [T, S, S, 3] that stress attention: six, or two of more than 12 frames."""
    rng, t = np.random.default_rng(frames), np.arange(frames)
    spot = np.zeros((frames, side, side, 3), np.uint8)  # scores near one-hot
    size = max(side // 8, 1)
    for i in t:
        at = i * size % (side - size + 1)
        spot[i, at : at + size, side - size - at : side - at] = 255
    y, x = np.mgrid[:side, :side]
    fields = (y + x) // max(side // 16, 1) + t[:, None, None]
    checker = np.repeat((fields % 2 * 255).astype(np.uint8)[..., None], 3, -1)  # large logits
    noise = rng.integers(0, 2, (frames, side, side, 3), np.uint8) * 255
    smooth = moving_frames(frames, side, side, 1)
    if frames > 12:
        mixed = np.choose(t[:, None, None, None] % 4, [spot, checker, noise, smooth])
        return [("mixed", mixed), ("moving", smooth)]
    return [
        ("spot", spot),
        ("checker", checker),
        ("noise", noise),
        ("black", np.zeros_like(spot)),
        ("moving", smooth),
        ("moving, frames permuted", smooth[rng.permutation(frames)]),
    ]


def video_cases(
    frames: Sequence[int],
    side: int,
    ranges: Mapping[str, tuple[int, int]],
    *,
    calm: bool = False,
    patches: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[tuple[str, np.ndarray]]:
    """All clips for the video tower, by name, in batches uint8 [B, T, S, S, 3].

    frames: each T of hard_batches. ranges: smallest and largest B and T, as "batch" and "frames".
    calm: see hard_batches. patches: see nearly_flat, which is for graphs in fp32 only: in 16 bits,
    rounding changes rows of so small a variance as much as another eps does.
    """
    batch = ranges["batch"]
    if batch[0] > batch[1] or not frames:
        return []
    cases = hard_batches(frames, side, batch, calm=calm)
    cases += largest_batch(ranges["frames"], side, batch)
    if patches is not None:
        cases += nearly_flat(patches, side, batch[0], frames[0])
    return cases


def hard_batches(
    frames: Sequence[int], side: int, batch: tuple[int, int], *, calm: bool = False
) -> list[tuple[str, np.ndarray]]:
    """Hard clips for each T of `frames`, by name, in batches uint8 [B, T, S, S, 3].

    batch: smallest and largest B. calm: only clips that are like videos, for models in 8 bits,
    whose ranges were measured on videos.
    """
    out, (low, high) = [], batch
    for t in frames:
        clips = hard_clips(t, side)
        single = clips[min(4, len(clips) - 1)][1][None]
        if calm:
            clips = [c for c in clips if c[0].startswith("moving")]
        size = min(max(3 if t <= 12 else 1, low), high)
        for i in range(0, len(clips), size):
            part = (clips[i:] + clips)[:size]
            part += part[:1] * (size - len(part))
            names = "+".join(n for n, _ in part)
            out.append((f"{names}, B={size} T={t}", np.stack([c for _, c in part])))
        if low == 1 < size:
            out.append((f"moving, B=1 T={t}", single))
    return out


def largest_batch(
    frames: tuple[int, int], side: int, batch: tuple[int, int]
) -> list[tuple[str, np.ndarray]]:
    """A batch of as many clips as a model takes, all different, within LARGEST_BATCH.

    frames, batch: smallest and largest T and B. T is small, but 2 where that costs no clip: frames
    of one clip and clips of a batch can be mixed up only where there are several of both.
    """
    (short, long), (low, high) = frames, batch
    size = side * side * 3
    t = 2 if short == 1 < long and 2 * high * size <= LARGEST_BATCH else short
    b = max(low, min(high, LARGEST_BATCH // (size * t)))
    if b <= 3:
        return []  # as the other batches
    clips = [moving_frames(t, side, side, seed) for seed in range(b)]
    return [(f"moving, B={b} T={t}", np.stack(clips))]


def nearly_flat(
    patches: tuple[np.ndarray, np.ndarray], side: int, batch: int, frames: int
) -> list[tuple[str, np.ndarray]]:
    """Clips uint8 [B, T, S, S, 3] with patches whose rows hardly vary before the first norm.

    patches: weight [D, p p 3] of uint8 pixels and table [P, D] with which a row is W x + table.
    Where the variance of a row is of the order of a norm's eps, and nowhere else, another eps
    changes the row by more than rounding does. The pixels lie between grey, x0, and a least-squares
    solution x of W x + table = constant within 0 to 255, found by accelerated projected gradients:
    at a step a from x to x0 the variance is a^2 times that of x0. Rounding pixels to integers adds
    |W|^2 / 12 per row, 1e-5 for weights of CLIP's size. Where a patch has fewer pixels than the row
    has channels (L/14) there may be no such solution, and the variance stays larger.
    """
    weight, table = (x.astype(np.float64) for x in patches)
    p, count = math.isqrt(weight.shape[1] // 3), min(max(len(table) // 8, 1), FLAT_PATCHES)
    at = np.linspace(0, len(table) - 1, count).astype(int)
    w = weight - weight.mean(0)  # the norm takes the mean over channels off
    t = (table - table.mean(1, keepdims=True))[at]
    step = 1 / max(float(np.linalg.eigvalsh(w @ w.T)[-1]), 1e-30)
    x = ahead = grey = np.full((len(at), w.shape[1]), 127.5)
    for i in range(300):
        new = np.clip(ahead - step * (ahead @ w.T + t) @ w, 0, 255)
        x, ahead = new, new + i / (i + 3) * (new - x)
    largest = np.square(grey @ w.T + t).mean(1, keepdims=True)
    x += np.sqrt(np.minimum(FLAT_VARIANCE / np.maximum(largest, 1e-30), 1)) * (grey - x)
    clip = moving_frames(frames, side, side, 2)
    for n, pixels in zip(at, np.rint(x).astype(np.uint8), strict=True):
        row, column = divmod(int(n), side // p)
        part = np.s_[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
        clip[part] = pixels.reshape(p, p, 3)
    return [(f"nearly flat, B={batch} T={frames}", np.repeat(clip[None], batch, 0))]


def text_cases(config: StanConfig | None, longest: int, most: int) -> list[tuple[str, np.ndarray]]:
    """Ids int64 [Q, L] for the text tower, by name: hard ones of the usual L first, a large batch.

    config: where it is known. longest: L. most: largest Q, of which MOST_TEXTS are used.
    """
    usual, entries = (config.context_length, config.vocab_size) if config else (32, 100)
    lengths = dict.fromkeys(min(max(n, 2), longest) for n in (usual, 2, 5, longest))
    cases = [(f"ids of length {n}", hard_ids(n, entries)) for n in lengths]
    shape = min(most, MOST_TEXTS), min(5, longest)
    many = np.random.default_rng(0).integers(1, entries - 2, shape)
    many[:, 0], many[:, -1] = entries - 2, entries - 1
    return [*cases, (f"{shape[0]} texts of length {shape[1]}", many.astype(np.int64))]


def hard_ids(length: int, entries: int) -> np.ndarray:
    """Ids int64 [6, L]: ends at several places, two ends, no padding, one id throughout."""
    ids = np.random.default_rng(length).integers(1, entries - 2, (6, length))
    ids[:, 0] = entries - 2
    for row, end in enumerate((1, length // 2, length - 1, length // 2)):
        ids[row, end], ids[row, end + 1 :] = entries - 1, 0
    ids[3, -1] = entries - 1
    ids[4] = entries - 1
    ids[5, 1:-1], ids[5, -1] = entries // 2, entries - 1
    return ids.astype(np.int64)
