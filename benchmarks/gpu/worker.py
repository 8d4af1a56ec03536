"""The process in which lanes run (see runner), which alone starts it; it reads one job."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Steps:
    """What a unit says of its lanes: begin, then one row; lanes that are done are left out."""

    def __init__(self, say: Callable[[dict[str, Any]], None], unit: dict[str, Any]) -> None:
        """say: takes an event."""
        self._say, self._done = say, set(unit["done"])

    def left(self, lane: str) -> bool:
        """Whether the lane is to be measured."""
        return lane not in self._done

    @contextmanager
    def lane(self, lane: str, seconds: float) -> Iterator[dict[str, Any]]:
        """Begin a lane that must be done in so many seconds; what it puts in the dict is its row.

        An exception becomes a row: what cannot run on this machine is refused, and the rest runs.
        """
        self._say({"event": "begin", "lane": lane, "seconds": seconds})
        row: dict[str, Any] = {}
        try:
            yield row
        except Exception as e:
            # Triton, Inductor, the driver and other engines raise classes of their own.
            if _needs_new_process(e):
                self._say({"event": "row", "row": {**row, "failed": reason(e)}})
                self._say({"event": "finished"})
                os._exit(1)
            row["refused"] = reason(e)
        self._say({"event": "row", "row": row})


def reason(e: BaseException) -> str:
    """The first line of an exception's text, with its class."""
    return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"[:300]


def _needs_new_process(e: Exception) -> bool:
    """Whether every further call would fail, or earlier lanes hold the memory that is missing."""
    words = ("illegal memory access", "device-side assert", "launch failure", "misaligned address")
    return any(w in str(e) for w in (*words, "out of memory"))


def run(job: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Run every unit of a job."""
    from benchmarks.gpu import stand_in
    from benchmarks.gpu.timing import Device
    from benchmarks.gpu.units import KINDS

    device = stand_in.device() if job["stand_in"] else Device(job["device"])
    for unit in job["units"]:
        say({"event": "unit", "unit": unit["name"]})
        try:
            KINDS[unit["kind"]](device, Steps(say, unit), **unit["spec"])
        except Exception as e:
            # No memory for its tensors, say: the other units still run.
            say({"event": "failed", "why": reason(e)})
            traceback.print_exc()
            if _needs_new_process(e):
                break
        else:
            say({"event": "end"})
    say({"event": "finished"})


def main() -> None:
    """Read the job, run it, report on what was the standard output."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compilers print goes elsewhere
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, args=(sys.stdin,), daemon=True).start()

    def say(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    run(job, say)


def _end_with_parent(pipe: TextIO) -> None:
    pipe.read()
    os._exit(1)


if __name__ == "__main__":
    main()
