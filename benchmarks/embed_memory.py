"""python -m benchmarks.embed_memory: whether the memory of `embed` into a library grows.

10,000 videos of different contents, each one of the demo's clips with a number behind its end, are
embedded into a library by the demo's model. The resident memory of the process is read after 1,000
and after 10,000 of them, and that of its decoding processes with it, the largest of 20 readings as
the allocator gives memory back in steps. `--place` is a folder for 0.1 GB. Appends a row to
benchmarks/results/.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import stan_infer as si
from benchmarks.record import ROOT, append_rows
from benchmarks.script import options

MOTION = ROOT / "examples" / "motion"
EARLY = 1000
READINGS, EVERY = 20, 10  # the last of them, one in so many videos


def write_videos(folder: Path, count: int) -> None:
    """So many files of different contents: a box `free` with a number, which decoders pass over."""
    clips = [path.read_bytes() for path in sorted((MOTION / "clips").glob("*.mp4"))]
    for i in range(count):
        box = b"\0\0\0\x10free" + i.to_bytes(8)
        (folder / f"{i:05}.mp4").write_bytes(clips[i % len(clips)] + box)


def resident_mib(process: int | str) -> float:
    """Resident memory of a process, without the pages of files that it maps."""
    found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 2**10 if found else 0.0


def children_mib() -> float:
    """That of the children of this process together."""
    lists = Path("/proc/self/task").glob("*/children")  # a process is a child of a thread
    return sum(resident_mib(int(child)) for path in lists for child in path.read_text().split())


class Readings:
    """Readings of memory while a run goes on, kept at two counts of videos."""

    def __init__(self, last: int) -> None:
        """last: the count of all videos."""
        self._last, self._done = last, 0
        self._own: deque[float] = deque(maxlen=READINGS)
        self._children: deque[float] = deque(maxlen=READINGS)
        self.kept: list[dict[str, float]] = []

    @contextmanager
    def progress(self, title: str, total: float) -> Iterator[Callable[..., None]]:
        """As embed_library calls it."""
        yield self._step

    def _step(self, amount: int = 1) -> None:
        self._done += amount
        if self._done % EVERY == 0:
            self._own.append(resident_mib("self"))
            self._children.append(children_mib())
        if self._done in (EARLY, self._last):
            found = {"videos": self._done, "mib": max(self._own)}
            self.kept.append({**found, "children_mib": max(self._children)})


def main() -> None:
    """Measure and record."""
    args = options(__doc__, videos=10_000, workers=1, place=tempfile.gettempdir())
    with tempfile.TemporaryDirectory(dir=args.place) as place:
        videos = Path(place) / "videos"
        videos.mkdir()
        write_videos(videos, args.videos)
        readings = Readings(args.videos)
        done = si.embed_library(
            MOTION / "motion.safetensors",
            [videos],
            Path(place) / "library",
            workers=args.workers,
            progress=readings.progress,
        )
        assert done.rows == done.embedded == args.videos and not done.failed, str(done)
    early, late = readings.kept
    row = {
        "what": "embed-memory",
        "workers": args.workers,
        "early": early,
        "late": late,
        "growth": late["mib"] / early["mib"] - 1,
    }
    append_rows("embed-memory", [row])
    print(json.dumps(row))


if __name__ == "__main__":
    main()
