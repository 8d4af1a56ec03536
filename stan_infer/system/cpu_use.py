"""The CPU time that this process got, wanted and did not get; what a container allows it.

Everything but the CPU time got is known on Linux only. Sources: proc(5), cgroups(7), and the
kernel's Documentation/scheduler/sched-stats.rst, sched-bwc.rst and admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_ROOT = Path("/")
_BUSY = (1, 2, 3, 6, 7)  # fields of a line of /proc/stat: user, nice, system, irq, softirq
_STOLEN = 8
_TICKS = 0.1  # seconds; /proc/stat counts hundredths, by what runs at a tick of the clock


@dataclasses.dataclass(frozen=True)
class CpuUse:
    """CPU seconds of all threads of this process during a call; None: the system does not tell.

    used: that they had. waiting: during which a thread could have run and had no CPU. throttled:
    during which a container's quota held CPUs back, whose threads may also count as waiting.
    """

    used: float
    waiting: float | None = None
    throttled: float | None = None


class CpuMeter:
    """Measures the CPU use of calls."""

    def __init__(self, root: Path = _ROOT) -> None:
        """root: holds `proc` and `sys`, for tests."""
        self._tasks = root / "proc/self/task"
        self._groups = [g for g in _cpu_groups(root) if _quota(g) is not None]

    def around(self, run: Callable[[], Any]) -> tuple[Any, CpuUse]:
        """Return what `run` returned, and the CPU time of this process in the call."""
        waited, throttled = self._waited(), self._throttled()
        start = time.process_time()
        out = run()
        used = time.process_time() - start
        waiting = None
        if waited is not None and (now := self._waited()) is not None:
            waiting = sum(ns - waited.get(thread, 0) for thread, ns in now.items()) / 1e9
        return out, CpuUse(used, waiting, self._throttled() - throttled if self._groups else None)

    def _waited(self) -> dict[str, int] | None:
        """Nanoseconds that each thread has waited for a CPU."""
        found = {}
        with suppress(OSError):
            for thread in os.listdir(self._tasks):
                with suppress(OSError, ValueError, IndexError):  # it may have ended
                    found[thread] = int(
                        (self._tasks / thread / "schedstat").read_bytes().split()[1]
                    )
        return found or None

    def _throttled(self) -> float:
        """Seconds in which the quotas of this process's groups held its CPUs back."""
        seconds = 0.0
        for group in self._groups:
            seconds += _stat(group, "throttled_usec") / 1e6 + _stat(group, "throttled_time") / 1e9
        return seconds


@dataclasses.dataclass(frozen=True)
class MachineUse:
    """What the machine did between two moments, as shares of the CPUs that were watched.

    others: the CPU time of other processes. stolen: the time for which a virtual machine's host
    gave the CPUs to others. None: the system does not tell.
    """

    others: float | None = None
    stolen: float | None = None


class MachineMeter:
    """Watches CPUs from when it is made."""

    def __init__(self, cpus: Collection[int] | None, root: Path = _ROOT) -> None:
        """cpus: their numbers; None: not known, as where processes cannot be kept on CPUs."""
        self._cpus, self._root = cpus, root
        self._start = self._now()

    def _now(self) -> tuple[float, float, tuple[float, float] | None]:
        times = _cpu_seconds(self._cpus, self._root) if self._cpus else None
        return time.perf_counter(), time.process_time(), times

    def read(self) -> MachineUse:
        """What happened since this was made."""
        (wall, own, times), (wall_0, own_0, times_0) = self._now(), self._start
        if not times or not times_0 or not self._cpus or wall <= wall_0:
            return MachineUse()
        whole = (wall - wall_0) * len(self._cpus)
        busy, stolen, own = times[0] - times_0[0], times[1] - times_0[1], own - own_0
        if own > _TICKS and busy < own / 2:
            return MachineUse()  # some sandboxes write zeros: it lacks what this process had
        return MachineUse(*(min(max(x / whole, 0.0), 1.0) for x in (busy - own, stolen)))


def load_average() -> float | None:
    """The load of the last minute; None on Windows."""
    with suppress(OSError, AttributeError):
        return os.getloadavg()[0]
    return None


def quota_cpus(root: Path = _ROOT) -> float | None:
    """How many CPUs' time a container's quota allows this process; None without a quota."""
    return min((q for g in _cpu_groups(root) if (q := _quota(g)) is not None), default=None)


def _cpu_seconds(cpus: Collection[int], root: Path) -> tuple[float, float] | None:
    """Seconds since the start in which these CPUs were busy, and stolen."""
    names = {f"cpu{n}" for n in cpus}
    busy = stolen = 0.0
    try:
        for line in (root / "proc/stat").read_text().splitlines():
            fields = line.split()
            if fields and fields[0] in names:
                busy += sum(int(fields[i]) for i in _BUSY)
                stolen += int(fields[_STOLEN])
                names.remove(fields[0])
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    return None if names else (busy / tick, stolen / tick)


def _cpu_groups(root: Path) -> list[Path]:
    """The cgroup of this process that bounds its CPU time, and those above it that are visible."""
    with suppress(OSError, ValueError, LookupError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        own = {
            name: path
            for _, names, path in (x.split(":", 2) for x in lines)
            for name in names.split(",")
        }
        wanted = "cpu" if "cpu" in own else ""  # version 1 has a tree for each purpose, 2 has one
        for top, point in _mounts(root, wanted):
            path = Path(own[wanted])
            here = point / (path.relative_to(top) if path.is_relative_to(top) else "")
            return [here, *(p for p in here.parents if p.is_relative_to(point))]
    return []


def _mounts(root: Path, controller: str) -> Iterator[tuple[str, Path]]:
    """Where cgroups of a controller ("": of version 2) are mounted: the topmost one, the folder."""
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, options = right.split()[0], right.split()[-1].split(",")
        if (kind == "cgroup2") if not controller else (kind == "cgroup" and controller in options):
            yield left.split()[3], root / left.split()[4].lstrip("/")


def _quota(group: Path) -> float | None:
    with suppress(OSError, ValueError, IndexError, ZeroDivisionError):
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        # Version 2 writes "max" for none, which is no number, version 1 a negative one.
        return int(quota) / int(period) if int(quota) > 0 else None
    return None


def _stat(group: Path, name: str) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (group / "cpu.stat").read_text().splitlines():
            if line.split()[0] == name:
                return int(line.split()[1])
    return 0
