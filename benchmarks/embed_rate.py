"""python -m benchmarks.embed_rate: `embed` into a library against its parts and the loop by hand.

Short clips of the demo are embedded by two models, opened from exported folders with ONNX Runtime:
the demo's, which is cheap, and a B/32 with random weights, which is dear. In one process, in turn:
embed_library of the folder, as the command does it; decoding all clips with as many processes;
the model alone, over clips that are decoded, opened as embed opens it (a small one on few
threads), and opened as a program without decoders does; decord and the same model, one after the
other (benchmarks.decord_loop.embed).

The rate is that from the first clip to the end of the last commit, without the start. The start is
a figure of its own, and how much of it is opening the folder. A share of the slower part is the
median of paired ratios. Where both parts need all cores they cannot run beside each other: the
share of the cores compares with the CPU time of both parts alone, spread over all cores.
`--workers 0` lets embed choose, `--threads 0` the model. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np

import stan_infer as si
from benchmarks import decord_loop
from benchmarks.record import ROOT, append_rows
from benchmarks.script import options, random_model, write_clips
from stan_infer.checkpoints.load import load_model
from stan_infer.engines.session import Session
from stan_infer.export.export_model import export_model
from stan_infer.system.machine import usable_cpus
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.spec import ClipSpec

DEMO = "motion"


def export(name: str, folder: Path) -> Path:
    """The exported folder of the demo, or of a preset."""
    demo = ROOT / "examples" / "motion" / "motion.safetensors"
    export_model(load_model(demo) if name == DEMO else random_model(name), folder / name)
    return folder / name


def cpu_seconds() -> float:
    """CPU time of this process and of its children, those that have ended among them."""
    own, ended = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    total = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    lists = Path("/proc/self/task").glob("*/children")  # a process is a child of a thread
    for child in (name for path in lists for name in path.read_text().split()):
        with suppress(OSError):
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return total


class Taken:
    """How long a run took: its start, and the seconds and the CPU time of the clips behind it."""

    def __init__(self) -> None:
        """Begin."""
        self._began = time.perf_counter()
        self._first: tuple[float, float] | None = None
        self._clips = 0
        self.start_s = self.s = self.cpu_s = 0.0

    def tick(self, amount: int = 1) -> None:
        """A clip is done."""
        if self._first is None:
            self._first = time.perf_counter(), cpu_seconds()
            self.start_s = self._first[0] - self._began
        self._clips += amount

    def progress(self, title: str, total: float) -> AbstractContextManager[Callable[..., None]]:
        """As embed_library calls it."""
        return nullcontext(self.tick)

    def end(self) -> None:
        """All is done: the start ends with the first clip, which takes as long as the others."""
        assert self._first is not None
        share = self._clips / (self._clips - 1)
        self.s = share * (time.perf_counter() - self._first[0])
        self.start_s -= self.s / self._clips
        self.cpu_s = share * (cpu_seconds() - self._first[1])


def measure(
    model: Path, clips: list[Path], workers: int | None, threads: int | None, rounds: int
) -> dict[str, object]:
    """Seconds of all four, in turn, and their ratios."""
    library, loop = model.parent / "library", decord_loop.opened(model)
    runs: dict[str, list[Taken]] = {}
    opened_s, chosen = [], 0
    beside = {"threads": threads, "yielding": True}
    with (
        si.open_session(model, **beside) as session,
        si.open_session(model, threads=threads) as free,
    ):
        spec = ClipSpec.of(session.config)
        pixels = [clip.pixels for _, clip in read_clips(clips, spec, workers=1)]

        def embed(taken: Taken) -> None:
            nonlocal chosen
            shutil.rmtree(library, ignore_errors=True)
            how = {"workers": workers, "threads": threads}
            done = si.embed_library(model, clips, library, progress=taken.progress, **how)
            chosen = done.workers

        def decoding(taken: Taken) -> None:
            for _ in read_clips(clips, spec, workers=workers or chosen):
                taken.tick()

        def model_alone(taken: Taken, alone: Session = session) -> None:
            for clip in pixels:
                alone.embed_video(clip[None])
                taken.tick()

        def by_hand(taken: Taken) -> None:
            for clip in clips:
                loop(clip)
                taken.tick()

        kinds: dict[str, Callable[[Taken], None]] = {
            "embed": embed,
            "decoding": decoding,
            "model": model_alone,
            "model_free": partial(model_alone, alone=free),
            "loop": by_hand,
        }
        for i in range(-1, rounds):
            start = time.perf_counter()
            with si.open_session(model, **beside):
                opened_s.append(time.perf_counter() - start)
            for name, run in kinds.items():
                taken = Taken()
                run(taken)
                taken.end()
                if i >= 0:
                    runs.setdefault(name, []).append(taken)
    seconds = {name: np.array([taken.s for taken in found]) for name, found in runs.items()}
    cpu = {name: np.array([taken.cpu_s for taken in found]) for name, found in runs.items()}
    shares = np.maximum(seconds["decoding"], seconds["model"]) / seconds["embed"]
    of_cores = (cpu["decoding"] + cpu["model"]) / usable_cpus() / seconds["embed"]
    return {
        "what": "embed-rate",
        "model": model.name,
        "clips": len(clips),
        "workers": workers or "auto",
        "threads": threads or "auto",
        "chosen": chosen,
        "start_s": statistics.median(taken.start_s for taken in runs["embed"]),
        "open_s": statistics.median(opened_s[1:]),
        **{f"{name}_s_p50": statistics.median(times.tolist()) for name, times in seconds.items()},
        **{f"{name}_cpu_s_p50": statistics.median(times.tolist()) for name, times in cpu.items()},
        "share_of_slower": float(np.median(shares)),
        "share_range": [float(shares.min()), float(shares.max())],
        "share_of_cores": float(np.median(of_cores)),
        "loop_ratio": float(np.median(seconds["loop"] / seconds["embed"])),
        "rounds": rounds,
    }


def main() -> None:
    """Measure and record."""
    args = options(
        __doc__, models=(DEMO, "stan-b32"), workers=(1, 2, 0), threads=(0, 1), rounds=5,
        clips=600, dear_clips=32,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_clips(folder / "clips", max(args.clips, args.dear_clips), "held-out")
        clips = sorted((folder / "clips").iterdir())
        for name in args.models:
            model = export(name, folder)
            own = clips[: args.clips if name == DEMO else args.dear_clips]
            # Fewer threads than cores serve a cheap model alone.
            for threads in args.threads if name == DEMO else (0,):
                for workers in args.workers:
                    row = measure(model, own, workers or None, threads or None, args.rounds)
                    append_rows("embed-rate", [row])
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
