"""The command `stan-infer bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stan_infer.cli.options import (
    BatchEach,
    Calibration,
    Device,
    EngineEach,
    FramesEach,
    Json,
    Locked,
    PrecisionEach,
    Settings,
    Threads,
    Weights,
    fetched,
    parse_numbers,
    parse_settings,
)

if TYPE_CHECKING:
    from stan_infer.benchmarking.run import BenchResult

_COLUMNS = "engine precision batch frames latency_ms_p50 latency_ms_p95 clips_per_s ratio".split()
_COLUMNS += ["share_of_ceiling", "max_rel_error", "peak_host_mib"]
_STAGES = "engine precision frames decode_ms_p50 embed_ms_p50 score_ms_p50 total_ms_p50".split()
_CHANGES = "engine precision batch frames by change regression".split()


def bench(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CKPT_OR_DIR",
            callback=fetched,
            help="Checkpoint, hf: name, exported folder, .plan or .onnx; without it, --preset.",
        ),
    ] = None,
    engine: EngineEach = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Architecture with random weights, in place of CKPT_OR_DIR (default: stan-b32).",
        ),
    ] = None,
    batch: BatchEach = "1",
    frames: FramesEach = "8",
    precision: PrecisionEach = None,
    device: Device = None,
    warmup: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rounds that are not counted.")
    ] = 2,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Least number of counted rounds.")
    ] = 10,
    min_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, max=3600, help="Least seconds that each engine runs."
        ),
    ] = 3.0,
    threads: Threads = None,
    include_decode: Annotated[
        Path | None,
        typer.Option(metavar="VIDEO_OR_DIR", help="Also time all stages from file to scores."),
    ] = None,
    memory: Annotated[
        bool, typer.Option(help="Measure the peak memory of each engine, in a process of its own.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE.jsonl", help="Write the rows.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write an HTML page with plots.")
    ] = None,
    evals: Annotated[
        list[Path] | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            help="Output of eval --json, for an accuracy plot on the page; may be repeated.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD.jsonl",
            help="Rows to compare with; exit code 4 if slower, or if that cannot be told.",
        ),
    ] = None,
    calibration: Calibration = None,
    max_slowdown: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0, max=1, help="Loss of speed that --compare allows, as a share."
        ),
    ] = 0.1,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    json: Json = False,
) -> None:
    """Time engines against eager mode, and compare their outputs.

    They run in turn in one process. An exported folder has no eager mode: its first engine is the
    baseline. If an engine cannot run here, the reason is shown and the exit code is 3. If its
    outputs are wrong, no speed is shown and the exit code is 4. If other work kept it from the
    CPUs, its row says "starved" in place of a ratio, and the exit code is 4 if all rows do. Videos
    that cannot be read are named and left out; exit code 2.
    """
    from stan_infer.benchmarking.options import MAX_BATCH, MAX_FRAMES
    from stan_infer.benchmarking.run import bench as run
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import say
    from stan_infer.errors import CheckError

    result = run(
        checkpoint,
        say=say,
        progress=progress_bar,
        preset=preset,
        settings=parse_settings(settings, weights),
        engines=_words(engine),
        precisions=_words(precision),
        device=device,
        batches=parse_numbers(batch, "--batch", MAX_BATCH),
        frames=parse_numbers(frames, "--frames", MAX_FRAMES),
        warmup=warmup,
        repeats=repeats,
        min_seconds=min_seconds,
        threads=threads,
        calibration=calibration,
        include_decode=include_decode,
        memory=memory,
        out=out,
        report=report,
        evals=evals or [],
        compare=compare,
        tolerance=max_slowdown,
    )
    _show(result, json)
    for error in result.failed.values():
        say(f"error: {error}")
    if result.is_wrong or not result.is_complete:
        raise typer.Exit(4 if result.is_wrong else 3)
    if result.is_starved:
        raise CheckError("every row is starved by other work: no time here is an engine's own")
    if result.failed:
        say(f"{len(result.failed)} videos could not be read and were not timed")
        raise typer.Exit(2)


def _show(result: BenchResult, json: bool) -> None:
    from stan_infer.benchmarking.rows import machine_remarks, ratio_in_words, remarks, shown_cells
    from stan_infer.cli.report import print_json, print_table, say

    rows, stages = result.rows, result.stages
    for row in [*rows, *stages]:
        for line in remarks(row):
            say(line)
    if json:
        found = {"bench": rows, "bench-stages": stages, "bench-change": result.changes}
        for schema, records in found.items():
            for record in records:
                print_json(schema, record)
        return
    first, machine = rows[0], rows[0]["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {first['threads']} threads"
    for line in (f"{result.title} on {where}", *machine_remarks(rows)):
        say(line)
    shown = [shown_cells(r) | {"ratio": ratio_in_words(r)} for r in rows if not r.get("refused")]
    print_table(shown, _COLUMNS)
    print_table(stages, _STAGES)
    print_table(result.changes, _CHANGES)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []
