"""Labelled clips: one coloured shape on a drifting textured background, doing one of ten motions.

A clip is 16 frames of 64 x 64. Four pairs of motions differ only in the order of the frames, so a
model that ignores order reaches 60 % at most. Training and held-out clips draw their backgrounds
from separate banks of textures. Everything follows from numpy Generators given by the caller.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stan_infer.video.clip import sample_indices

FRAMES, SIDE, FPS, CRF = 16, 64, 8, 26
MOTIONS = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "grows",
    "shrinks",
    "fades in",
    "fades out",
    "blinks",
    "stays still",
)
REVERSED = (1, 0, 3, 2, 5, 4, 7, 6, 8, 9)  # the motion of the same frames played backwards
SHAPES = ("square", "triangle", "cross", "ring", "bar")
COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 90, 235),
    "yellow": (235, 225, 50),
    "orange": (240, 135, 30),
    "purple": (160, 55, 205),
    "cyan": (40, 215, 220),
    "white": (240, 240, 240),
}
COLOUR_NAMES = tuple(COLOURS)
_DIRECTION = {0: (-1.0, 0.0), 1: (1.0, 0.0), 2: (0.0, -1.0), 3: (0.0, 1.0)}
_BANK_SIDE, _SHIFT = 112, 4  # pixels; fractional bits of cv2's polygon corners

Frames = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """What a clip may look like; ranges are (smallest, largest).

    noise, texture, grey: 0..255 levels. jitter: 1 = position 0.8 px, size 3.5 %, angle 4 degrees,
    brightness 4 %. move: pixels over the clip. grow: log of the factor. fade: share of the opacity.
    """

    noise: float
    texture: float
    grey: tuple[float, float]
    discs: float  # chance of each of two wandering grey discs
    jitter: float
    move: tuple[float, float]
    grow: tuple[float, float]
    fade: tuple[float, float]


EASY = Difficulty(0, 0, (10, 20), 0, 0, (20, 36), (0.8, 1.0), (0.8, 1.0))
FULL = Difficulty(8, 10, (10, 80), 0.75, 1, (4, 28), (0.2, 1.0), (0.33, 1.0))
HELD_OUT = dataclasses.replace(FULL, move=(6, 28), grow=(0.3, 1.0), fade=(0.45, 1.0))


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames uint8 [n, 64, 64, 3] RGB, n 16, and what they show (indices into the lists above)."""

    frames: Frames
    motion: int
    shape: int
    colour: int
    centre: tuple[float, float]  # pixels, in the first frame
    radius: float  # pixels, in the first frame

    @property
    def caption(self) -> str:
        """Return for example "a red square moves left"."""
        return caption(self.shape, self.colour, self.motion)

    @property
    def caption_index(self) -> int:
        """Return the place of the caption in `captions()`."""
        return (self.colour * len(SHAPES) + self.shape) * len(MOTIONS) + self.motion

    def reverse(self) -> Clip:
        """Return the same frames backwards, with the label that then is right."""
        return dataclasses.replace(self, frames=self.frames[::-1], motion=REVERSED[self.motion])


def caption(shape: int, colour: int, motion: int) -> str:
    """Return the sentence of one clip."""
    return f"a {COLOUR_NAMES[colour]} {SHAPES[shape]} {MOTIONS[motion]}"


def captions() -> list[str]:
    """Return all 400 sentences, in the order of `Clip.caption_index`."""
    order = itertools.product(range(len(COLOURS)), range(len(SHAPES)), range(len(MOTIONS)))
    return [caption(shape, colour, motion) for colour, shape, motion in order]


def prompts() -> list[str]:
    """Return the ten sentences that name only the motion."""
    return [f"a shape {motion}" for motion in MOTIONS]


def mix(easy: Difficulty, hard: Difficulty, share: float) -> Difficulty:
    """Return the difficulty `share` of the way from easy (0) to hard (1)."""

    def between(a: Any, b: Any) -> Any:
        if isinstance(a, tuple):
            return tuple(between(x, y) for x, y in zip(a, b, strict=True))
        return a + (b - a) * share

    pairs = {k: (v, getattr(hard, k)) for k, v in vars(easy).items()}
    return Difficulty(**{k: between(a, b) for k, (a, b) in pairs.items()})


def texture_bank(split: str, count: int = 192) -> Floats:
    """Return `count` coloured cloud textures [count, 112, 112, 3], mean 0, deviation 1.

    split: "train" or "held-out"; the two share no texture.
    """
    rng = np.random.default_rng([20230617, ("train", "held-out").index(split)])
    bank = np.zeros((count, _BANK_SIDE, _BANK_SIDE, 3), np.float32)
    for texture in bank:
        shape = (_BANK_SIDE, _BANK_SIDE, 3)
        for sigma in rng.uniform(1.5, 9, 2):
            layer = cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), float(sigma))
            texture += layer / layer.std()
        # Mostly grey: a strongly coloured background would be an answer to the colour question.
        texture[:] = 0.4 * texture + 0.6 * texture.mean(-1, keepdims=True)
        texture[:] = (texture - texture.mean()) / texture.std()
    return bank


def draw_clip(
    rng: np.random.Generator,
    bank: Floats,
    difficulty: Difficulty,
    motion: int | None = None,
    *,
    count: int = FRAMES,
) -> Clip:
    """Draw one clip of `count` frames; `motion` fixes its label, the rest comes from `rng`."""
    motion = int(rng.integers(len(MOTIONS))) if motion is None else motion
    shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
    centre, radius, opacity = _trajectory(rng, difficulty, motion, count)
    jitter = rng.standard_normal((count, 4)) * difficulty.jitter
    centre = centre + 0.8 * rng.standard_normal((count, 2)) * difficulty.jitter
    radius = radius * (1 + 0.035 * jitter[:, 0])
    angle = np.deg2rad(rng.uniform(-8, 8) + 4 * jitter[:, 1])

    background = _background(rng, bank, difficulty, count)
    for _ in range(2):
        if rng.random() < difficulty.discs:
            _add_disc(rng, background)
    masks = np.stack(
        [_mask(shape, c, float(r), float(a)) for c, r, a in zip(centre, radius, angle, strict=True)]
    )
    cover = (masks * (opacity[:, None, None] / 255)).astype(np.float32)[..., None]
    paint = np.asarray(COLOURS[COLOUR_NAMES[colour]]) * rng.uniform(0.85, 1.05)
    paint = paint * (1 + 0.04 * jitter[:, 2:3]) + 6 * jitter[:, 3:] * (0.5, 0, -0.5)
    frames = background
    frames += cover * (paint.astype(np.float32)[:, None, None] - background)
    if difficulty.noise:
        # Uniform bytes of the wanted deviation: a tenth of the time of normal numbers.
        levels = np.frombuffer(rng.bytes(frames.size), np.uint8).reshape(frames.shape)
        scale = np.float32(difficulty.noise / 73.9)
        frames += levels * scale
        frames -= np.float32(127.5) * scale
    np.clip(frames, 0, 255, out=frames)
    pixels = frames.astype(np.uint8)
    first = (float(centre[0, 0]), float(centre[0, 1]))
    return Clip(pixels, motion, shape, colour, first, float(radius[0]))


def held_out_clip(seed: int, index: int, bank: Floats) -> Clip:
    """Return clip number `index` of the held-out set of `seed`; bank: of the "held-out" split.

    It depends on (seed, index) alone, and its motion is index modulo ten, so motions are balanced.
    """
    rng = np.random.default_rng([seed, 3, index])  # 3: apart from training's streams
    return draw_clip(rng, bank, HELD_OUT, index % len(MOTIONS))


def sample_frames(frames: Frames, count: int) -> Frames:
    """Return `count` of [n, H, W, 3] frames, chosen as the product does with a video's frames."""
    return frames[sample_indices(len(frames), count)]


def write_mp4(path: Path, frames: Frames) -> None:
    """Write [n, H, W, 3] RGB frames as H.264 (crf 26, 8 frames a second)."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread: x264's output may differ between thread counts.
        stream.options = {"crf": str(CRF), "threads": "1"}
        for pixels in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _trajectory(
    rng: np.random.Generator, difficulty: Difficulty, motion: int, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return centre [n, 2] (x, y), radius [n] and opacity [n] of the shape, without jitter."""
    along = np.linspace(-0.5, 0.5, count)  # symmetric, so that a reversed clip is a fair clip
    name = MOTIONS[motion]
    radius, opacity = np.full(count, rng.uniform(8, 12)), np.ones(count)
    shift = np.zeros(2)
    if motion in _DIRECTION:
        shift = rng.uniform(*difficulty.move) * np.array(_DIRECTION[motion])
    elif name in ("grows", "shrinks"):
        log_factor = rng.uniform(*difficulty.grow) * (1 if name == "grows" else -1)
        radius = rng.uniform(9, 11) * np.exp(log_factor * along)
    elif name in ("fades in", "fades out"):
        slope = along if name == "fades in" else -along
        opacity = 1 - rng.uniform(*difficulty.fade) * (0.5 - slope)
    elif name == "blinks":
        period, phase = rng.uniform(5, 8), rng.uniform(0, 1)  # frames; slower than the sampling
        opacity[(np.arange(count) / period + phase) % 1 < 0.5] = rng.uniform(0, 0.25)
    margin = 9 + np.abs(shift) / 2
    centre = rng.uniform(margin, SIDE - margin)
    return centre + along[:, None] * shift, radius, opacity


def _background(
    rng: np.random.Generator, bank: Floats, difficulty: Difficulty, count: int
) -> Floats:
    """Return a drifting textured background, float32 [n, 64, 64, 3]."""
    texture = bank[rng.integers(len(bank))]
    middle = rng.uniform(SIDE / 2 + 5, _BANK_SIDE - SIDE / 2 - 5, 2)
    drift = rng.uniform(-4, 4, 2)  # pixels over the clip
    views = [
        cv2.getRectSubPix(texture, (SIDE, SIDE), tuple(map(float, middle + drift * t)))
        for t in np.linspace(-0.5, 0.5, count)
    ]
    grey = rng.uniform(*difficulty.grey)
    pixels = np.stack(views)
    pixels *= np.float32(difficulty.texture)
    pixels += np.float32(grey)
    return pixels


def _add_disc(rng: np.random.Generator, background: Floats) -> None:
    """Draw a small grey disc that wanders by itself; it says nothing about the label."""
    start, drift = rng.uniform(4, SIDE - 4, 2), rng.uniform(-16, 16, 2)
    level, radius = float(rng.uniform(70, 170)), float(rng.uniform(1.5, 3.5))
    for t, frame in enumerate(background):
        x, y = np.round((start + drift * t / FRAMES) * (1 << _SHIFT)).astype(int)
        size = int(radius * (1 << _SHIFT))
        cv2.circle(frame, (int(x), int(y)), size, (level,) * 3, -1, cv2.LINE_8, _SHIFT)


def _contours(shape: int) -> list[NDArray[np.float64]]:
    """Return the outline of a shape of radius 1; a second contour is a hole."""
    name = SHAPES[shape]
    if name == "ring":
        turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        circle = np.stack([np.cos(turn), np.sin(turn)], 1)
        return [circle, 0.55 * circle]
    corners = {
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0, -1.05), (1.0, 0.75), (-1.0, 0.75)],
        "bar": [(-1.15, -0.4), (1.15, -0.4), (1.15, 0.4), (-1.15, 0.4)],
    }
    if name in corners:
        return [np.array(corners[name], float)]
    a, b = 0.33, 1.0
    cross = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
    return [np.array(cross + [(-x, -y) for x, y in cross], float)]


def _mask(shape: int, centre: NDArray[np.float64], radius: float, angle: float) -> Frames:
    """Return how much of each pixel the shape covers, uint8 [64, 64]."""
    c, s = np.cos(angle), np.sin(angle)
    turn = radius * np.array([[c, s], [-s, c]])
    outline = [
        np.round((points @ turn + centre) * (1 << _SHIFT)).astype(np.int32)
        for points in _contours(shape)
    ]
    mask = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(mask, outline, 255, cv2.LINE_AA, _SHIFT)
    return mask
