"""The command `stan-infer calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stan_infer.cli.given import parse_settings
from stan_infer.cli.options import (
    AnnotationsIfAny,
    CheckpointOrExport,
    Json,
    Locked,
    PrecisionOf8Bits,
    Settings,
    Threads,
    Timeout,
    VideosOrList,
    Weights,
    Workers,
)

_SENSITIVITY = {"linear": "linear", "error": "error", "saved_ms": "saved ms"}
_COLUMNS = {
    "engine": "engine",
    "precision": "precision",
    "file_mib": "MiB",
    "latency_ms_p50": "p50 ms",
    "speed": "speed",
}


def calibrate(
    checkpoint: CheckpointOrExport,
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
        float | None,
        typer.Option(
            metavar="P",
            min=50,
            max=100,
            help="Percentile of --method percentile (default: 99.99).",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of videos that set the ranges, at most.")
    ] = 256,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of the choice of these videos.")
    ] = 0,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            min=0,
            max=100,
            help="Largest loss of --metric that is allowed, in percentage points.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="top1|r1", help="Accuracy on --annotations that --max-drop limits."),
    ] = None,
    annotations: AnnotationsIfAny = None,
    min_cosine: Annotated[
        float | None,
        typer.Option(
            metavar="C",
            min=0,
            max=1,
            help="Smallest cosine to fp32 that is allowed (default: 0.995, without --max-drop).",
        ),
    ] = None,
    smooth: Annotated[
        bool,
        typer.Option(
            "--smooth/--no-smooth", help="Move the scale of outlier channels into weights."
        ),
    ] = True,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write the folder even if it is slower, misses the bound or is unchecked.",
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

    The videos show how large the values get. A quarter of them, at least 8, is held out to check
    what is lost, so 16 or more are needed. The exit code is 4, and nothing is written without
    `--force`, if the bound cannot be met, if 8 bits are not faster on this machine, or if other
    work on the machine hides whether they are.

    A run that was stopped keeps the ranges it has measured: started again, it goes on from them.
    """
    from stan_infer.cli.progress import progress_bars
    from stan_infer.cli.report import print_facts, print_json, print_lines, print_table, say
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
        worst = sorted(found.record["sensitivity"], key=lambda r: -r["error"])[:10]
        print_table(worst, _SENSITIVITY)
        print_lines("")
        measured = ("cosine",) if verdict["drop"] is None else ("drop", "interval", "agreement")
        rows = table_rows(found.record)
        refused = {"refused": "why not"} if any(r.get("refused") for r in rows) else {}
        print_table(rows, _COLUMNS | {name: name for name in measured} | refused, keys=2)
        print_lines("")
        print_facts(facts(found.record))
    if not found.is_met:
        raise CheckError(verdict["sentence"])
    if found.failed:
        say(f"{len(found.failed)} videos could not be used and are in no range")
        raise typer.Exit(2)
