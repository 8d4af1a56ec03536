"""python -m benchmarks.serve: how many searches a second `stan-infer serve` answers, and how soon.

A library of synthetic vectors (benchmarks.search.make) and a B/32 model with random weights in
engine eager are served on loopback, and asked from a process of its own by so many clients, each of
which asks again as soon as it is answered: one search after the other first, then several at a
time. Answers that say that the server is busy are counted apart. `--place` is a folder for 3 GB.
Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import stan_infer as si
from benchmarks.record import append_rows
from benchmarks.script import options, random_model
from benchmarks.search import make
from benchmarks.stores import WIDTH

TOP = 10


class Load:
    """Clients that ask for different texts, each with a connection that stays open."""

    def __init__(self, address: str, clients: int, seconds: float) -> None:
        """seconds: for which each asks."""
        self._parts = urlsplit(address)
        self._clients, self._seconds = clients, seconds
        self._took: list[float] = []
        self._busy, self._lock = 0, threading.Lock()
        self._begun, self._ended = list[float](), list[float]()

    def run(self) -> dict[str, Any]:
        """Ask for so many seconds, after a search of each client that does not count."""
        threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(self._clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cuts = statistics.quantiles(self._took, n=20)
        return {
            "clients": self._clients,
            "answers": len(self._took),
            "busy": self._busy,
            "per_s": len(self._took) / (max(self._ended) - min(self._begun)),
            "ms_p50": statistics.median(self._took),
            "ms_p95": cuts[-1],
        }

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._parts.hostname or "", self._parts.port)
        self._search(connection, f"client {number} begins")
        self._begun.append(time.perf_counter())
        end, count = self._begun[-1] + self._seconds, 0
        while (start := time.perf_counter()) < end:
            status = self._search(connection, f"a person does the thing of number {number} {count}")
            took, count = 1e3 * (time.perf_counter() - start), count + 1
            with self._lock:
                if status == 200:
                    self._took.append(took)
                else:
                    self._busy += 1
        self._ended.append(time.perf_counter())

    @staticmethod
    def _search(connection: http.client.HTTPConnection, text: str) -> int:
        connection.request("GET", f"/search?text={quote(text)}&top={TOP}")
        answer = connection.getresponse()
        answer.read()
        if answer.status not in (200, 503):
            raise SystemExit(f"the server answers {answer.status}")
        return answer.status


def measured(folder: Path, model: Path, clients: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Start the program, and ask it."""
    command = [sys.executable, "-m", "stan_infer", "serve", str(folder), "--model", str(model)]
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            address = json.loads(process.stdout.readline())["url"]
            started = time.perf_counter() - start
            runs = [Load(address, count, seconds).run() for count in clients]
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.terminate()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
    return {"start_s": started, "private_mib": int(kib) / 2**10, "runs": runs}


def main() -> None:
    """Measure and record."""
    args = options(
        __doc__,
        vectors=(100_000, 1_000_000),
        clients=(1, 8, 32),
        seconds=20.0,
        place=tempfile.gettempdir(),
        record=1,
    )
    for count in args.vectors:
        with tempfile.TemporaryDirectory(dir=args.place) as place:
            folder, model = Path(place) / "library", Path(place) / "model.safetensors"
            si.save_model(random_model("stan-b32"), model)
            with si.open_session(model) as session:
                make(folder, session, count)
            row = {"what": "serve", "vectors": count, "width": WIDTH}
            row |= measured(folder, model, args.clients, args.seconds)
        if args.record:
            append_rows("serve", [row])
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
