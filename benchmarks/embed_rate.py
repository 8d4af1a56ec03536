"""python -m benchmarks.embed_rate: `embed` into a library against its parts and the loop by hand.

Short clips of the demo are embedded by two models, opened from exported folders with ONNX Runtime:
the demo's, which is cheap, and a B/32 with random weights, which is dear. In one process, in turn:
embed_library; decoding all clips with the same processes; the model alone, over clips that are
decoded; decord and the same model in one thread after the other (benchmarks.decord_loop.embed).
Seconds are from the first clip to the last, without the start; that of embed, with its passport
and processes, is a figure of its own. Shares are medians of paired ratios. `--workers 0` lets embed
choose. Appends rows to benchmarks/results/.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

import stan_infer as si
from benchmarks import decord_loop
from benchmarks.record import ROOT, append_rows
from benchmarks.script import options, random_model, write_clips
from stan_infer.checkpoints.load import load_model
from stan_infer.export.export_model import export_model
from stan_infer.library.embed_library import EmbeddedLibrary
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.spec import ClipSpec

DEMO = "motion"


def export(name: str, folder: Path) -> Path:
    """The exported folder of the demo, or of a preset."""
    demo = ROOT / "examples" / "motion" / "motion.safetensors"
    export_model(load_model(demo) if name == DEMO else random_model(name), folder / name)
    return folder / name


def measure(model: Path, clips: list[Path], workers: int | None, rounds: int) -> dict[str, object]:
    """Seconds of all four, in turn, and their ratios."""
    library, loop = model.parent / "library", decord_loop.opened(model)
    seconds: dict[str, list[float]] = {}
    with si.open_session(model) as session:
        spec = ClipSpec.of(session.config)
        pixels = [clip.pixels for _, clip in read_clips(clips, spec, workers=1)]

        def embed(tick: Callable[..., None]) -> EmbeddedLibrary:
            shutil.rmtree(library, ignore_errors=True)

            def progress(title: str, total: int) -> AbstractContextManager[Callable[..., None]]:
                return nullcontext(tick)

            return si.embed_library(session, clips, library, workers=workers, progress=progress)

        def decoding(tick: Callable[..., None]) -> None:
            for _ in read_clips(clips, spec, workers=workers):
                tick()

        def model_alone(tick: Callable[..., None]) -> None:
            for clip in pixels:
                session.embed_video(clip[None])
                tick()

        def by_hand(tick: Callable[..., None]) -> None:
            for clip in clips:
                loop(clip)
                tick()

        runs = {"embed": embed, "decoding": decoding, "model": model_alone, "loop": by_hand}
        for i in range(-1, rounds):
            for name, run in runs.items():
                times = [time.perf_counter()]
                done = run(lambda *amount, times=times: times.append(time.perf_counter()))
                if i >= 0:
                    share = (len(times) - 1) / (len(times) - 2)
                    seconds.setdefault(name, []).append((times[-1] - times[1]) * share)
                if name == "embed":
                    chosen, start_s = done.workers, times[1] - times[0]
    slower = np.maximum(seconds["decoding"], seconds["model"])
    embedded = np.array(seconds["embed"])
    return {
        "what": "embed-rate",
        "model": model.name,
        "clips": len(clips),
        "workers": workers or "auto",
        "chosen": chosen,
        "start_s": start_s,
        **{f"{name}_s_p50": statistics.median(times) for name, times in seconds.items()},
        "share_of_slower": float(np.median(slower / embedded)),
        "share_range": [float(f(slower / embedded)) for f in (np.min, np.max)],
        "loop_ratio": float(np.median(np.array(seconds["loop"]) / embedded)),
        "rounds": rounds,
    }


def main() -> None:
    """Measure and record."""
    args = options(
        __doc__, models=(DEMO, "stan-b32"), workers=(1, 2, 0), rounds=5, clips=200, dear_clips=48
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_clips(folder / "clips", max(args.clips, args.dear_clips), "held-out")
        clips = sorted((folder / "clips").iterdir())
        for name in args.models:
            model = export(name, folder)
            own = clips[: args.clips if name == DEMO else args.dear_clips]
            for workers in args.workers:
                row = measure(model, own, workers or None, args.rounds)
                append_rows("embed-rate", [row])
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
