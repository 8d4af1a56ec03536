"""What calibrate returns."""

from __future__ import annotations

import dataclasses
from typing import Any

from stan_infer.system.result import Result


@dataclasses.dataclass(frozen=True, repr=False)
class Calibration(Result):
    """What calibrate found.

    Attributes:
        record: the content of calibration.json.
        failed: videos that could not be used, with the reason.
        is_met: whether the bound is met, and was checked on other videos.
    """

    record: dict[str, Any]
    failed: dict[str, str]
    is_met: bool

    def summary(self) -> str:
        """The verdict: gain, loss, and the bound."""
        return str(self.record["verdict"]["sentence"])
