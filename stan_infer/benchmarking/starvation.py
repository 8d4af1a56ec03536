"""Tell from the CPU time of calls whether other work kept an engine from the CPUs.

A starved engine may look steady: every call then waits about as long as the one before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from stan_infer.system.cpu_use import CpuUse, MachineUse

# Of the CPU time that a call's threads wanted, the share that they did not get; and of how many
# calls. On a quiet machine the scheduler alone denies less (tests/benchmarking/cpu_samples.json).
DENIED, OFTEN = 0.10, 0.2
# Of the CPUs, what other processes take on a quiet machine at most. Threads that sleep and wake
# often also wait for each other, on whatever machine: that is their engine's own speed.
OTHERS = 0.05
STOLEN = 0.05  # of the CPUs, by the host of a virtual machine
ONE_THREAD = 0.9  # CPU time over wall time of a single thread that computes
# The rate of the best matrix product on one thread, of which an engine reaches more on any number
# of threads; calls that are shorter may spend their time on launching small operations.
FAR_BELOW, LONG_MS = 0.15, 100.0
WIDE = 0.10  # an interval of a ratio, high over low, that leaves too much open
_REST = 0.002  # seconds
_IDLE = 0.1  # of a CPU
_PATIENCE = 0.25  # seconds

NOT_ITS_OWN = "neither its time nor its ratio is the engine's own"


def let_others_sleep() -> bool:
    """Wait until no other thread of this process computes; False if they do not end.

    Threads of an engine look for work for some milliseconds after a call before they sleep, and
    take CPUs from the engine that is timed next: eager mode then takes twice as long.
    """
    end = time.perf_counter() + _PATIENCE
    while time.perf_counter() < end:
        wall, used = time.perf_counter(), time.process_time()
        time.sleep(_REST)
        if time.process_time() - used < _IDLE * (time.perf_counter() - wall):
            return True
    return False


def cpu_figures(
    samples_ms: Sequence[float],
    uses: Sequence[CpuUse],
    machine: MachineUse,
    *,
    threads: int | None = None,
    restless: int = 0,
) -> dict[str, Any]:
    """Figures and verdict of one engine's calls, which ran on a CPU.

    samples_ms, uses: of the same calls. machine: during all engines' calls. threads: of the engine;
    None: not known. restless: calls before which let_others_sleep gave up. cpus_used: CPUs that it
    had on average; denied_share: of the CPU time that it wanted; throttled_share: seconds of all
    CPUs in a second. starved: why its figures are not its own, in words; [] if they are, None where
    the system does not tell.
    """
    wall, used = max(sum(samples_ms) / 1e3, 1e-9), sum(u.used for u in uses)
    waiting = [u.waiting for u in uses if u.waiting is not None]
    throttled = [u.throttled for u in uses if u.throttled is not None]
    is_known = len(waiting) == len(uses)
    figures: dict[str, Any] = {
        "cpus_used": used / wall,
        "denied_share": sum(waiting) / max(sum(waiting) + used, 1e-9) if is_known else None,
        "throttled_share": sum(throttled) / wall if throttled else None,
        "others_share": machine.others,
        "stolen_share": machine.stolen,
        "samples_cpu_ms": [1e3 * u.used for u in uses],
        "samples_waiting_ms": [1e3 * w for w in waiting] if is_known else None,
    }
    found = _starved(figures, threads)
    if restless > OFTEN * len(uses):
        words = "starved: threads of this process did not sleep between calls (OMP_WAIT_POLICY?)"
        found = [*(found or []), words]
    return figures | {"starved": found}


def _starved(figures: dict[str, Any], threads: int | None) -> list[str] | None:
    found = []
    others, stolen, quota = (figures[f"{n}_share"] for n in ("others", "stolen", "throttled"))
    waiting = figures["samples_waiting_ms"]
    if waiting is not None:
        wanted = np.asarray(figures["samples_cpu_ms"]) + waiting
        often = float(np.mean(np.asarray(waiting) > DENIED * wanted))
        denied = f"its threads got no CPU for {100 * figures['denied_share']:.0f} % of the time"
        if often > OFTEN and (others is None or others > OTHERS):
            found.append(f"starved: {denied} that they wanted one: other work had it")
    elif threads == 1 and figures["cpus_used"] < ONE_THREAD:
        found.append(
            f"starved: its one thread had a CPU for {100 * figures['cpus_used']:.0f} % of the time"
        )
    if quota is not None and quota > DENIED:
        found.append(
            f"starved: a container's CPU quota held it back for {quota:.2f} s of each second"
        )
    if stolen is not None and stolen > STOLEN:
        found.append(
            f"starved: the host of this virtual machine gave {100 * stolen:.0f} % of its CPUs away"
        )
    return found if found or waiting is not None or threads == 1 else None


def add_far_below(row: dict[str, Any], threads: int) -> None:
    """Call a row starved that reaches far less than one thread does in a matrix product.

    For rows whose share_of_ceiling, of the best product on `threads` threads, is known. Only of
    fp32, as other precisions may have no fast code on a CPU.
    """
    if row.get("device") != "cpu" or row["precision"] != "fp32" or row["latency_ms_p50"] < LONG_MS:
        return
    share = row["share_of_ceiling"] * threads
    if share < FAR_BELOW and not row.get("starved"):
        words = (
            f"starved: it reaches {100 * share:.1f} % of what one thread does in a matrix product; "
            "--threads 1 shows whether its threads wait for each other"
        )
        row["starved"] = [words]


def add_doubts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `doubts` to rows of one or more shapes, the baseline first: why not to believe the ratio.

    A row without a ratio has none. Returns `rows`.
    """
    bases: dict[tuple[Any, Any], dict[str, Any]] = {}
    for row in rows:
        if row.get("refused") or row.get("speedup") is None:
            continue
        base = bases.setdefault((row["batch"], row["frames"]), row)
        row["doubts"] = [f"{why}; {NOT_ITS_OWN}" for why in row.get("starved") or ()]
        if base is row:
            continue
        if base.get("starved") and not row.get("starved"):
            row["doubts"].append(
                f"baseline: {base['engine']} is starved: the ratio to it is not known"
            )
        low, high = row["speedup_low"], row["speedup_high"]
        if low is None:
            row["doubts"].append(
                f"rounds: {row['rounds']} are too few to know a ratio; give --repeats 6 or more"
            )
        elif high > (1 + WIDE) * low and not row["doubts"]:
            row["doubts"].append(
                f"wide: the ratio is not known to within {100 * WIDE:.0f} %, only to be between "
                f"{low:.2f}x and {high:.2f}x; a longer run may tell (--min-seconds)"
            )
    return rows
