"""Ranges of every operation on calibration clips, and the graphs that fp16 cannot hold.

Measured by running the network that is exported, in fp32, with a recorder in place of nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.errors import CheckError
from stan_infer.network.folded import TextWeights, VideoWeights
from stan_infer.network.torch_ops import encode_text, encode_video

FP16_MAX = 65504.0
MARGIN = 2.0  # other clips than the measured ones may reach further


class Ranges:
    """Largest absolute value of every operation, by its name, over all that was run."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.largest: dict[str, float] = {}

    def __call__(self, name: str, value: Tensor) -> None:
        """Take one value (the recorder of encode_video and encode_text)."""
        # A NaN must win over a number: torch's maximum of tensors keeps it, Python's max may not.
        seen = float(value.abs().max())
        before = self.largest.get(name, 0.0)
        self.largest[name] = seen if seen > before or seen != seen else before

    @torch.inference_mode()
    def run_video(self, w: VideoWeights, clips: Iterable[np.ndarray]) -> None:
        """Run clips, each [B, T, ...] in the layout of the weights."""
        for clip in clips:
            encode_video(w, torch.from_numpy(clip), self)

    @torch.inference_mode()
    def run_text(self, w: TextWeights, ids: Sequence[np.ndarray]) -> None:
        """Run token ids, each [Q, L]."""
        for rows in ids:
            encode_text(w, torch.from_numpy(rows).long(), self)

    def check_fp16(self, source: str) -> dict[str, Any]:
        """Return the record for the manifest, or raise CheckError naming what would overflow.

        source: what was run, for the message and the record.
        """
        limit = FP16_MAX / MARGIN
        for name, value in self.largest.items():
            if not value <= limit:  # so written that a NaN fails
                raise CheckError(
                    f"{name} reaches {value:.3g} on {source}; fp16 holds {FP16_MAX:.0f} and "
                    f"{limit:.0f} is allowed: export with --precision fp32 or bf16"
                )
        name = max(self.largest, key=lambda n: self.largest[n])
        return {"source": source, "largest": self.largest[name], "node": name, "limit": limit}
