"""Ranges of every operation on calibration clips, to refuse graphs that fp16 cannot hold.

They are measured by running the network that is exported in fp32, with a Ranges as its recorder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stan_infer.errors import CheckError

FP16_MAX = 65504.0
MARGIN = 2.0  # other clips than the measured ones may reach further


@dataclass
class Ranges:
    """The largest absolute value of every operation, by its name, over all that was run.

    A recorder of torch_ops.encode_video and encode_text.
    """

    largest: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, value: Tensor) -> None:
        """Take one value of an operation."""
        # A NaN must win over a number: torch's maximum of tensors keeps it, Python's max may not.
        seen = float(value.abs().max())
        before = self.largest.get(name, 0.0)
        self.largest[name] = seen if seen > before or seen != seen else before

    def check_fp16(self, inputs: str) -> dict[str, Any]:
        """Return the record for the manifest; CheckError, with the operation, for an overflow.

        inputs: what was run, in words, for the message and the record.
        """
        limit = FP16_MAX / MARGIN
        for name, value in self.largest.items():
            if not value <= limit:  # so written that a NaN fails
                raise CheckError(
                    f"{name} reaches {value:.3g} on {inputs}; fp16 holds {FP16_MAX:.0f} and "
                    f"{limit:.0f} is allowed: export with --precision fp32 or bf16"
                )
        name = max(self.largest, key=lambda n: self.largest[n])
        return {"source": inputs, "largest": self.largest[name], "node": name, "limit": limit}
