"""verify, and what it returns: two models compared from video bytes to rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.system.json_file import plain
from stan_infer.system.result import Result, Say, silent
from stan_infer.verification.options import VerifyOptions
from stan_infer.verification.verify import comparison_record
from stan_infer.video.find import list_videos

if TYPE_CHECKING:
    from stan_infer.network.model import Stan


@dataclasses.dataclass(frozen=True, repr=False)
class Verification(Result):
    """How B compares with the reference A.

    Attributes:
        a, b: each kind, name, engine and precision.
        passed: whether at least one stage was compared and none failed; "pass" in to_dict().
        first_failed: the name of the first stage that differs, or None.
        stages: a row for each: stage, max_rel, min_cos, agreement, tolerance, pass (None: it was
            not compared), worst, cases, reference, note.
        failures: videos that neither side can read, which are left out: video, error.
        not_compared: names of stages.
        bisect: the block that differs, by stage, if it was asked for.
        known_faults: what was reported for this version of TensorRT.
    """

    a: dict[str, Any]
    b: dict[str, Any]
    passed: bool
    first_failed: str | None
    stages: list[dict[str, Any]]
    failures: list[dict[str, str]]
    not_compared: list[str]
    bisect: dict[str, Any]
    known_faults: list[dict[str, str]]

    def record(self) -> dict[str, Any]:
        """The fields as they are, with `passed` as "pass"."""
        return {"pass" if k == "passed" else k: v for k, v in vars(self).items()}

    def to_dict(self) -> dict[str, Any]:
        """The record that `stan-infer verify --json` prints."""
        return {k: plain(v) for k, v in self.record().items()}

    def summary(self) -> str:
        """Whether they agree, and where they differ first."""
        names = f"{self.b['name']} ({self.b['engine']}, {self.b['precision']})"
        if self.passed:
            count = sum(row["pass"] is True for row in self.stages)
            return f"{names} agrees with {self.a['name']} in {count} stages"
        if self.first_failed is None:
            return f"{names} and {self.a['name']} have no stage in common"
        return f"{names} differs from {self.a['name']} first in stage {self.first_failed!r}"


def verify(
    a: str | Path | Stan,
    b: str | Path | Stan | None = None,
    videos: str | Path | Iterable[str | Path] | None = None,
    *,
    say: Say = silent,
    **options: Any,
) -> Verification:
    """Compare two models from video bytes to rank, or a folder with its golden data.

    A difference raises nothing: it is a row of the result.

    Args:
        a: the reference: a checkpoint, a loaded Stan, an exported folder or an .onnx file.
        b: what is compared with it; the same, or a .plan. None: `a` is an exported folder, and what
            it computes here is compared with its own golden data.
        videos: a video, a folder of videos, or several of both; by default generated ones.
        say: called with a sentence before each step.
        options: the fields of VerifyOptions: texts, frames (numbers of frames T, by default
            1, 2, 12, 33, 64), tolerance (relative to the largest value; by default by precision),
            bisect, engine_a, engine_b, settings.

    Returns:
        Verification: `passed`, and a row per stage.

    Raises:
        InputError: a model that cannot be read, no video that can, numbers out of range.
        MissingError: a package is not installed.

    Example:
        >>> import stan_infer as si
        >>> model = "examples/motion/motion.safetensors"
        >>> si.verify(model, model, frames=[1]).passed
        True
    """
    paths: list[Path] | None = None
    if videos is not None:
        given = [videos] if isinstance(videos, (str, Path)) else videos
        paths = list_videos([Path(video) for video in given])
    wanted = VerifyOptions(videos=paths, **options)
    if b is None:
        from stan_infer.verification.golden import golden_record

        record = golden_record(a, wanted, say)
    else:
        record = comparison_record(a, b, wanted, say)
    return Verification(passed=record.pop("pass"), **record)
