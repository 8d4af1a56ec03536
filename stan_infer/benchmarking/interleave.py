"""Time candidates in turn in one process, on the same clips, after comparing their outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from stan_infer.artefacts.difference import relative_error
from stan_infer.artefacts.precision import EIGHT_BITS, TOLERANCES
from stan_infer.benchmarking.starvation import add_doubts, cpu_figures, let_others_sleep
from stan_infer.benchmarking.timing import Clock, WallClock, diagnose, summarise
from stan_infer.engines.inputs import as_numpy
from stan_infer.errors import CheckError
from stan_infer.system.cpu_use import CpuMeter, CpuUse, MachineMeter, MachineUse
from stan_infer.system.machine import cpus_of_this_process
from stan_infer.video.synthetic import moving_frames

CACHE_BYTES = 96 * 2**20  # the pool of inputs is larger than this, and so than any CPU's cache
MAX_CLIPS = 256  # of the pool, as many tiny inputs would take long to make
MAX_ROUNDS = 100_000
WARM_MS, MAX_WARM = 60.0, 64  # of calls before each timed one, unless it takes five times as long


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One engine in a comparison.

    name: unique; the `engine` of its rows unless `facts` has one. embed: uint8 clips
    [B, T, S, S, 3] -> [B, E] or [B, T, E]. facts: go into its rows; facts["precision"] decides the
    tolerance, which is that of an export; facts["device"], by default cpu, and facts["threads"]
    whether the CPU time of its calls is judged, and how. clock: measures a call of `embed`.
    """

    name: str
    embed: Callable[[np.ndarray], Any]
    facts: Mapping[str, Any]
    clock: Clock = dataclasses.field(default_factory=WallClock)

    @property
    def is_on_cpu(self) -> bool:
        """Whether its work is done by CPU threads of this process."""
        return str(self.facts.get("device", "cpu")) == "cpu"


@dataclasses.dataclass
class _Calls:
    """What was measured of one candidate's counted calls: milliseconds, and the CPU's share."""

    ms: list[float] = dataclasses.field(default_factory=list)
    host: list[float] = dataclasses.field(default_factory=list)
    uses: list[CpuUse] = dataclasses.field(default_factory=list)
    restless: int = 0  # calls that began while threads of others ran
    last_ms: float = 0.0  # of the last timed call, counted or not
    ran_ms: float = 0.0  # in counted rounds, with the calls before timed ones


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long to measure.

    `warmup` uncounted rounds, then counted ones: at least `repeats`, and so many that every
    candidate ran for `min_seconds`.
    """

    warmup: int = 2
    repeats: int = 10
    min_seconds: float = 0.0


def bench_videos(
    candidates: Sequence[Candidate],
    *,
    side: int,
    flops: Callable[[int], int] | None,
    batches: Sequence[int],
    frames: Sequence[int],
    schedule: Schedule = Schedule(),
    clips: Sequence[np.ndarray] | None = None,
    on_round: Callable[[float], None] = lambda part: None,
) -> list[dict[str, Any]]:
    """Time every candidate for every batch size and frame count; one row per candidate and shape.

    The first candidate is the baseline of `speedup` and `max_rel_error`. In a round every candidate
    runs once, so that a machine whose speed drifts slows all of them alike; each round begins with
    the next candidate, and each timed call follows others of its own, see _warm. Outputs are
    compared before timing and after it: a candidate beyond its tolerance has a row with `refused`
    and no speed. `doubts` of a row are the reasons not to believe its ratio, see starvation.

    side: height and width of a frame in pixels. flops: a function from T to the FLOPs of one clip.
    clips: uint8 [B, T, S, S, 3], for the only shape; by default those of `clip_pool`. on_round: is
    called after each round with the share of its shape that is done since the last call. Raises
    CheckError if the baseline's values are not finite.
    """
    rows = []
    for b in batches:
        for t in frames:
            calm = any(candidate.facts["precision"] in EIGHT_BITS for candidate in candidates)
            pool = clips or clip_pool(b, t, side, calm=calm)
            rows += _one_shape(candidates, pool, flops, b, t, schedule, on_round)
    return rows


def clip_pool(batch: int, frames: int, side: int, *, calm: bool = False) -> list[np.ndarray]:
    """Two or more clips uint8 [B, T, S, S, 3], together larger than the CPU's cache.

    They are noise; calm: moving shapes, for 8 bits, whose ranges were measured on videos.
    """
    size = batch * frames * side * side * 3
    count = min(max(2, math.ceil(CACHE_BYTES / size)), MAX_CLIPS)
    if calm:
        made = [moving_frames(frames, side, side, seed) for seed in range(8)]
        return [np.stack([made[(i + j) % 8] for j in range(batch)]) for i in range(count)]
    rng = np.random.default_rng(0)
    shape = (batch, frames, side, side, 3)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def _one_shape(
    candidates: Sequence[Candidate],
    pool: Sequence[np.ndarray],
    flops: Callable[[int], int] | None,
    b: int,
    t: int,
    schedule: Schedule,
    on_round: Callable[[float], None],
) -> list[dict[str, Any]]:
    errors, refused = _compare(candidates, pool[0], b, t)
    running = [candidate for candidate in candidates if candidate.name not in refused]
    calls, machine = _time(running, pool, schedule, on_round)
    # Once more, because a runtime may reuse what it prepared for another shape.
    later, refused_later = _compare(running, pool[-1], b, t)
    refused |= refused_later
    rows = []
    for candidate in candidates:
        row = {
            "engine": candidate.name,
            **candidate.facts,
            "batch": b,
            "frames": t,
            "max_rel_error": _finite(max(errors[candidate.name], later.get(candidate.name, 0.0))),
        }
        if candidate.name in refused:
            rows.append({**row, "refused": refused[candidate.name]})
            continue
        own, base = calls[candidate.name], calls[candidates[0].name]
        row |= summarise(own.ms, base.ms, clips=b, flops=flops and flops(t))
        if candidate.is_on_cpu:
            threads = candidate.facts.get("threads")
            row |= cpu_figures(own.ms, own.uses, machine, threads=threads, restless=own.restless)
        row |= {"warmup": schedule.warmup, "diagnosis": diagnose(own.ms, own.host or None)}
        rows.append(row)
    return add_doubts(rows)


def _time(
    running: Sequence[Candidate],
    pool: Sequence[np.ndarray],
    schedule: Schedule,
    on_round: Callable[[float], None],
) -> tuple[dict[str, _Calls], MachineUse]:
    """Run every candidate once in each round, and watch the machine meanwhile."""
    calls = {candidate.name: _Calls() for candidate in running}
    meter, done = CpuMeter(), 0.0
    machine = MachineMeter(cpus_of_this_process())
    for i in range(schedule.warmup + MAX_ROUNDS):
        first = i % len(running)
        for candidate in (*running[first:], *running[:first]):
            own = calls[candidate.name]
            clips = pool[(i + 1) % len(pool)], pool[(i + 2) % len(pool)]
            is_quiet = len(running) == 1 or not candidate.is_on_cpu or let_others_sleep()
            spent = _warm(candidate, clips[0], own.last_ms)
            run = partial(candidate.clock.time, partial(candidate.embed, clips[1]))
            (_, ms, issued), use = meter.around(run)
            own.last_ms = ms
            if i >= schedule.warmup:
                own.ms.append(ms)
                own.uses.append(use)
                own.restless += not is_quiet
                own.ran_ms += spent + ms
                if issued is not None:
                    own.host.append(issued)
        counted = i + 1 - schedule.warmup
        seconds = min(own.ran_ms for own in calls.values()) / 1e3
        part = min(
            max(counted, 0) / schedule.repeats,
            seconds / schedule.min_seconds if schedule.min_seconds else 1.0,
            1.0,
        )
        on_round(part - done)
        done = part
        if part >= 1:
            break
    return calls, machine.read()


def _warm(candidate: Candidate, clips: np.ndarray, last_ms: float) -> float:
    """Run a candidate for WARM_MS, unless it is on a GPU; return how many milliseconds it ran.

    Threads wake on one CPU and are spread over all of them only after some tens of milliseconds, in
    which eager mode on two cores takes twice as long. Who runs one engine does not see that.
    """
    spent = 0.0
    if not candidate.is_on_cpu:
        return spent
    for _ in range(MAX_WARM):
        if spent >= WARM_MS or last_ms > 5 * WARM_MS:
            break
        spent += candidate.clock.time(partial(candidate.embed, clips))[1]
    return spent


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _compare(
    candidates: Sequence[Candidate], clips: np.ndarray, b: int, t: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Relative error of each candidate against the first, and why candidates are refused."""
    outputs = {candidate.name: as_numpy(candidate.embed(clips)) for candidate in candidates}
    reference = outputs[candidates[0].name]
    if not np.isfinite(reference).all():
        raise CheckError(
            f"engine {candidates[0].name} at B={b}, T={t} gives values that are not finite: "
            "nothing can be compared with it"
        )
    errors, refused = {}, {}
    for candidate in candidates:
        out = outputs[candidate.name]
        # The precision of a bare graph is not known: the largest tolerance then.
        tolerance = TOLERANCES.get(candidate.facts["precision"], max(TOLERANCES.values()))
        if out.shape != reference.shape:
            errors[candidate.name] = math.inf
            refused[candidate.name] = f"gives {list(out.shape)}, not {list(reference.shape)}"
            continue
        error = relative_error(out, reference)
        errors[candidate.name] = error
        if not error <= tolerance:
            refused[candidate.name] = (
                f"differs from {candidates[0].name} by {error:.1e}, more than {tolerance:g}: "
                "its speed is not reported"
            )
    return errors, refused
