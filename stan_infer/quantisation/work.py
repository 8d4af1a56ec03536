"""The steps of a calibration, after its options and places were checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

import stan_infer
from stan_infer.artefacts.calibration_file import SCHEMA, digest, preprocessing
from stan_infer.artefacts.folder import Artefact, read_artefact, sha256, why_keep
from stan_infer.errors import CheckError, InputError, MissingError, first_reasons
from stan_infer.export.to_quantised import write_quantised
from stan_infer.network.eight_bits import NUMBER_FORMATS
from stan_infer.network.folded import VideoWeights
from stan_infer.quantisation.bound import Bound, Comparison, Measured, fewest_returned
from stan_infer.quantisation.calibration import Calibration
from stan_infer.quantisation.histogram import PERCENTILE, Histogram, clipping_point
from stan_infer.quantisation.hold_out import MIN_CHECKED, Parts, least_ranged, too_few
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.quantisation.ranges import collect_ranges, is_flat, video_name
from stan_infer.quantisation.sensitivity import CLIPS, layer_errors, return_order, times_saved
from stan_infer.quantisation.sensitivity_plot import draw
from stan_infer.quantisation.sentence import in_words, sentence
from stan_infer.quantisation.smooth import (
    SMOOTHED_ON,
    Quantiser,
    Smoothing,
    choose,
    largest_inputs,
    through_values,
    with_gains,
)
from stan_infer.quantisation.state import Known, State, remove_state
from stan_infer.quantisation.verdict import judge
from stan_infer.quantisation.watched import Sampled, samples_of
from stan_infer.system.atomic import new_folder
from stan_infer.system.temporary import temporary_folder
from stan_infer.video.clip import Clip
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.spec import ClipSpec

Say = Callable[[str], None]
Progress = Callable[[str, int], Callable[[], None]]


@dataclasses.dataclass
class _Read:
    """Clips [T, S, S, 3] by video; how many videos were looked at; what came of others."""

    clips: dict[Path, np.ndarray] = dataclasses.field(default_factory=dict)
    count: int = 0
    flat: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # by name, with the reason


@dataclasses.dataclass(frozen=True)
class Work:
    """One calibration."""

    artefact: Artefact
    weights: VideoWeights
    options: CalibrationOptions
    bound: Bound
    parts: Parts
    remarks: Sequence[str]
    root: Path | None
    say: Say
    progress: Progress

    def run(self, out: Path, state: Path) -> Calibration:
        """Do the steps in turn, and write the folder `out`; raises as calibrate.calibrate."""
        o = self.options
        comparison, chosen, failed = self._held_out()
        read = self._pixels(chosen, SMOOTHED_ON).clips
        first = list(read.values())
        sampled, smoothing = self._smoothing(read)
        exact = through_values(self.weights, smoothing)
        largest = largest_inputs(self.weights, sampled.inputs, smoothing)
        key = self._key(chosen)
        collected = collect_ranges(
            with_gains(exact, smoothing.gains),
            self.artefact.config,
            chosen,
            root=self.root,
            state=State(state, key, Known(sampled.paths, largest)),
            options=o,
            on_clip=self.progress("measuring ranges", len(chosen)),
            say=self.say,
        )
        if self.parts.is_checked and len(collected.clips) < least_ranged(o):
            remove_state(state)
            raise too_few(f"{len(collected.clips)} clips can set the ranges; {self.parts.why}")
        tensors = self._tensors(collected.ranges, smoothing)
        quantiser = self._quantiser(exact, smoothing, tensors, state)
        rows = {name: s.count for name, s in sampled.inputs.items()}
        errors, saved = self._sensitivity(quantiser, first, rows)
        order = return_order(errors, saved)
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "tool": {"name": "stan_infer", "version": stan_infer.__version__},
            "precision": o.precision,
            "method": o.method,
            **({"percentile": o.percentile or PERCENTILE} if o.method == "percentile" else {}),
            "seed": o.seed,
            "clips": len(collected.clips),
            "checked": comparison.count if self.parts.is_checked else 0,
            "bound": self.bound.figures(),
            "remarks": list(self.remarks),
            "key": key,
            "preprocessing": preprocessing(self.artefact.config),
            "tensors": tensors,
            "sensitivity": [{"linear": n, "error": errors[n], "saved_ms": saved[n]} for n in order],
        }
        record |= self._searched(quantiser, record, order, comparison, first)
        verdict = record["verdict"]
        if (not verdict["is_met"] or not verdict["is_faster"]) and not o.force:
            raise CheckError(f"{verdict['sentence']}; nothing was written (--force writes it)")
        title = f"Error of each linear alone in {o.precision}, ranges by {o.method}"
        plots = draw(errors, record["kept"], title)
        files = {f"sensitivity.{kind}": content for kind, content in plots.items()}
        with new_folder(out, why_keep, sources=[self.artefact.path]) as folder:
            self._write(folder, quantiser, record, files)
        failed |= comparison.failed | collected.failed
        return Calibration(record, failed, verdict["is_met"])

    def _searched(
        self,
        quantiser: Quantiser,
        record: Mapping[str, Any],
        order: Sequence[str],
        comparison: Comparison,
        timed: Sequence[np.ndarray],
    ) -> dict[str, Any]:
        """Search for the fewest linears in fp32, and judge; return the record's entries of both.

        comparison: on what the bound must hold. timed: clips to time with.
        """
        with temporary_folder("the graphs that are tried") as above:

            def folder_of(kept: Sequence[str]) -> Artefact:
                path = above / str(len(kept))
                if not path.exists():
                    path.mkdir()
                    self._write(path, quantiser, {**record, "kept": quantiser.kept(kept)})
                return read_artefact(path, check_hashes=False)

            def measure(kept: Sequence[str]) -> Measured:
                found = comparison.folder(folder_of(kept))
                tried = f"{len(kept)} returned to fp32" if kept else "all in 8 bits"
                self.say(f"{tried}: {in_words(found, self.bound)}")
                return found

            search = fewest_returned(order, measure)
            self.say("timing")
            quantised = folder_of(search.kept)
            threads = self.options.threads
            verdict = judge(self.artefact, quantised, search, comparison, timed, threads)
        found = {"kept": quantiser.kept(search.kept), "search": search.rows(), "verdict": verdict}
        verdict["sentence"] = sentence({**record, **found}, self.bound, search.best)
        return found

    def _held_out(self) -> tuple[Comparison, Sequence[Path], dict[str, str]]:
        """What the bound is checked on, the videos that set the ranges, and those that failed.

        A held-out video that cannot be used is replaced by the next one of the ranges, as long as
        enough are left there. Raises InputError where too few can be used.
        """
        o, p = self.options, self.parts
        clips, ranged, failed = [], p.ranged, {}
        if self.bound.task is None:
            queue, enough = p.held, len(p.held)
            if p.is_checked:
                queue = [*p.held, *p.ranged][: enough + len(p.ranged) - least_ranged(o)]
            read = self._pixels(queue, enough)
            clips, failed = list(read.clips.values()), read.failed
            if p.is_checked:
                ranged = [*p.held, *p.ranged][read.count :]
            if p.is_checked and read.flat:
                self.say(f"{read.flat} held out are one flat colour and check nothing")
        comparison = Comparison(self.artefact, self.bound, clips, o)
        if p.is_checked:  # else they are told with the ranges
            for reason in (failed | comparison.failed).values():
                self.say(f"error: {reason}")
        if comparison.lost:
            self.say(f"{comparison.lost} held out have no result in fp32 and check nothing")
        if p.is_checked and comparison.count < MIN_CHECKED:
            raise too_few(f"{comparison.count} of those held out can be used; {p.why}")
        return comparison, ranged[: o.samples], failed

    def _write(
        self,
        folder: Path,
        quantiser: Quantiser,
        record: Mapping[str, Any],
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        weights = quantiser.weights(frozenset(record["kept"]))
        write_quantised(self.artefact, folder, weights, quantiser.precision, record, files)

    def _sensitivity(
        self, quantiser: Quantiser, first: Sequence[np.ndarray], rows: Mapping[str, int]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Error of each linear alone in 8 bits, and milliseconds that it saves."""
        exact, low = quantiser.exact, quantiser.weights(frozenset())
        clips = [p[None] for p in first[:CLIPS]]
        step = self.progress("trying each layer alone", len(quantiser.scales) * len(clips))
        errors = layer_errors(exact, low, clips, step)
        return errors, times_saved(exact, low, rows, self.options.threads)

    def _quantiser(
        self,
        exact: VideoWeights,
        smoothing: Smoothing,
        tensors: Mapping[str, Mapping[str, Any]],
        state: Path,
    ) -> Quantiser:
        """Return what makes the 8-bit weights, from the record's entries for each linear.

        Where no linear is left the run has ended, and its state goes.
        """
        dead = [n for n, t in tensors.items() if not t["scale"]]
        if dead:
            self.say(f"linears that read nothing but zeros stay in fp32: {', '.join(dead)}")
        scales = {n: t["scale"] for n, t in tensors.items() if t["scale"]}
        if not scales:
            remove_state(state)
            raise InputError("every linear reads nothing but zeros: there is nothing to quantise")
        return Quantiser(exact, smoothing.gains, scales, dead, self.options.precision)

    def _key(self, chosen: Sequence[Path]) -> dict[str, Any]:
        """What the ranges depend on: model, videos (name and size), preprocessing, smoothing."""
        c, o = self.artefact.config, self.options
        graph = self.artefact.graph("video")
        assert graph is not None
        listed = sorted((video_name(p, self.root), _size(p)) for p in chosen)
        source = self.artefact.manifest.get("source") or {}
        return {
            "model_sha256": sha256(self.artefact.path / graph.file),
            "checkpoint_sha256": source.get("checkpoint_sha256"),
            "weights": source.get("weights"),
            "data_sha256": digest(listed),
            "preprocessing_sha256": digest(preprocessing(c)),
            "smooth": o.smooth and not NUMBER_FORMATS[o.precision].is_float,
        }

    def _pixels(self, paths: Sequence[Path], enough: int) -> _Read:
        """Read videos until `enough` can be used; clips of one flat colour are left out.

        Raises InputError where none can be used.
        """
        o, spec, found = self.options, ClipSpec.of(self.artefact.config), _Read()
        with closing(read_clips(paths, spec, workers=o.workers, timeout_s=o.timeout_s)) as readings:
            for path, r in readings:
                found.count += 1
                if isinstance(r, MissingError):
                    raise r
                if not isinstance(r, Clip):
                    found.failed[video_name(path, self.root)] = str(r)
                elif is_flat(r.pixels):
                    found.flat += 1
                else:
                    found.clips[path] = r.pixels
                if len(found.clips) == enough:
                    break
        if not found.clips:
            why = first_reasons(found.failed.values(), "they are one flat colour (black?)")
            raise InputError(f"none of {len(paths)} videos can be used: {why}")
        return found

    def _smoothing(self, first: Mapping[Path, np.ndarray]) -> tuple[Sampled, Smoothing]:
        """What the linears read on the first clips, and the strengths chosen on it."""
        o, config = self.options, self.artefact.config
        clips = ((p, x[None]) for p, x in first.items())
        seen = samples_of(self.weights, config, clips)
        if not o.smooth:
            return seen, Smoothing(dict.fromkeys(seen.inputs, 0.0))
        return seen, choose(self.weights, seen.inputs, o.precision)

    def _tensors(
        self, ranges: dict[str, Histogram], smoothing: Smoothing
    ) -> dict[str, dict[str, Any]]:
        """The record's entries for each linear's input, by path."""
        o, found = self.options, {}
        kind = NUMBER_FORMATS[o.precision]
        steps = kind.values()
        for name in sorted(ranges):
            used = clipping_point(ranges[name], o.method, steps, o.percentile or PERCENTILE)
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
        return -1  # opening it will fail too, and that error is shown
