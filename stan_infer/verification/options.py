"""What `verify` is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stan_infer.errors import InputError

FRAMES = (1, 2, 12, 33, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Options of verify. videos, texts: golden ones if none.

    frames: T of the video tower's cases, as far as both take them. tolerance: largest difference
    relative to the largest wanted value, of towers and scores (default: that of the coarser
    precision). bisect: name the block of a tower that departs. engine_a, engine_b: see open_source.
    settings: of checkpoints.
    """

    videos: Sequence[Path] | None = None
    texts: Sequence[str] | None = None
    frames: Sequence[int] = FRAMES
    tolerance: float | None = None
    bisect: bool = False
    engine_a: str | None = None
    engine_b: str | None = None
    settings: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if self.tolerance is not None and not self.tolerance >= 0:
            raise InputError(f"tolerance is {self.tolerance}; it must be 0 or more")
        if not self.frames or min(self.frames) < 1:
            raise InputError(f"frames are {list(self.frames)}; give whole numbers from 1 on")
