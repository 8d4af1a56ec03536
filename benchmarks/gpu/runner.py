"""Runs units of work in a process of their own, lane by lane, each within its time (see suite).

A unit is a list of lanes, which are tried and timed one after the other: ways to compute a network,
a kernel's tiles. The worker (benchmarks.gpu.worker) reports when it begins a lane and what it
found; this process writes that down. A lane that takes too long, or that ends its process, gets a
row that says so, and a new worker goes on with the next lane. So nothing that a GPU, a driver or a
compiler does costs more than the lane in which it happens.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.journal import Journal
from benchmarks.record import ROOT

SET_UP_SECONDS = 120.0  # from the start of a process, or the end of a lane, to the next lane
SET_UP, END = "set up", "end"  # lanes of rows that are about the unit
TRIES = 3  # of a lane that failed; each has twice the time of the last


@dataclasses.dataclass(frozen=True)
class Unit:
    """Lanes that are measured together. kind: a function of `worker.KINDS`; spec: its arguments."""

    name: str
    kind: str
    spec: dict[str, Any]


class Runner:
    """Works through units until they are done or the time is over."""

    def __init__(
        self,
        journal: Journal,
        device: str,
        minutes: float,
        log: Callable[[str], None],
        *,
        stand_in: bool = False,
        on_end: Callable[[Unit], None] = lambda unit: None,
    ) -> None:
        """device: "cuda" or "cuda:1". stand_in: a dry run on the CPU, see `stand_in`.

        on_end: called when the last lane of a unit is done.
        """
        self.journal, self._device, self._log = journal, device, log
        self._until = time.monotonic() + 60 * minutes
        self._stand_in, self._on_end = stand_in, on_end
        self.left: list[str] = []

    def run(self, units: Sequence[Unit]) -> None:
        """Run the lanes that are not done; those that failed again at the end."""
        todo = [u for u in units if not self.is_done(u)]
        while todo and time.monotonic() < self._until:
            before = len(self.journal.rows)
            self._work(todo)
            if len(self.journal.rows) == before:
                break  # the time was over before anything was found
            todo = [u for u in units if not self.is_done(u)]
        self.left = [u.name for u in todo]

    def is_done(self, unit: Unit) -> bool:
        """Whether the unit came to its end, or never will, with no lane to be tried again."""
        over = self._failures(unit.name, SET_UP) >= TRIES
        return over or bool(self.journal.of(unit.name, END)) and not self._to_retry(unit)

    def _to_retry(self, unit: Unit) -> set[str]:
        """Lanes whose newest row failed, fewer than TRIES times."""
        newest = {r["lane"]: r for r in self.journal.of(unit.name)}
        return {
            lane
            for lane, row in newest.items()
            if "failed" in row and lane != SET_UP and self._failures(unit.name, lane) < TRIES
        }

    def _has_failed(self, unit: Unit) -> bool:
        return any("failed" in r for r in self.journal.of(unit.name))

    def _failures(self, unit: str, lane: str) -> int:
        return sum("failed" in r for r in self.journal.of(unit, lane))

    def _work(self, units: Sequence[Unit]) -> None:
        """Start a worker, and write down what it reports until it ends or has to be ended."""
        jobs = []
        # What was never tried comes first; then what failed.
        for unit in sorted(units, key=self._has_failed):
            done = {r["lane"] for r in self.journal.of(unit.name)} - self._to_retry(unit)
            jobs.append({**dataclasses.asdict(unit), "done": sorted(done)})
        by_name = {u.name: u for u in units}
        with _Worker(self._device, jobs, self._stand_in, self.journal.path) as worker:
            unit: str = jobs[0]["name"]
            lane: str | None = None
            limit = SET_UP_SECONDS
            while True:
                start = time.monotonic()
                event = worker.next(min(limit, max(0.0, self._until - start)))
                if event is None and time.monotonic() >= self._until:
                    return  # neither found nor failed: the lane is measured at the next start
                kind = "late" if event is None else event["event"]
                if event is None or kind == "died":
                    why = event["why"] if event else f"not done in {limit:.0f} s"
                    self._add(unit, lane or SET_UP, {"failed": why})
                    return
                limit = SET_UP_SECONDS
                if kind == "finished":
                    return
                if kind == "unit":
                    unit, lane = event["unit"], None
                elif kind == "begin":
                    lane = event["lane"]
                    limit = event["seconds"] * 2 ** self._failures(unit, lane)
                    self._log(f"{unit}: {lane}")
                elif kind == "row":
                    self._add(unit, lane or SET_UP, event["row"])
                    lane = None
                elif kind == "failed":
                    self._add(unit, SET_UP, {"failed": event["why"]})
                else:
                    if not self.journal.of(unit, END):
                        self._add(unit, END, {})
                    self._on_end(by_name[unit])

    def _add(self, unit: str, lane: str, row: dict[str, Any]) -> None:
        self.journal.add({"unit": unit, "lane": lane, **row})


class _Worker:
    """A process that runs jobs. When it is left, it and what it started are ended."""

    def __init__(self, device: str, jobs: list[dict[str, Any]], stand_in: bool, rows: Path) -> None:
        """rows: the file of rows; what compilers and the worker print goes to a .log beside it."""
        self._log = rows.with_suffix(".log")
        env = {**os.environ, "TRITON_INTERPRET": "1" if stand_in else "0"}
        path = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
        env["PYTHONPATH"] = os.pathsep.join(path)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                start_new_session=True,  # so that compilers that it starts can be ended with it
                text=True,
            )
        job = {"device": device, "units": jobs, "stand_in": stand_in}
        assert self._process.stdin and self._process.stdout
        try:
            # Its input stays open: the worker ends when this process has gone.
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; next() says how
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself
        self._process.wait()

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next event, "died" among them; None after so many seconds without one."""
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            return None
        if event is not None:
            return event
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = (self._log.read_text(errors="replace").strip().splitlines() or [""])[-1][:200]
        return {"event": "died", "why": f"the process ended with {name} ({last})"}

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)
