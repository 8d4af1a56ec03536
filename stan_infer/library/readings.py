"""What embedding videos is told, and what comes of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stan_infer.errors import check_whole
from stan_infer.video.clip import Clip
from stan_infer.video.decode_worker import check_reading


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """How the work is divided; no option changes a feature.

    batch: videos per call of the network; of windows on a grid it is always one. workers: decoding
    processes, None: see read_clips. timeout_s: seconds that one video may take to decode.
    """

    batch: int = 1
    workers: int | None = None
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what no command takes: 0 videos per call would be all of them at once."""
        check_whole("batch", self.batch, 1, 64)
        check_reading(self.workers, self.timeout_s)


AS_USUAL = EmbedOptions()


@dataclasses.dataclass(frozen=True)
class Reading:
    """One video after decoding and embedding: clip and features, or the error."""

    path: Path
    clip: Clip | None
    features: np.ndarray | None  # [E], or [T, E] with a Mug head; [V, ...] if views were asked for
    error: str | None


def error_of_parts(errors: Sequence[str]) -> str | None:
    """One line for what went wrong with the parts of a video; None: nothing did."""
    more = f" (and {len(errors) - 1} more parts)" if len(errors) > 1 else ""
    return errors[0] + more if errors else None
