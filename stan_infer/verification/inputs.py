"""Inputs that show faults: videos whose frames differ, clips and ids that stress attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from stan_infer.system.packages import require
from stan_infer.video.synthetic import moving_frames

TEXTS = (
    "a dog runs across a field",
    "Two people don't talk; they dance!",
    "caf\u00e9 &amp; na\u00efve \u2013 100% \u65e5\u672c\u8a9e",
    "a large and very loud crowd, " * 12,  # longer than any context
    "x",
)


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


def hard_batches(
    frames: Sequence[int], side: int, low: int, high: int, *, calm: bool = False
) -> list[tuple[str, np.ndarray]]:
    """Hard clips for each T of `frames`, by name, in batches uint8 [B, T, S, S, 3].

    low, high: allowed batch sizes. calm: only clips that are like videos, for models in 8 bits,
    whose ranges were measured on videos.
    """
    out = []
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
