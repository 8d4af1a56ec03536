"""Options of a benchmark: what it measures, and where its results go."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.benchmarking.interleave import Schedule
from stan_infer.engines.open import engine_named
from stan_infer.engines.thread_count import check_threads
from stan_infer.errors import InputError, check_word

PRECISIONS = ("fp32", "fp16", "bf16", *EIGHT_BITS)
MAX_BATCH = MAX_FRAMES = 64


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Options of `bench`, with the same defaults as on the command line.

    source: checkpoint, exported folder, .plan or bare .onnx; None: `preset` with random weights, by
    default stan-b32.
    settings: config fields of a checkpoint or preset. engines: by default eager and ort; of a
    folder or graph ort; of a plan its own. precisions: by default fp32, for engines that need a GPU
    fp16, of a folder its own. device: by default cuda if an engine needs it and it is here, else
    cpu. batches, frames: B and T; every combination is timed. warmup, repeats, min_seconds: rounds
    that are not counted, the least number of those that are, and how long each engine runs at
    least. threads: by default all CPUs.
    calibration: what `calibrate` wrote of the checkpoint. include_decode: video or folder; time
    also all from file to scores. memory: measure each engine's peak in a process of its own. out:
    file for the rows. report: folder for the page. evals: files that `eval --json` wrote. compare:
    rows of an earlier run; tolerance: the loss of speed against them that is no regression, as a
    share. Raises InputError for unknown words and numbers out of range.
    """

    source: str | None = None
    preset: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    engines: Sequence[str] = ()
    precisions: Sequence[str] = ()
    device: str | None = None
    batches: Sequence[int] = (1,)
    frames: Sequence[int] = (8,)
    warmup: int = 2
    repeats: int = 10
    min_seconds: float = 3.0
    threads: int | None = None
    calibration: Path | None = None
    include_decode: Path | None = None
    memory: bool = True
    out: Path | None = None
    report: Path | None = None
    evals: Sequence[Path] = ()
    compare: Path | None = None
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        """Drop repeats; check words and numbers."""
        if self.source is not None and self.preset is not None:
            raise InputError(
                f"preset {self.preset} takes the place of a checkpoint or folder, and "
                f"{self.source} is given too: leave one out"
            )
        if self.source is None and self.preset is None:
            object.__setattr__(self, "preset", "stan-b32")
        check_threads(self.threads)
        for name in ("engines", "precisions", "batches", "frames", "evals"):
            if isinstance(value := getattr(self, name), (str, int, Path)):
                raise InputError(f"{name} is {value!r}; give a list, as in {name}=[{value!r}]")
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        for name in ("calibration", "include_decode", "out", "report", "compare"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        object.__setattr__(self, "evals", tuple(map(Path, self.evals)))
        for engine in self.engines:
            engine_named(engine)
        for precision in self.precisions:
            check_word("precision", precision, PRECISIONS)
        check_range("--batch", self.batches, MAX_BATCH)
        check_range("--frames", self.frames, MAX_FRAMES)
        if self.warmup < 1 or self.repeats < 1 or not 0 <= self.min_seconds <= 3600:
            raise InputError(
                f"warmup {self.warmup}, repeats {self.repeats}, min_seconds {self.min_seconds}: "
                "rounds are at least 1, seconds 0 to 3600"
            )

        if not 0 <= self.tolerance <= 1:
            raise InputError(f"tolerance is {self.tolerance}; allowed is a share from 0 to 1")

    @property
    def schedule(self) -> Schedule:
        """How many rounds are measured."""
        return Schedule(self.warmup, self.repeats, self.min_seconds)


def check_range(name: str, numbers: Sequence[int], high: int) -> None:
    """Raise InputError for a number outside 1 to `high`."""
    for n in numbers:
        if not 1 <= n <= high:
            raise InputError(f"{name} {n} is out of range; allowed are 1 to {high}")
