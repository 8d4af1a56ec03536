"""stan-infer bench."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stan_infer.cli.options import Json, Settings, files_of, parse_numbers, parse_settings
from stan_infer.engines.open import ENGINES

if TYPE_CHECKING:
    from stan_infer.benchmarking.interleave import Schedule
    from stan_infer.benchmarking.lanes import Contest


def bench(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[CKPT_OR_DIR]",
            help="Checkpoint, exported folder, .plan or bare .onnx; without it, --preset.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(ENGINES)}, comma separated (default: eager,ort; of a folder ort)."
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Architecture with random weights, where no checkpoint is given.")
    ] = "stan-b32",
    batch: Annotated[str, typer.Option(help="Batch sizes, comma separated.")] = "1",
    frames: Annotated[str, typer.Option(help="Frame counts, comma separated.")] = "8",
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16, bf16; int8, fp8 with --calibration; comma separated (default: fp32, "
            "of triton, trt and trt-rtx fp16; of a folder its own)."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1 (default: cpu; cuda if triton or trt can run)."),
    ] = None,
    warmup: Annotated[int, typer.Option(min=1, help="Uncounted rounds.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Counted rounds, at least.")] = 10,
    min_seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="Counted seconds of every engine, at least.")
    ] = 1.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of every engine (default: all CPUs).")
    ] = None,
    include_decode: Annotated[
        Path | None,
        typer.Option(metavar="VIDEO_OR_DIR", help="Also time the whole way from file to scores."),
    ] = None,
    memory: Annotated[
        bool, typer.Option(help="Measure each engine's peak memory in a process of its own.")
    ] = True,
    out: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Write the rows.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write an HTML page with plots.")
    ] = None,
    evals: Annotated[
        list[Path] | None,
        typer.Option("--eval", help="Output of eval --json, for the page's accuracy plot."),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="OLD.jsonl", help="Rows to compare with (exit code 4).")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What `calibrate` wrote of CKPT, for int8 and fp8."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Loss of speed that --compare lets pass.")
    ] = 0.1,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Time engines against eager mode, interleaved in one process, with their error beside it.

    An exported folder has no eager mode: its first engine is the baseline. An engine that cannot
    run here is shown with the reason, after which the exit code is 3; one whose outputs are wrong
    has no speed, and the exit code is 4.
    """
    from stan_infer.benchmarking.compare import compare_rows
    from stan_infer.benchmarking.interleave import Schedule
    from stan_infer.benchmarking.lanes import check_engines
    from stan_infer.benchmarking.rows import read_json_lines, write_json_lines
    from stan_infer.errors import storable
    from stan_infer.system.machine import installed_versions, machine_record, pinned, usable_cpus
    from stan_infer.system.temporary import temporary_folder

    # Wrong options and files are told before anything is measured.
    engines = check_engines([n.strip() for n in (engine or _default(checkpoint)).split(",")])
    precisions = _precisions(precision)
    batches = parse_numbers(batch, "--batch", 1, 64)
    counts = parse_numbers(frames, "--frames", 1, 64)
    earlier = read_json_lines(compare, "bench", "bench --out FILE") if compare else []
    evaluated = [r for path in evals or [] for r in read_json_lines(path, "eval", "eval --json")]
    given = (include_decode, compare, calibration, *(evals or []))
    sources: list[str | Path] = [p for p in given if p is not None and not p.is_dir()]
    sources += [*files_of(checkpoint)] if checkpoint else []
    sources += [calibration] if calibration else []
    _check_targets(out, report, sources)
    device = device or _device(engines)
    count = threads or usable_cpus()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    title = checkpoint or f"{preset} (random weights)"
    with pinned(count) as cpus, temporary_folder("the graphs that are timed") as folder:
        contest = _open(
            checkpoint, preset, settings, engines, precisions, device, count, folder,
            batches, counts, calibration,
        )  # fmt: skip
        try:
            rows, stages = _measure(
                contest,
                batches,
                counts,
                Schedule(warmup, repeats, min_seconds),
                count,
                device,
                include_decode,
                memory,
            )
        finally:
            contest.close()
    common = {
        "model": storable(Path(title).name if checkpoint else title),
        "machine": machine_record(),
        "versions": {k: v for k, v in installed_versions().items() if v},
        "load_before": load,
        "threads": count,
        "pinned_cpus": cpus,
        "date": datetime.date.today().isoformat(),
    }
    schema = {"schema": "stan-infer/bench/1"}
    rows = [{**schema, **row, **common} for row in rows]
    stages = [{"schema": "stan-infer/bench-stages/1", **row, **common} for row in stages]
    if out:
        write_json_lines(out, [*rows, *stages], sources=sources)
    if report:
        from stan_infer.benchmarking.page import write_page

        name = f"stan-infer bench: {common['model']}"
        write_page(report, name, rows, stages, evaluated, sources=sources)
    changes = compare_rows(earlier, rows, tolerance) if compare else []
    _show(title, rows, stages, changes, json)
    slower = [c for c in changes if c["regression"]]
    wrong = any(r.get("refused") and "max_rel_error" in r for r in rows)
    if wrong or slower:
        raise typer.Exit(4)
    if any(r.get("refused") for r in rows):
        raise typer.Exit(3)


def _open(
    checkpoint: str | None,
    preset: str,
    settings: list[str] | None,
    engines: list[str],
    precisions: list[str],
    device: str,
    threads: int,
    folder: Path,
    batches: list[int],
    frames: list[int],
    calibration: Path | None,
) -> Contest:
    from stan_infer.benchmarking.lanes import open_folder, open_model, open_onnx
    from stan_infer.cli.report import say
    from stan_infer.errors import InputError

    given = parse_settings(settings)
    is_other = checkpoint is not None and checkpoint.endswith((".plan", ".onnx"))
    if calibration and (is_other or checkpoint is None or not os.path.isfile(checkpoint)):
        raise InputError(
            "--calibration belongs to a checkpoint file: a folder in 8 bits has its own"
        )
    if checkpoint is not None and (os.path.isdir(checkpoint) or checkpoint.endswith(".plan")):
        return open_folder(
            checkpoint,
            engines=engines,
            precisions=precisions,
            device=device,
            threads=threads,
            settings=given or None,
        )
    if checkpoint is not None and checkpoint.endswith(".onnx"):
        return open_onnx(Path(checkpoint), engines=engines, device=device, threads=threads)
    from stan_infer.checkpoints.load import load_model, require_torch
    from stan_infer.engines.open import engine_named

    extra = "gpu" if any(engine_named(e).needs_gpu for e in engines) else "cpu"
    torch = require_torch("bench, whose baseline is eager mode,", extra, checkpoint, given)
    torch.set_num_threads(threads)
    if checkpoint is not None:
        model = load_model(checkpoint, given)
        origin: dict[str, Any] = {"source": checkpoint, "settings": given}
    else:
        from stan_infer.checkpoints.openclip import named_config
        from stan_infer.network.model import Stan, init_random

        model = init_random(Stan(named_config(preset, given))).eval()
        origin = {"preset": preset, "settings": given}
    return open_model(
        model,
        origin,
        engines=engines,
        precisions=precisions,
        device=device,
        threads=threads,
        folder=folder,
        say=say,
        batches=batches,
        frames=frames,
        calibration=calibration,
    )


def _measure(
    contest: Contest,
    batches: list[int],
    counts: list[int],
    schedule: Schedule,
    threads: int,
    device: str,
    include_decode: Path | None,
    memory: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from stan_infer.benchmarking.ceiling import Ceiling
    from stan_infer.benchmarking.interleave import bench_videos
    from stan_infer.benchmarking.memory import add_peaks, peak_memory
    from stan_infer.benchmarking.stages import bench_stages
    from stan_infer.cli.progress import progress_bar
    from stan_infer.config import video_flops
    from stan_infer.errors import InputError
    from stan_infer.video.find import list_videos

    config, lanes = contest.config, contest.lanes
    if config is not None:
        counts = parse_numbers(",".join(map(str, counts)), "--frames", 1, config.max_frames)
    videos = list_videos([include_decode])[:8] if include_decode else []
    if videos and config is None:
        raise InputError(
            "--include-decode needs a checkpoint or a folder: a bare graph does not "
            "say how its clips are made"
        )
    can = device == "cpu" or device.startswith("cuda")
    ceiling = Ceiling(config, max(counts), threads, device) if config and can else None
    with progress_bar("measuring", len(batches) * len(counts) + bool(videos)) as step:

        def on_round(part: float) -> None:
            step(part)
            if ceiling:
                ceiling.sample()

        rows = bench_videos(
            lanes,
            side=contest.side,
            flops=(lambda t: video_flops(config, t)) if config else None,
            batches=batches,
            frames=counts,
            schedule=schedule,
            on_round=on_round,
        )
        stages = (
            bench_stages(lanes, config, videos, repeats=schedule.repeats, on_round=step)
            if videos and config
            else []
        )
    if memory:
        with progress_bar("measuring memory", len(lanes)) as step:
            largest = max((b * t, b, t) for b in batches for t in counts)[1:]
            for lane, origin in zip(lanes, contest.origins, strict=True):
                took = peak_memory(
                    origin, threads=threads, batch=largest[0], frames=largest[1], side=contest.side
                )
                step()
                add_peaks(rows, lane.facts, took)
    if ceiling:
        ceiling.add_share(rows)
    return [*rows, *contest.absent], stages


def _show(
    title: str,
    rows: list[dict[str, Any]],
    stages: list[dict[str, Any]],
    changes: list[dict[str, Any]],
    json: bool,
) -> None:
    from stan_infer.cli.report import print_json, print_table, say

    for row in [*rows, *stages]:
        name = f"{row['engine']} {row.get('precision') or ''}".strip()
        for note in [*([row["refused"]] if row.get("refused") else []), *row.get("diagnosis", [])]:
            where = f" at B={row['batch']}, T={row['frames']}" if row.get("batch") else ""
            say(f"{name}{where}: {note}")
    if json:
        for row in rows:
            print_json("bench", row)
        for row in stages:
            print_json("bench-stages", row)
        for change in changes:
            print_json("bench-change", change)
        return
    machine = rows[0]["machine"]
    say(f"{title} on {machine['cpu']}, {machine['cores']} cores, {rows[0]['threads']} threads")
    shown = ["engine", "precision", "batch", "frames", "latency_ms_p50", "latency_ms_p95"]
    shown += ["clips_per_s", "speedup", "share_of_ceiling", "max_rel_error", "peak_host_mib"]
    print_table([r for r in rows if not r.get("refused")], shown)
    if stages:
        parts = ("decode_ms_p50", "embed_ms_p50", "score_ms_p50", "total_ms_p50")
        print_table(stages, ["engine", "precision", "frames", *parts])
    if changes:
        print_table(
            changes, ["engine", "precision", "batch", "frames", "by", "change", "regression"]
        )


def _precisions(text: str | None) -> list[str]:
    from stan_infer.errors import check_word

    known = ["fp32", "fp16", "bf16", "int8", "fp8"]
    found = [p.strip() for p in text.split(",")] if text else []
    for p in found:
        check_word("precision", p, known)
    return list(dict.fromkeys(found))


def _check_targets(out: Path | None, report: Path | None, sources: list[str | Path]) -> None:
    from stan_infer.benchmarking.rows import why_keep_rows
    from stan_infer.system.atomic import check_file, check_folder, check_outside
    from stan_infer.system.packages import require

    if report:
        from stan_infer.benchmarking.page import why_keep

        require("matplotlib", "--report", "report")
        check_folder(report, why_keep, sources=sources)
    if out and report:
        check_outside(out, report, "--report")
    if out:
        check_file(out, why_keep_rows, sources=sources)


def _default(source: str | None) -> str:
    """Engines where none is named."""
    from stan_infer.tensorrt_plans.plan_file import read_plan

    if source is not None and source.endswith(".plan"):
        return read_plan(source, check_hash=False).engine
    is_other = source is not None and (os.path.isdir(source) or source.endswith(".onnx"))
    return "ort" if is_other else "eager,ort"


def _device(engines: list[str]) -> str:
    """The GPU where an engine needs one and it is here, for its baseline too; else the CPU."""
    from stan_infer.cli.report import say
    from stan_infer.engines.open import engine_named
    from stan_infer.errors import MissingError
    from stan_infer.system.packages import require

    needs = [e for e in engines if engine_named(e).needs_gpu]
    if not needs:
        return "cpu"
    try:
        torch = require("torch", f"engine {needs[0]}", "gpu")
    except MissingError:
        return "cpu"  # told when the engine is opened, after what is wrong with its files
    if torch.cuda.is_available():
        say(f"measuring every engine on cuda, as {needs[0]} runs there; --device says otherwise")
        return "cuda"
    return "cpu"
