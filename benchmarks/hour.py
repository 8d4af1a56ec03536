"""python -m benchmarks.hour: an hour of 720p by windows of 8 s, one every second.

`stan-infer embed` into a library with `--windows 8:1:grid` reads each frame of the grid once and
runs the trunk on it once. The loop that a user would write (benchmarks.windows_loop) reads each
window by itself and runs the whole network on it; it gets the first `--loop_minutes` of the same
video, and the ratio is that of the seconds per window. Both are whole processes in turn, with ONNX
Runtime, and must give the same vectors. The demo's model gets the hour, a B/32 less of it. The
video is made of one encoded minute that is repeated: H.264, 25 frames a second, a key frame every
ten seconds. `--minutes 2,1 --loop_minutes 1,0.5` is a short try. Appends rows to
benchmarks/results/.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np

import stan_infer as si
from benchmarks.embed_memory import resident_mib
from benchmarks.record import ROOT, append_rows
from benchmarks.script import options, random_model
from stan_infer.checkpoints.load import load_model
from stan_infer.export.export_model import export_model

MIN_COSINE = 0.99  # decord and PyAV convert colours in different ways
RATE, HEIGHT, WIDTH = 25, 720, 1280
DEMO = ROOT / "examples" / "motion" / "motion.safetensors"


def write_minute(path: Path) -> None:
    """A minute: a window that wanders over a texture, slower from ten seconds to ten seconds."""
    rng = np.random.default_rng(0)
    scene = rng.integers(30, 220, (40, 70, 3), np.uint8).repeat(40, 0).repeat(40, 1)
    scene += rng.integers(0, 4, scene.shape, np.uint8)
    with av.open(str(path), "w") as out:
        given = {"preset": "superfast", "x264-params": "open-gop=0:bframes=0"}
        stream = out.add_stream("libx264", rate=RATE, options=given)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = 10 * RATE, 2
        for i in range(60 * RATE):
            speed = 40 + 20 * (i // (10 * RATE))
            top, left = (int(400 + 390 * f(i / speed)) for f in (np.sin, np.cos))
            window = np.ascontiguousarray(scene[top : top + HEIGHT, left : left + WIDTH])
            frame = av.VideoFrame.from_ndarray(window, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def write_video(path: Path, minute: Path, minutes: int) -> None:
    """So many times the minute, each after the other; nothing remembers that they are the same."""
    with av.open(str(path), "w") as out:
        for i in range(minutes):
            with av.open(str(minute)) as source:
                video = source.streams.video[0]
                if i == 0:
                    copy = out.add_stream_from_template(video)
                assert video.time_base is not None
                later = int(60 * i / video.time_base)
                for packet in source.demux(video):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts = packet.pts + later, packet.dts + later
                        packet.stream = copy
                        out.mux(packet)


def tree_mib(process: int) -> float:
    """Resident memory of a process and all below it, without the pages of files that they map."""
    found = 0.0
    with suppress(OSError):  # it has ended
        found = resident_mib(process)
        for path in Path(f"/proc/{process}/task").glob("*/children"):
            found += sum(tree_mib(int(child)) for child in path.read_text().split())
    return found


def watched(command: list[str]) -> tuple[str, float, list[float]]:
    """Run a command: what it printed, its seconds, and its peak MiB in each tenth of them."""
    readings: list[float] = []
    ended = threading.Event()
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:

        def watch() -> None:
            while not ended.wait(0.2):
                readings.append(tree_mib(process.pid))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            printed = process.communicate()[0]
        finally:
            ended.set()
            thread.join()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    tenths = np.array_split(np.array(readings or [0.0]), 10)
    return printed, seconds, [float(part.max()) for part in tenths if len(part)]


def measure(
    model: Path, video: Path, minutes: int, loop_minutes: float, args: Any
) -> dict[str, Any]:
    """Both sides of one model, one after the other."""
    library, out = (video.with_name(f"{model.name}.{who}") for who in ("library", "npy"))
    how = f"{args.seconds:g}:{args.stride:g}:grid"
    command = [sys.executable, "-m", "stan_infer", "embed", model, video, "-o", f"{library}/"]
    command += ["--windows", how, "--engine", "ort", "--timeout", "600", "--json"]
    printed, seconds, peaks = watched([*map(str, command)])
    said = json.loads(printed.splitlines()[-1])
    numbers = (args.seconds, args.stride, loop_minutes)
    loop = [sys.executable, "-m", "benchmarks.windows_loop", model, video, *numbers, out]
    _, loop_s, loop_peaks = watched([*map(str, loop)])
    ours, theirs = si.open_library(library), np.load(out)
    x, y = ours.vectors[ours.ids][: len(theirs)], theirs
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert cosine.min() > MIN_COSINE, f"embeddings differ: smallest cosine {cosine.min():.4f}"
    return {
        "minutes": minutes,
        "windows": said["rows"],
        "how": how,
        "frames": args.frames,
        "workers": said["workers"],
        "embed_s": seconds,
        "peak_mib": max(peaks),
        "peaks_mib": peaks,
        "loop_minutes": loop_minutes,
        "loop_windows": len(theirs),
        "loop_s": loop_s,
        "loop_peak_mib": max(loop_peaks),
        "ratio": (loop_s / len(theirs)) / (seconds / said["rows"]),
        "min_cosine": float(cosine.min()),
        "video_mib": video.stat().st_size / 2**20,
        "packages": {name: version(name) for name in ("av", "decord", "opencv-python-headless")},
    }


def main() -> None:
    """Measure and record."""
    args = options(
        __doc__,
        models=("motion", "stan-b32"),
        minutes=(60, 10),
        loop_minutes=(3.0, 1.0),
        seconds=8.0,
        stride=1.0,
        frames=8,
        place=tempfile.gettempdir(),
    )
    with tempfile.TemporaryDirectory(dir=args.place) as place:
        minute, video = (Path(place) / f"{name}.mp4" for name in ("minute", "video"))
        write_minute(minute)
        lengths = zip(args.models, args.minutes, args.loop_minutes, strict=True)
        for name, minutes, loop_minutes in lengths:
            write_video(video, minute, minutes)
            model = load_model(DEMO) if name == "motion" else random_model(name, args.frames)
            folder, t = Path(place) / name, args.frames
            export_model(model, folder, tower="video", frames=(t - 1, t), batch=1, split=True)
            row = {"model": name, **measure(folder, video, minutes, loop_minutes, args)}
            append_rows("hour", [row])
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
