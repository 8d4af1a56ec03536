"""python -m benchmarks.quantisers: our calibration beside NNCF and ONNX Runtime's quantize_static.

Every tool quantises the same fp32 graphs on the same clips: the motion demo, and a B/32 or B/16
with planted outlier channels. Then ONNX Runtime runs all files: accuracy on labelled clips, cosines
to fp32, and speed as ratios in interleaved rounds, always with exact sums
(`session.x64quantprecision`), which is the most accurate that each file can be. Needs the extra
`quantisers`. Appends rows to benchmarks/results/. B/16 runs on its own: --models stan-b16.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration import with_outliers
from benchmarks.quantise_with import GRAPH, TOOLS, WHOLE
from benchmarks.record import append_rows
from benchmarks.script import export_video, options, random_model, write_clips
from examples.motion import clips
from examples.motion.evaluate import MODEL, SEED, embed_texts
from stan_infer.checkpoints.load import load_model
from stan_infer.engines.ort_session import inference_session
from stan_infer.export.export_model import export_model
from stan_infer.scores import cosine_scores
from stan_infer.system.machine import installed_versions, usable_cpus
from stan_infer.video.clip import Clip
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.spec import ClipSpec

FP32 = "fp32"
# Not run on large models: Entropy takes minutes, Percentile keeps every activation of every clip
# (20 GB for B/16), and ONNX Runtime runs no file of NNCF's transformer mode.
LEFT_OUT = {
    "stan-b32": ("quantize_static, Entropy",),
    "stan-b16": ("quantize_static, Entropy", "quantize_static, Percentile", "NNCF, transformer"),
}
ROUNDS = 15  # of timing the graphs
SHOWN = 300  # characters of an error

Embed = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Quantise and measure both models; record."""
    args = options(
        __doc__,
        models=("motion", "stan-b32"),
        clips=128,
        labelled=2000,
        large=8,
        checked=16,
        runs=1,
    )
    for name in args.models:
        with tempfile.TemporaryDirectory() as place:
            rows = (_demo if name == "motion" else _outliers)(name, Path(place), args)
        versions = installed_versions(("nncf", "onnx"))
        append_rows("quantisers", [{"model": name, "others": versions, **row} for row in rows])


def _demo(name: str, place: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    model = load_model(MODEL)
    export_model(model, place / FP32, tower="video")
    write_clips(place / "videos", args.clips, "train")
    rows = _quantise(place, [*TOOLS, WHOLE], args.runs)
    bank = clips.texture_bank("held-out")
    drawn = [clips.held_out_clip(SEED, i, bank) for i in range(args.labelled)]
    frames = model.config.frames
    pixels = np.stack([clips.sample_frames(c.frames, frames) for c in drawn])
    scores = Labels(embed_texts(model, clips.prompts()), np.array([c.motion for c in drawn]))
    return _measure(place, rows, pixels, scores, batch=8)


def _outliers(name: str, place: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    model = with_outliers(random_model(name, 8))
    export_video(model, place / FP32, 8)
    write_clips(place / "videos", args.large, "train")
    write_clips(place / "checked", args.checked, "held-out")
    rows = _quantise(place, [t for t in TOOLS if t not in LEFT_OUT[name]], runs=1)
    read = read_clips(sorted((place / "checked").iterdir()), ClipSpec.of(model.config))
    pixels = np.stack([r.pixels for _, r in read if isinstance(r, Clip)])
    return _measure(place, rows, pixels, None, batch=1)


def _quantise(place: Path, tools: Sequence[str], runs: int) -> dict[str, dict[str, Any]]:
    """Run the tools in turn, `runs` times each; rows by tool, of the fastest run."""
    rows: dict[str, dict[str, Any]] = {}
    for i in range(runs):
        for tool in tools:
            row = _run(tool, place, place / f"{tools.index(tool)}-{i}")
            print(tool, row.get("seconds"), row.get("peak_mib"), row.get("failed", ""), flush=True)
            old = rows.get(tool)
            if old is None or row.get("seconds", np.inf) < old.get("seconds", np.inf):
                rows[tool] = row
    return rows


def _run(tool: str, place: Path, out: Path) -> dict[str, Any]:
    """One tool in a process of its own: wall seconds, peak memory, the folder that it wrote."""
    folder, videos = str(place / FP32), str(place / "videos")
    row: dict[str, Any] = {"clips": len(list((place / "videos").iterdir()))}
    command = ["benchmarks.quantise_with", tool, folder, videos, str(out)]
    if tool == WHOLE:
        command = ["stan_infer", "calibrate", folder, "--videos", videos, "-o", str(out)]
        command += ["--samples", str(row["clips"]), "--force", "--json"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        reasons = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return row | {"failed": reasons[-1][:SHOWN]}
    last = json.loads(done.stdout.splitlines()[-1])
    peak = last["peak_host_mib"] if tool == WHOLE else last
    return row | {"seconds": seconds, "peak_mib": peak, "path": str(out / GRAPH)}


@dataclasses.dataclass(frozen=True)
class Labels:
    """Texts float32 [Q, E] and the right one of each clip, int64 [n]."""

    texts: np.ndarray
    right: np.ndarray

    def hits(self, video: np.ndarray) -> np.ndarray:
        """Whether each clip's nearest text is the right one, from embeddings [n, E]."""
        return self.answers(video) == self.right

    def answers(self, video: np.ndarray) -> np.ndarray:
        """The nearest text of each clip."""
        return cosine_scores(self.texts, video).argmax(0)


def _measure(
    place: Path,
    rows: Mapping[str, dict[str, Any]],
    pixels: np.ndarray,
    labels: Labels | None,
    *,
    batch: int,
) -> list[dict[str, Any]]:
    """Run every file in ONNX Runtime beside fp32; one row per tool, and one for fp32."""
    files = {FP32: place / FP32 / GRAPH}
    files |= {tool: Path(row["path"]) for tool, row in rows.items() if "path" in row}
    found = {FP32: {}, **{tool: {**row} for tool, row in rows.items()}}
    embeds: dict[str, Embed] = {}
    exact = np.zeros(0)
    for tool, path in files.items():
        found[tool].pop("path", None)
        try:
            embeds[tool] = _opened(path)
            parts = [embeds[tool](pixels[i : i + batch]) for i in range(0, len(pixels), batch)]
        except Exception as e:  # of ONNX Runtime, which has many classes
            if tool == FP32:
                raise
            embeds.pop(tool, None)
            found[tool]["refused"] = " ".join(str(e).split())[:SHOWN]
            continue
        video = np.concatenate(parts)
        exact = video if tool == FP32 else exact
        found[tool] |= compared(exact, video, labels)
        found[tool]["file_ratio"] = path.stat().st_size / files[FP32].stat().st_size
    for tool, ratio in speeds(_timed(embeds, pixels[:1])).items():
        found[tool] |= ratio
    for tool, row in found.items():
        print(tool, {k: v for k, v in row.items() if k != "clips"}, flush=True)
    return [{"tool": tool, **row} for tool, row in found.items()]


def _opened(path: Path) -> Embed:
    session = inference_session(path, threads=usable_cpus(), arena=True)

    def embed(video: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["video_embeds"], {"video": video})[0])

    return embed


def compared(exact: np.ndarray, video: np.ndarray, labels: Labels | None) -> dict[str, float]:
    """Figures of embeddings [n, E] beside those of fp32.

    Cosines, and with labels: accuracy and agreement of answers in percent, and how many clips that
    fp32 answers right are lost, and wrong ones gained.
    """
    norms = np.linalg.norm(exact, axis=-1) * np.linalg.norm(video, axis=-1)
    cosines = (exact * video).sum(-1) / norms
    found = {"cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}
    if labels is not None:
        hits, base = labels.hits(video), labels.hits(exact)
        same = labels.answers(video) == labels.answers(exact)
        found |= {"accuracy": 100 * float(hits.mean()), "agreement": 100 * float(same.mean())}
        found |= {"lost": int((base & ~hits).sum()), "gained": int((hits & ~base).sum())}
    return found


def _timed(embeds: Mapping[str, Embed], clip: np.ndarray) -> dict[str, list[float]]:
    """Seconds of one clip [1, T, ...] for each graph and round; the first differs every round."""
    names = list(embeds)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-2, ROUNDS):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            start = time.perf_counter()
            embeds[name](clip)
            if i >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def speeds(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """How many times as fast as fp32: median and quartiles of the ratios within each round."""
    found = {}
    for name, seconds in times.items():
        low, middle, high = np.quantile(np.divide(times[FP32], seconds), [0.25, 0.5, 0.75])
        found[name] = {"speed": float(middle), "speed_low": float(low), "speed_high": float(high)}
    return found


if __name__ == "__main__":
    main()
