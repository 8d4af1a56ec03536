"""Options of `verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stan_infer.errors import InputError
from stan_infer.text.blank import check_not_blank


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Options of verify.

    videos, texts: by default those of `inputs`. frames: numbers of frames T with which the video
    towers are compared; one that a side does not take is replaced by the nearest that both take.
    tolerance: allowed difference of towers, operations and scores, relative to the largest value
    (default: by precision; of outputs the larger one of the two). Weights have none. bisect: find
    the block where a tower differs. engine_a, engine_b: see open_side. settings: of checkpoints.
    Raises InputError for numbers out of range and a blank text.
    """

    videos: Sequence[Path] | None = None
    texts: Sequence[str] | None = None
    frames: Sequence[int] = (1, 2, 12, 33, 64)
    tolerance: float | None = None
    bisect: bool = False
    engine_a: str | None = None
    engine_b: str | None = None
    settings: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and a blank text."""
        if self.tolerance is not None and not self.tolerance >= 0:
            raise InputError(f"tolerance is {self.tolerance}; it must be 0 or more")
        check_not_blank(self.texts or ())
        if isinstance(self.frames, int):
            raise InputError(f"frames is {self.frames}; give a list, as in frames=[{self.frames}]")
        if not self.frames or min(self.frames) < 1:
            raise InputError(f"frames are {list(self.frames)}; give whole numbers from 1 on")
