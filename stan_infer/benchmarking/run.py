"""The benchmark as a function: `stan-infer bench` parses options, calls it and reports."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.benchmarking.candidates import Candidates, open_folder, open_model, open_onnx
from stan_infer.benchmarking.interleave import bench_videos
from stan_infer.benchmarking.memory import add_peaks, peak_memory
from stan_infer.benchmarking.options import BenchOptions, check_range
from stan_infer.benchmarking.peak_gemm import PeakGemm
from stan_infer.benchmarking.rows import (
    compare_rows,
    read_json_lines,
    why_keep_rows,
    write_json_lines,
)
from stan_infer.benchmarking.stages import bench_stages
from stan_infer.checkpoints.hub import located
from stan_infer.checkpoints.weights_folder import is_exported
from stan_infer.config import video_flops
from stan_infer.engines.open import engine_named
from stan_infer.errors import InputError, MissingError, storable
from stan_infer.system.atomic import check_file, check_folder, check_outside, files_of
from stan_infer.system.cpu_use import load_average
from stan_infer.system.machine import installed_versions, machine_record, pinned, usable_cpus
from stan_infer.system.packages import require
from stan_infer.system.result import Progress, Result, Say, no_progress, silent
from stan_infer.system.temporary import temporary_folder
from stan_infer.tensorrt_plans.plan_file import read_plan
from stan_infer.video.find import list_videos

_MAX_VIDEOS = 8  # of include_decode


@dataclasses.dataclass(frozen=True, repr=False)
class BenchResult(Result):
    """What was measured.

    Attributes:
        title: name of the model.
        rows: one per engine, precision and shape: "engine", "precision", "batch", "frames",
            "latency_ms_p50", "clips_per_s", "ratio" to the first engine and more (BENCHMARKS.md);
            one that did not run or whose outputs were wrong has the reason under "refused", and no
            speed.
        stages: rows of the time from file to scores, with include_decode.
        changes: rows against an earlier run, with compare.
        failed: videos that could not be read, and why.
    """

    title: str
    rows: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    failed: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_wrong(self) -> bool:
        """Whether outputs were wrong, or an engine is slower than in `compare`, or may be."""
        slower = any(c["regression"] is not False for c in self.changes)
        return slower or any(r.get("refused") and "max_rel_error" in r for r in self.rows)

    @property
    def is_complete(self) -> bool:
        """Whether every engine ran at every shape."""
        return not any(r.get("refused") for r in self.rows)

    @property
    def is_starved(self) -> bool:
        """Whether other work had the CPUs in every row that ran, so that none has a time."""
        ran = [r for r in self.rows if not r.get("refused")]
        return bool(ran) and all(r.get("starved") for r in ran)

    def summary(self) -> str:
        """The median latency of each row, or that it was refused."""
        parts = [
            f"{r['engine']} {r.get('precision', '')} "
            + ("refused" if r.get("refused") else f"{r['latency_ms_p50']:.4g} ms")
            + (f" (B {r['batch']}, T {r['frames']})" if "batch" in r else "")
            for r in self.rows
        ]
        return f"{self.title}: {', '.join(parts)}"


def bench(
    source: str | Path | None = None,
    *,
    say: Say = silent,
    progress: Progress = no_progress,
    **options: Any,
) -> BenchResult:
    """Time engines against the first one, in turn in one process, and compare their outputs.

    Args:
        source: a checkpoint, exported folder, .plan or bare .onnx; None: `preset`, with random
            weights.
        say: called with a sentence about what is being done.
        progress: called with a title and a number of steps; a context manager that gives a
            function, which is called with the number of steps just done.
        options: the fields of BenchOptions: preset, settings, engines, precisions, device, batches,
            frames, warmup, repeats, min_seconds, threads, calibration, include_decode, memory, out,
            report, evals, compare, tolerance.

    Returns:
        BenchResult: rows with milliseconds, `is_wrong`, `is_complete`, `is_starved`.

    Raises:
        InputError: wrong options or files, which are checked before anything is measured.
        MissingError: no engine can run here.
        CheckError: the baseline's outputs are not finite.

    Example:
        >>> import stan_infer as si
        >>> quick = dict(warmup=1, repeats=1, min_seconds=0, memory=False)
        >>> found = si.bench(preset="stan-tiny", engines=["eager"], frames=[2], **quick)
        >>> found.is_wrong, found.rows[0]["latency_ms_p50"] > 0
        (False, True)
    """
    name = None if source is None else str(located(str(source)))
    return _bench(BenchOptions(source=name, **options), say, progress)


def _bench(options: BenchOptions, say: Say, progress: Progress) -> BenchResult:
    options = dataclasses.replace(options, engines=options.engines or _engines(options.source))
    earlier = (
        read_json_lines(options.compare, "bench", "bench --out FILE") if options.compare else []
    )
    evals = [r for path in options.evals for r in read_json_lines(path, "eval", "eval --json")]
    sources = _sources(options)
    _check_targets(options, sources)
    device = options.device or _device(options.engines, say)
    threads = options.threads or usable_cpus()
    load_before = load_average()
    with pinned(threads) as cpus, temporary_folder("the graphs that are timed") as folder:
        with closing(_open(options, device, threads, folder, say)) as candidates:
            rows, stages, failed = _measure(candidates, options, device, threads, progress)
    title = options.source or f"{options.preset} (random weights)"
    common = {
        "model": storable(Path(title).name if options.source else title),
        "machine": machine_record(),
        "versions": {k: v for k, v in installed_versions().items() if v},
        "load_before": load_before,
        "load_after": load_average(),
        "threads": threads,
        "pinned_cpus": cpus,
        "date": datetime.date.today().isoformat(),
    }
    rows = [{"schema": "stan-infer/bench/1", **row, **common} for row in rows]
    stages = [{"schema": "stan-infer/bench-stages/1", **row, **common} for row in stages]
    if options.out:
        write_json_lines(options.out, [*rows, *stages], sources=sources)
    if options.report:
        from stan_infer.benchmarking.page import write_page

        name = f"stan-infer bench: {common['model']}"
        write_page(options.report, name, rows, stages, evals, sources=sources)
    changes = compare_rows(earlier, rows, options.tolerance) if options.compare else []
    return BenchResult(title, rows, stages, changes, failed)


def _kind(source: str | None) -> str:
    """What is measured: "preset", "plan", "folder", "graph" or "checkpoint"."""
    if source is None:
        return "preset"
    if source.endswith(".plan"):
        return "plan"
    if is_exported(source):
        return "folder"
    return "graph" if source.endswith(".onnx") else "checkpoint"


def _engines(source: str | None) -> tuple[str, ...]:
    """The engines to measure if none is named."""
    kind = _kind(source)
    if source is not None and kind == "plan":
        return (read_plan(source, check_hash=False).engine,)
    return ("ort",) if kind in ("folder", "graph") else ("eager", "ort")


def _device(engines: Sequence[str], say: Say) -> str:
    """The device of all candidates: cuda if an engine needs a GPU and torch finds one, else cpu."""
    needs = [e for e in engines if engine_named(e).needs_gpu]
    if not needs:
        return "cpu"
    try:
        torch = require("torch", f"engine {needs[0]}", "gpu")
    except MissingError:
        return "cpu"  # opening the engine raises this again, after its files were checked
    if torch.cuda.is_available():
        say(f"measuring every engine on cuda, as {needs[0]} runs there; --device says otherwise")
        return "cuda"
    return "cpu"


def _sources(options: BenchOptions) -> list[str | Path]:
    """What is read: no result may replace it. No result may lie in the calibration."""
    given = (options.include_decode, options.compare, *options.evals)
    sources: list[str | Path] = [p for p in given if p is not None and not p.is_dir()]
    sources += [options.calibration] if options.calibration else []
    return sources + (files_of(options.source) if options.source else [])


def _check_targets(options: BenchOptions, sources: Sequence[str | Path]) -> None:
    if options.report:
        from stan_infer.benchmarking.page import why_keep

        require("matplotlib", "--report", "report")
        check_folder(options.report, why_keep, sources=sources)
    if options.out and options.report:
        check_outside(options.out, options.report, "--report")
    if options.out:
        check_file(options.out, why_keep_rows, sources=sources)


def _open(options: BenchOptions, device: str, threads: int, folder: Path, say: Say) -> Candidates:
    """Open every candidate; folder: for exports."""
    source, settings, kind = options.source, dict(options.settings), _kind(options.source)
    if options.calibration and not (kind == "checkpoint" and os.path.isfile(source or "")):
        raise InputError(
            "--calibration belongs to a checkpoint file: a folder in 8 bits has its own"
        )
    eight = next((p for p in options.precisions if p in EIGHT_BITS), None)
    if eight and kind in ("preset", "checkpoint") and options.calibration is None:
        name = source or "CKPT"
        raise InputError(
            f"{eight} needs a calibration: stan-infer calibrate {name} --precision {eight} "
            f"--videos DIR -o OUT, then bench {name} --calibration OUT"
        )
    if settings and kind in ("folder", "graph"):
        raise InputError(f"settings belong to a checkpoint; {source} was exported with its own")
    if source is not None and kind in ("folder", "plan"):
        return open_folder(source, options, device=device, threads=threads)
    if source is not None and kind == "graph":
        return open_onnx(Path(source), engines=options.engines, device=device, threads=threads)
    from stan_infer.checkpoints.load import load_model, require_torch

    extra = "gpu" if any(engine_named(e).needs_gpu for e in options.engines) else "cpu"
    torch = require_torch("bench, whose baseline is eager mode,", extra, source, settings)
    torch.set_num_threads(threads)
    origin: dict[str, Any] = {"source": source, "settings": settings}
    if source is not None:
        model = load_model(source, settings)
    else:
        from stan_infer.checkpoints.openclip import named_config
        from stan_infer.network.model import Stan, init_random

        assert options.preset is not None
        model = init_random(Stan(named_config(options.preset, settings))).eval()
        origin = {"preset": options.preset, "settings": settings}
    return open_model(
        model, origin, options, device=device, threads=threads, folder=folder, say=say
    )


def _measure(
    candidates: Candidates, options: BenchOptions, device: str, threads: int, progress: Progress
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
    """Rows, and rows of stages and videos that cannot be read if videos are given."""
    config = candidates.config
    opened = [
        dataclasses.replace(c, facts={**c.facts, "threads": threads}) for c in candidates.opened
    ]
    if config is not None:
        check_range("--frames", options.frames, config.max_frames)
    videos = list_videos([options.include_decode])[:_MAX_VIDEOS] if options.include_decode else []
    if videos and config is None:
        raise InputError(
            "--include-decode needs a checkpoint or an exported folder: a bare graph does not say "
            "how videos are sampled and resized"
        )
    can = device == "cpu" or device.startswith("cuda")
    peak = PeakGemm(config, max(options.frames), threads, device) if config and can else None
    shapes = [(b, t) for b in options.batches for t in options.frames]
    stages: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with progress("measuring", len(shapes) + bool(videos)) as step:

        def on_round(part: float) -> None:
            step(part)
            if peak:
                peak.sample()

        rows = bench_videos(
            opened,
            side=candidates.side,
            flops=(lambda t: video_flops(config, t)) if config else None,
            batches=options.batches,
            frames=options.frames,
            schedule=options.schedule,
            on_round=on_round,
        )
        if videos and config:
            repeats = options.schedule.repeats
            stages, failed = bench_stages(opened, config, videos, repeats=repeats, on_round=step)
    if options.memory:
        with progress("measuring memory", len(opened)) as step:
            b, t = max(shapes, key=lambda s: (s[0] * s[1], *s))
            for candidate, origin in zip(opened, candidates.origins, strict=True):
                took = peak_memory(origin, threads=threads, batch=b, frames=t, side=candidates.side)
                step()
                add_peaks(rows, candidate.facts, took)
    if peak:
        peak.add_share(rows)
    return [*rows, *candidates.absent], stages, failed
