"""An fp32 folder and videos -> a folder in 8 bits that keeps a bound, or the reason why not.

Ranges of the linears' inputs on real clips, outlier channels smoothed, the layers that cost most
returned to fp32 until the bound holds, speed measured, a verdict in one sentence.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stan_infer
from stan_infer.artefacts.calibration_file import SCHEMA, digest, preprocessing
from stan_infer.artefacts.folder import Artefact, read_artefact, sha256, why_keep
from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.engines.session import Session
from stan_infer.errors import CheckError, InputError, check_word
from stan_infer.export.read_weights import read_weights
from stan_infer.export.to_quantised import write_quantised
from stan_infer.network.eight_bits import NUMBER_FORMATS
from stan_infer.network.folded import VideoWeights
from stan_infer.quantisation.bound_search import fewest_returned
from stan_infer.quantisation.histogram import METHODS, Histogram, clipping_point
from stan_infer.quantisation.observe import Sample, sample
from stan_infer.quantisation.ranges import (
    Collected,
    as_input,
    check_state,
    choose_videos,
    collect_ranges,
    remove_state,
    video_name,
)
from stan_infer.quantisation.sensitivity import CLIPS, layer_errors, return_order, times_saved
from stan_infer.quantisation.sensitivity_plot import draw
from stan_infer.quantisation.smooth import (
    Quantiser,
    Smoothing,
    choose,
    through_values,
    with_gains,
)
from stan_infer.quantisation.verdict import Bound, Measured, judge, sentence
from stan_infer.system.atomic import Sources, check_folder, new_folder
from stan_infer.system.temporary import temporary_folder
from stan_infer.video.clip import Clip
from stan_infer.video.decode_worker import read_clips

SMOOTHED_ON = 16  # clips that strengths are chosen on
CHECKED_ON = 64  # clips that a cosine is held to


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What calibrate does; see its docstring."""

    precision: str = "int8"
    method: str = "max"
    percentile: float = 99.99
    samples: int = 256
    seed: int = 0
    smooth: bool = True
    force: bool = False
    workers: int = 1
    timeout_s: float = 60.0
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse unknown words and numbers out of range."""
        check_word("precision", self.precision, EIGHT_BITS)
        check_word("method", self.method, METHODS)
        if not 50 <= self.percentile <= 100:
            raise InputError(f"percentile is {self.percentile:g}; allowed are 50 to 100")
        if self.samples < 1:
            raise InputError(f"samples is {self.samples}; at least 1 is needed")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What calibrate found: the record that calibration.json holds, and what was left out."""

    record: dict[str, Any]
    failed: dict[str, str]
    is_met: bool


Say = Callable[[str], None]
Progress = Callable[[str, int], Callable[[], None]]


def calibrate(
    source: str | Path,
    videos: Sequence[Path],
    out: str | Path,
    options: CalibrationOptions,
    bound: Bound,
    *,
    root: Path | None = None,
    say: Say = lambda text: None,
    progress: Progress = lambda title, total: lambda: None,
) -> Calibration:
    """Quantise an exported fp32 folder's video tower on `videos` and write it to `out`.

    options: precision int8 or fp8; method: how far each input's 8 bits reach (histogram.METHODS);
    samples: videos to run, picked by seed; smooth: move outlier channels into weights; force: write
    the folder even where it is slower or misses the bound. bound: what must hold (verdict.Bound).
    root: the folder that videos are named in. progress: makes what is called for each step.

    A stopped run goes on from OUT.calibrating.npz. Raises InputError for videos or a folder that
    cannot be used, CheckError where the bound cannot be met or 8 bits are not faster here.
    """
    out = Path(out)
    check_out(out, [source])
    artefact = read_artefact(source)
    _check_runnable(artefact, bound)
    weights = read_weights(artefact)
    work = _Work(artefact, weights, options, bound, root, say, progress)
    state = _state(out)
    try:
        result = work.run(videos, out, state)
    except CheckError:
        remove_state(state)  # it was not stopped: there is nothing to go on with
        raise
    remove_state(state)
    return result


def check_out(out: Path, sources: Sources) -> None:
    """Raise InputError where calibrate would not write `out`, or not what is known meanwhile.

    sources: what is calibrated, which stays.
    """
    check_folder(out, why_keep, sources=sources)
    if out.absolute().parent.is_dir():  # else it is made, and nothing lies in it
        check_state(_state(out))


def _state(out: Path) -> Path:
    """The file from which a stopped run goes on."""
    out = Path(os.path.abspath(out))
    return out.with_name(f"{out.name}.calibrating.npz")


def _check_runnable(source: Artefact, bound: Bound) -> None:
    """Refuse before the work a folder whose graph does not take one clip as videos are read."""
    graph = source.graph("video")
    if graph is None:
        raise InputError(f"{source.path} holds no video graph")
    if graph.inputs[0]["dtype"] != "uint8":
        raise InputError(
            f"{source.path} takes normalised floats; calibration runs videos: export with "
            "--input uint8"
        )
    low, high = graph.dims.get("batch", (1, 1))
    if low > 1:
        raise InputError(
            f"{source.path} takes batch {low} to {high}; calibration runs one clip at a time: "
            f"export with --batch 1:{high}"
        )
    if bound.task is not None and source.graph("text") is None:
        raise InputError(
            f"{source.path} has no text tower, which labels need: give --min-cosine instead"
        )


class _Work:
    def __init__(
        self,
        artefact: Artefact,
        weights: VideoWeights,
        options: CalibrationOptions,
        bound: Bound,
        root: Path | None,
        say: Say,
        progress: Progress,
    ) -> None:
        self.artefact, self.weights, self.options = artefact, weights, options
        self.bound, self.root, self.say, self.progress = bound, root, say, progress

    def run(self, videos: Sequence[Path], out: Path, state: Path) -> Calibration:
        o = self.options
        chosen = choose_videos(videos, self.root, o.samples, o.seed)
        if len(chosen) < o.samples:
            self.say(f"{len(chosen)} videos are there, fewer than the {o.samples} asked for")
        first = self._pixels(chosen[:SMOOTHED_ON])
        if not first:
            raise InputError(f"none of the first {len(chosen[:SMOOTHED_ON])} videos can be used")
        rows, smoothing = self._smoothing(first)
        exact = through_values(self.weights, smoothing)
        key = self._key(chosen)
        collected = self._ranges(with_gains(exact, smoothing.gains), chosen, state, key)
        tensors = self._tensors(collected.ranges, smoothing)
        plan = Quantiser(exact, smoothing.gains, self._scales(tensors), o.precision)
        everything = plan.weights(frozenset())
        clips = [as_input(self.artefact.config, self.weights, p[None]) for p in first[:CLIPS]]
        step = self.progress("trying each layer alone", len(plan.scales) * len(clips))
        errors = layer_errors(exact, everything, clips, step)
        saved = times_saved(exact, everything, rows, o.threads)
        order = return_order(errors, saved)
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "tool": {"name": "stan_infer", "version": stan_infer.__version__},
            "precision": o.precision,
            "method": o.method,
            **({"percentile": o.percentile} if o.method == "percentile" else {}),
            "seed": o.seed,
            "clips": len(collected.clips),
            "key": key,
            "preprocessing": preprocessing(self.artefact.config),
            "tensors": tensors,
            "sensitivity": [{"linear": n, "error": errors[n], "saved_ms": saved[n]} for n in order],
        }
        with temporary_folder("the graphs that are tried") as above:

            def make(kept: Sequence[str]) -> Artefact:
                path = above / str(len(kept))
                if not path.exists():
                    path.mkdir()
                    weights = plan.weights(frozenset(kept))
                    kept_record = {**record, "kept": sorted({*kept, *plan.dead(tensors)})}
                    write_quantised(self.artefact, path, weights, o.precision, kept_record)
                return read_artefact(path, check_hashes=False)

            clips_checked = self._checked(videos, set(chosen))
            base = self.bound.measure(self.artefact, None, clips_checked, o)

            def measure(kept: Sequence[str]) -> Measured:
                found = self.bound.measure(make(kept), base, clips_checked, o)
                back = f"{len(kept)} returned to fp32" if kept else "all in 8 bits"
                self.say(f"{back}: {self.bound.tell(found)}")
                return found

            search = fewest_returned(order, measure)
            kept = search.kept

            def compare(session: Session) -> Measured:
                return self.bound.measure_session(session, base, clips_checked, o)

            verdict = judge(self.artefact, make(kept), search.best, compare, o, first, self.say)
        record |= {
            "kept": sorted({*kept, *plan.dead(tensors)}),
            "search": search.rows(),
            "verdict": verdict,
        }
        verdict["sentence"] = sentence(verdict, self.bound, record["kept"])
        if (not verdict["is_met"] or verdict["is_slower"]) and not o.force:
            raise CheckError(f"{verdict['sentence']}; nothing was written (--force writes it)")
        title = f"Error of each linear alone in {o.precision} ({o.method})"
        plots = draw(errors, kept, title)
        files = {f"sensitivity.{kind}": content for kind, content in plots.items()}
        with new_folder(out, why_keep, sources=[self.artefact.path]) as folder:
            final = plan.weights(frozenset(kept))
            write_quantised(self.artefact, folder, final, o.precision, record, files)
        return Calibration(record, collected.failed, verdict["is_met"])

    def _ranges(
        self,
        smoothed: VideoWeights,
        chosen: Sequence[Path],
        state: Path,
        key: dict[str, Any],
    ) -> Collected:
        """Histograms of every linear's input, smoothed, over the chosen videos."""
        o = self.options
        tick = self.progress("measuring ranges", len(chosen))

        def on_clip(error: str | None) -> None:
            tick()
            if error:
                self.say(f"error: {error}")

        collected = collect_ranges(
            smoothed,
            self.artefact.config,
            chosen,
            root=self.root,
            state=state,
            key=key,
            workers=o.workers,
            timeout_s=o.timeout_s,
            on_clip=on_clip,
            say=self.say,
        )
        if collected.flat:
            self.say(f"{len(collected.flat)} clips are one flat colour and were left out")
        return collected

    def _scales(self, tensors: dict[str, dict[str, Any]]) -> dict[str, float]:
        """Scale of each linear's input; a linear that reads nothing but zeros has none."""
        dead = [n for n, t in tensors.items() if not t["scale"]]
        if dead:
            self.say(f"linears that read nothing but zeros stay in fp32: {', '.join(dead)}")
        scales = {n: t["scale"] for n, t in tensors.items() if t["scale"]}
        if not scales:
            raise InputError("every linear reads nothing but zeros: there is nothing to quantise")
        return scales

    def _checked(self, videos: Sequence[Path], used: set[Path]) -> list[np.ndarray]:
        """Clips that a cosine is held to: others than those of the ranges, if enough are there."""
        if self.bound.task is not None:
            return []
        seed = self.options.seed
        others = choose_videos([v for v in videos if v not in used], self.root, CHECKED_ON, seed)
        if len(others) < CHECKED_ON:
            others = choose_videos(videos, self.root, CHECKED_ON, seed)
        clips = self._pixels(others)
        if not clips:
            raise InputError(f"none of {len(others)} videos to check on can be used: {others[0]}")
        return clips

    def _key(self, chosen: Sequence[Path]) -> dict[str, Any]:
        """What the ranges depend on: model, videos by name and content's size, preprocessing."""
        c, o = self.artefact.config, self.options
        graph = self.artefact.graph("video")
        assert graph is not None
        listed = sorted((video_name(p, self.root), _size(p)) for p in chosen)
        source = self.artefact.manifest.get("source") or {}
        return {
            "model_sha256": sha256(self.artefact.path / graph.file),
            "checkpoint_sha256": source.get("checkpoint_sha256"),
            "data_sha256": digest(listed),
            "preprocessing_sha256": digest(preprocessing(c)),
            "smooth": o.smooth and not NUMBER_FORMATS[o.precision].is_float,
        }

    def _pixels(self, paths: Sequence[Path]) -> list[np.ndarray]:
        """Clips [T, S, S, 3] of the videos that can be read and show something."""
        c, o = self.artefact.config, self.options
        found = read_clips(
            paths,
            frames=c.frames,
            short_side=c.short_side,
            crop=c.image_size,
            workers=o.workers,
            timeout_s=o.timeout_s,
        )
        return [r.pixels for _, r in found if isinstance(r, Clip)]

    def _smoothing(self, first: Sequence[np.ndarray]) -> tuple[dict[str, int], Smoothing]:
        """Rows of each linear for one clip, and the strengths chosen on the first clips."""
        o, config = self.options, self.artefact.config
        seen: dict[str, Sample] = {}
        for pixels in first:
            clip = as_input(config, self.weights, pixels[None])
            for name, s in sample(self.weights, clip).items():
                if not bool(torch.isfinite(s.channels).all()):
                    continue
                old = seen.get(name)
                if old is not None:
                    s = Sample(
                        torch.maximum(old.channels, s.channels),
                        torch.cat([old.rows, s.rows]),
                        s.count,
                    )
                seen[name] = s
        rows = {name: s.count for name, s in seen.items()}
        if not o.smooth:
            return rows, Smoothing(dict.fromkeys(seen, 0.0))
        return rows, choose(self.weights, seen, o.precision)

    def _tensors(
        self, ranges: dict[str, Histogram], smoothing: Smoothing
    ) -> dict[str, dict[str, Any]]:
        o, found = self.options, {}
        kind = NUMBER_FORMATS[o.precision]
        steps = kind.values()
        for name in sorted(ranges):
            used = clipping_point(ranges[name], o.method, steps, o.percentile)
            found[name] = {
                "absmax": ranges[name].largest,
                "amax_used": used,
                "scale": used / kind.largest,
                "smoothing": smoothing.strengths.get(name, 0.0),
            }
        return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # it will fail to open, which is told there
