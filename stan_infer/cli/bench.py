"""The command `stan-infer bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stan_infer.cli.given import parse_numbers, parse_settings
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
)

if TYPE_CHECKING:
    from stan_infer.benchmarking.run import BenchResult

_KEYS = {"engine": "engine", "precision": "precision", "batch": "B", "frames": "T"}
_COLUMNS = {
    **_KEYS,
    "latency_ms_p50": "p50 ms",
    "latency_ms_p95": "p95 ms",
    "clips_per_s": "clips/s",
    "ratio": "ratio",
    "share": "of peak GEMM",
    "max_rel_error": "error",
    "peak_host_mib": "peak MiB",
}
_STAGES = {
    "engine": "engine",
    "precision": "precision",
    "frames": "T",
    "decode_ms_p50": "decode ms",
    "embed_ms_p50": "embed ms",
    "score_ms_p50": "score ms",
    "total_ms_p50": "total ms",
}
_CHANGES = {**_KEYS, "by": "by", "change": "change", "regression": "regression"}


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
        Path | None,
        typer.Option("-o", "--out", metavar="FILE.jsonl", help="Also write the rows to this file."),
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
            help="Rows of an earlier --out to compare with; exit code 4 if slower, or if that "
            "cannot be told.",
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
    CPUs, its row says "starved" in place of a ratio; if all rows do, the exit code is 4.

    Videos that cannot be read are named and left out; the exit code is then 2.
    """
    from stan_infer.benchmarking.options import MAX_BATCH, MAX_FRAMES
    from stan_infer.benchmarking.run import bench as run
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import say

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
    if (fault := result.fault()) is not None:
        raise fault
    if result.failed:
        say(f"{len(result.failed)} videos could not be read and were not timed")
        raise typer.Exit(2)


def _show(result: BenchResult, json: bool) -> None:
    from stan_infer.benchmarking.rows import machine_remarks, ratio_in_words, remarks, shown_cells
    from stan_infer.cli.report import print_json, print_lines, print_table, say

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
    for row in shown:
        share = row.get("share_of_ceiling")
        row["share"] = None if share is None else f"{100 * share:.0f} %"
    tables = ((shown, _COLUMNS), (stages, _STAGES), (result.changes, _CHANGES))
    for number, (records, columns) in enumerate(t for t in tables if t[0]):
        if number:
            print_lines("")
        print_table(records, columns, keys=len(_KEYS))


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []
