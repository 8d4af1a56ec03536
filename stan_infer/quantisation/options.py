"""The options of `calibrate`: how 8 bits are chosen, and the bound that they must keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.engines.thread_count import check_threads
from stan_infer.errors import InputError, check_number, check_whole, check_word
from stan_infer.quantisation.histogram import METHODS
from stan_infer.system.machine import usable_cpus
from stan_infer.video.decode_worker import check_reading

METRICS = ("top1", "r1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Options of calibrate.

    precision: int8 or fp8. method: how the largest value that 8 bits reach is chosen for each input
    (histogram.METHODS); percentile: of the method of that name (default: 99.99). samples: how many
    videos set the ranges, picked by seed. smooth: move the scale of outlier channels into weights.
    force: write the folder even where it is slower, misses the bound, or too few videos are there
    to check it on others.

    The bound is min_cosine, the smallest cosine to fp32 (default: 0.995), or, with labels, a CSV of
    video,label (metric top1, the default) or video,text (r1), the largest loss of that metric in
    points, max_drop (default: 0.5).

    settings: of a checkpoint, see load_model. workers: decoding processes, None: see read_clips.
    timeout_s: seconds that one video may take. threads: of the CPU, to time with.
    """

    precision: str = "int8"
    method: str = "max"
    percentile: float | None = None
    samples: int = 256
    seed: int = 0
    smooth: bool = True
    force: bool = False
    min_cosine: float | None = None
    max_drop: float | None = None
    metric: str | None = None
    labels: Path | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    workers: int | None = None
    timeout_s: float = 60.0
    threads: int = dataclasses.field(default_factory=usable_cpus)

    def __post_init__(self) -> None:
        """Raise InputError for unknown words, numbers out of range, and options that conflict."""
        check_word("precision", self.precision, EIGHT_BITS)
        check_word("method", self.method, METHODS)
        if self.percentile is not None:
            if self.method != "percentile":
                raise InputError("--percentile belongs to --method percentile")
            check_number("percentile", self.percentile, 50, 100)
        check_whole("samples", self.samples, 1)
        check_whole("seed", self.seed, 0)
        check_threads(self.threads)
        check_reading(self.workers, self.timeout_s)
        if self.metric is not None:
            check_word("metric", self.metric, METRICS)
        if self.labels is None and (self.max_drop is not None or self.metric is not None):
            raise InputError("--max-drop and --metric need labelled videos: --annotations FILE")
        if self.labels is not None and self.min_cosine is not None:
            raise InputError("give one bound: --min-cosine, or --max-drop with --annotations")
        if self.min_cosine is not None:
            check_number("min_cosine", self.min_cosine, 0, 1)
        if self.max_drop is not None:
            check_number("max_drop", self.max_drop, 0, 100, " points")
