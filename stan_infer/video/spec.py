"""ClipSpec: the frames, size, crop and decoder with which a video is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stan_infer.config import StanConfig
from stan_infer.errors import InputError, check_whole, check_word
from stan_infer.video.pyav_reader import MAX_PIXELS

# The version of what ClipSpec stands for: raised when a video's pixels change, so that features
# that were kept are made again.
PIXELS = 2
MAX_FRAMES = 64
MAX_CLIPS = 16  # views in time; the literature has up to 10
DECODERS = ("auto", "pyav", "decord", "decord-as-is")


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """How one video becomes a clip; everything that reads videos takes one.

    frames: 1 to 64. short_side: pixels of the shorter side after resizing, which keeps the aspect.
    crop: side in pixels of the centred square, at most short_side.
    views: (clips, crops) of a test with several views: samples in time, and 1 or 3 squares along
    the longer side (start, middle, end).
    decoder: "auto" (PyAV), "pyav", "decord", "decord-as-is" (also where its frames are wrong).
    Raises InputError for a value that is not allowed.
    """

    frames: int = 12
    short_side: int = 224
    crop: int = 224
    views: tuple[int, int] | None = None
    decoder: str = "auto"

    def __post_init__(self) -> None:
        """Check every value."""
        check_frames(self.frames)
        if self.views is not None:
            clips, crops = _pair(self.views)
            if not (1 <= clips <= MAX_CLIPS and crops in (1, 3)):
                raise InputError(
                    f"views are {clips}x{crops} (clips x crops); clips must lie in 1 to "
                    f"{MAX_CLIPS}, crops are 1 or 3"
                )
        check_word("decoder", self.decoder, DECODERS)
        check_whole("short_side", self.short_side, 1, int(MAX_PIXELS**0.5))
        check_whole("crop", self.crop, 1)
        if self.crop > self.short_side:
            raise InputError(
                f"crop is {self.crop}; it must lie in 1 to short_side ({self.short_side}): lower "
                "crop or raise short_side"
            )

    @classmethod
    def of(cls, config: StanConfig, **options: Any) -> ClipSpec:
        """Return the spec of a model's config; options: other fields, or other values than its."""
        own = {"frames": config.frames, "short_side": config.short_side, "crop": config.image_size}
        return cls(**(own | {k: v for k, v in options.items() if v is not None}))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels: [T, crop, crop, 3], with views [V, T, crop, crop, 3]."""
        one = (self.frames, self.crop, self.crop, 3)
        return one if self.views is None else (self.views[0] * self.views[1], *one)


def _pair(views: object) -> tuple[int, int]:
    """The two numbers of `views`; InputError for anything else."""
    if not isinstance(views, (tuple, list)) or len(views) != 2:
        raise InputError(f"views is {views!r}; give two numbers, (clips, crops)")
    for name, value in zip(("clips of views", "crops of views"), views, strict=True):
        check_whole(name, value, 1)
    return views[0], views[1]


def check_frames(frames: int) -> None:
    """Raise InputError for a number of frames that no model takes."""
    check_whole("frames", frames, 1, MAX_FRAMES)
