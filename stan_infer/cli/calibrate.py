"""The command `stan-infer calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stan_infer.cli.options import (
    AnnotationsIfAny,
    CheckpointOrFolder,
    Json,
    Locked,
    PrecisionOf8Bits,
    Settings,
    Threads,
    Timeout,
    VideosOrList,
    Weights,
    Workers,
    parse_settings,
)

_COLUMNS = ("engine", "precision", "file_mib", "latency_ms_p50", "speed")


def calibrate(
    checkpoint: CheckpointOrFolder,
    videos: VideosOrList,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write.")],
    precision: PrecisionOf8Bits = "int8",
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What sets the ranges of 8 bits: max, percentile, mse or entropy."
        ),
    ] = "max",
    percentile: Annotated[
        float | None, typer.Option(metavar="P", help="For --method percentile (default: 99.99).")
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Videos for the ranges, chosen by --seed.")
    ] = 256,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the choice of videos.")] = 0,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", help="Largest loss of --metric, in points (on --annotations)."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="top1|r1", help="What --max-drop limits, on --annotations."),
    ] = None,
    annotations: AnnotationsIfAny = None,
    min_cosine: Annotated[
        float | None,
        typer.Option(
            metavar="C", help="Smallest cosine to fp32 (default, without --max-drop: 0.995)."
        ),
    ] = None,
    smooth: Annotated[
        bool, typer.Option("--smooth/--no-smooth", help="Move the scale of outliers into weights.")
    ] = True,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write it though it is slower, misses the bound or is unchecked."
        ),
    ] = False,
    threads: Threads = None,
    workers: Workers = None,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    timeout: Timeout = 60.0,
    json: Json = False,
) -> None:
    """Quantise the video tower to 8 bits, within a bound.

    The ranges are those of real videos, and gain and loss are reported. A quarter of the videos, at
    least 8, set no range and check the bound: 16 or more are needed. Where the bound cannot be met,
    or 8 bits are not faster on this machine, or that cannot be told now because of other work, the
    exit code is 4 and nothing is written without --force. A run that was stopped keeps the ranges
    it has measured: started again, it goes on from them and does the rest anew.
    """
    from stan_infer.cli.progress import progress_bars
    from stan_infer.cli.report import print_facts, print_json, print_table, say
    from stan_infer.errors import CheckError
    from stan_infer.quantisation.from_videos import calibrate as run
    from stan_infer.quantisation.sentence import facts, table_rows
    from stan_infer.system.machine import peak_mib

    with progress_bars() as progress:
        found = run(
            checkpoint,
            videos,
            out,
            say=say,
            progress=progress,
            precision=precision,
            method=method,
            percentile=percentile,
            samples=samples,
            seed=seed,
            smooth=smooth,
            force=force,
            min_cosine=min_cosine,
            max_drop=max_drop,
            metric=metric,
            labels=annotations,
            settings=parse_settings(settings, weights),
            workers=workers,
            timeout_s=timeout,
            **({} if threads is None else {"threads": threads}),
        )
    verdict = found.record["verdict"]
    if json:
        memory = {"peak_host_mib": peak_mib()}
        failures = [{"video": k, "error": v} for k, v in found.failed.items()]
        print_json("calibrate", {"out": str(out), **found.record, "failures": failures, **memory})
    else:
        print_table(sorted(found.record["sensitivity"], key=lambda r: -r["error"])[:10])
        measured = ("cosine",) if verdict["drop"] is None else ("drop", "interval", "agreement")
        print_table(table_rows(found.record), (*_COLUMNS, *measured, "refused"))
        print_facts(facts(found.record))
    if not found.is_met:
        raise CheckError(verdict["sentence"])
    if found.failed:
        say(f"{len(found.failed)} videos could not be used and are in no range")
        raise typer.Exit(2)
