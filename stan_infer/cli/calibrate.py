"""stan-infer calibrate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stan_infer.cli.options import (
    CheckpointOrFolder,
    Json,
    Settings,
    Timeout,
    parse_settings,
    read_lines,
)
from stan_infer.errors import InputError
from stan_infer.system.packages import require

if TYPE_CHECKING:
    from stan_infer.quantisation.verdict import Bound

_COLUMNS = ("engine", "precision", "file_mib", "latency_ms_p50", "speedup")


def calibrate(
    checkpoint: CheckpointOrFolder,
    videos: Annotated[
        Path,
        typer.Option(metavar="DIR|LIST", help="Videos like yours: a folder, or a file of paths."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write.")],
    precision: Annotated[str, typer.Option(help="int8, or fp8 (GPUs from sm_89 on).")] = "int8",
    method: Annotated[
        str, typer.Option(help="How far 8 bits reach: max, percentile, mse or entropy.")
    ] = "max",
    percentile: Annotated[
        float | None, typer.Option(help="Of --method percentile (default: 99.99).")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Videos to run, picked by --seed.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the pick.")] = 0,
    max_drop: Annotated[
        float | None, typer.Option(help="Points of --metric that may be lost (with --labels).")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="top1 or r1, of --labels.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV: video,label (top1) or video,text (r1).")
    ] = None,
    min_cosine: Annotated[
        float | None,
        typer.Option(help="Smallest cosine to fp32 (default, without --max-drop: 0.995)."),
    ] = None,
    smooth: Annotated[
        bool, typer.Option("--smooth/--no-smooth", help="Move outlier channels into weights.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Write it though slower, or beyond the bound.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the timing (default: all).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Decoding processes.")] = 1,
    settings: Settings = None,
    timeout: Timeout = 60.0,
    json: Json = False,
) -> None:
    """Quantise the video tower on real videos, within a bound, and say what it gains and costs.

    Exit code 4 where the bound cannot be met, or 8 bits are not faster here: then nothing is
    written without --force. A stopped run goes on where it was.
    """
    from stan_infer.artefacts.folder import files_of
    from stan_infer.checkpoints.load import require_torch

    require_torch("calibrating", "cpu", checkpoint, parse_settings(settings))
    for module in ("onnx", "onnxruntime"):
        require(module, "calibrating", "cpu")
    from stan_infer.cli.report import print_facts, print_json, print_table, say
    from stan_infer.errors import CheckError
    from stan_infer.quantisation.calibrate import CalibrationOptions, check_out
    from stan_infer.quantisation.calibrate import calibrate as run
    from stan_infer.system.machine import peak_mib, usable_cpus

    if percentile is not None and method != "percentile":
        raise InputError("--percentile belongs to --method percentile")
    if not os.path.exists(checkpoint) and ":" not in checkpoint:
        raise InputError(f"{checkpoint}: no such file or folder; check the spelling")
    options = CalibrationOptions(
        precision=precision,
        method=method,
        percentile=percentile or 99.99,
        samples=samples,
        seed=seed,
        smooth=smooth,
        force=force,
        workers=workers,
        timeout_s=timeout,
        threads=threads or usable_cpus(),
    )
    check_out(out, files_of(checkpoint))
    paths, root = _videos(videos)
    bound = _bound(min_cosine, max_drop, metric, labels, root)
    with _progress() as progress, _folder(checkpoint, settings) as folder:
        found = run(folder, paths, out, options, bound, root=root, say=say, progress=progress)
    verdict = found.record["verdict"]
    if json:
        memory = {"peak_host_mib": peak_mib()}
        failures = [{"video": k, "error": v} for k, v in found.failed.items()]
        print_json("calibrate", {"out": str(out), **found.record, "failures": failures, **memory})
    else:
        worst = sorted(found.record["sensitivity"], key=lambda r: -r["error"])[:10]
        print_table(worst)
        measured = ("cosine",) if verdict["drop"] is None else ("drop", "interval", "agreement")
        rows = [
            {**r, "interval": "{:.2f} to {:.2f}".format(*r["interval"])} if r.get("interval") else r
            for r in verdict["rows"]
        ]
        print_table(rows, (*_COLUMNS, *measured, "refused"))
        names = ("cosine", "mean_cosine", "drop", "agreement")
        facts = {k: verdict[k] for k in names if verdict[k] is not None}
        kept = {"in fp32": ", ".join(found.record["kept"])} if found.record["kept"] else {}
        print_facts({**facts, **kept, "verdict": verdict["sentence"]})
    if not found.is_met:
        raise CheckError(verdict["sentence"])
    if found.failed:
        say(f"{len(found.failed)} videos could not be used; no range counts them")
        raise typer.Exit(2)


def _videos(given: Path) -> tuple[list[Path], Path]:
    """Paths of a folder or a list, and the folder that they are named in."""
    from stan_infer.video.clip import list_videos

    if os.path.isfile(given):
        lines = read_lines(given, "videos")
        root = given.absolute().parent
        return list_videos([root / line for line in lines]), root
    return list_videos([given]), given


def _bound(
    min_cosine: float | None,
    max_drop: float | None,
    metric: str | None,
    labels: Path | None,
    root: Path,
) -> Bound:
    from stan_infer.errors import check_word
    from stan_infer.evaluation.datasets import read_task
    from stan_infer.quantisation.verdict import METRICS, Bound
    from stan_infer.video.find import locate_videos

    if labels is None and (max_drop is not None or metric is not None):
        raise InputError("--max-drop and --metric need labelled videos: --labels FILE")
    if labels is None:
        return Bound(min_cosine=0.995 if min_cosine is None else min_cosine)
    if min_cosine is not None:
        raise InputError("give one bound: --min-cosine, or --max-drop with --labels")
    metric = metric or "top1"
    check_word("metric", metric, METRICS)
    task = read_task("retrieval" if metric == "r1" else "recognition", labels)
    found = locate_videos(root, task.videos)
    missing = [name for name, path in zip(task.videos, found, strict=True) if path is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(found)} videos of {labels} are not in {root}: {missing[0]}"
        )
    return Bound(
        max_drop=0.5 if max_drop is None else max_drop,
        metric=metric,
        task=task,
        paths=[p for p in found if p is not None],
    )


@contextmanager
def _folder(checkpoint: str, settings: list[str] | None) -> Iterator[Path]:
    """The exported fp32 folder: the one given, or one that a checkpoint is exported to."""
    given = parse_settings(settings)
    if os.path.isdir(checkpoint):
        if given:
            raise InputError("settings belong to a checkpoint; a folder was exported with its own")
        yield Path(checkpoint)
        return
    from stan_infer.checkpoints.load import load_model
    from stan_infer.cli.export import about
    from stan_infer.cli.report import say
    from stan_infer.export.export_model import export_model
    from stan_infer.system.temporary import temporary_folder

    with temporary_folder("the fp32 export that is calibrated") as above:
        folder = above / "fp32"
        export_model(
            lambda: load_model(checkpoint, given),
            folder,
            about=about(checkpoint, given, None),
            progress=say,
        )
        yield folder


@contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[], Any]]]:
    """Yield what starts a bar and returns its step; one bar at a time."""
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import say

    with ExitStack() as stack:

        def start(title: str, total: int) -> Callable[[], Any]:
            stack.close()
            say(title)
            return stack.enter_context(progress_bar(title, total))

        yield start
