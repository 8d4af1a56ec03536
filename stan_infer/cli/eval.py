"""The command `stan-infer eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stan_infer.cli.given import session_options
from stan_infer.cli.options import (
    Annotations,
    AutoRebuild,
    Batch,
    Calibration,
    CheckpointOrFolder,
    Decoder,
    Device,
    Engine,
    Frames,
    Json,
    Labels,
    Locked,
    Precision,
    Provider,
    Settings,
    SplitWords,
    Template,
    Threads,
    Timeout,
    VideosOfNames,
    Weights,
    Workers,
)

if TYPE_CHECKING:
    from stan_infer.evaluation.from_files import ModelEvaluation


def eval(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Data set: msrvtt, didemo, lsmdc, msvd, kinetics400, ssv2; or your own: retrieval "
            "(CSV with the columns video,text) or recognition (video,label).",
        ),
    ],
    annotations: Annotations,
    videos: VideosOfNames,
    labels: Labels = None,
    split_words: SplitWords = False,
    subset: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Use only the videos that this file lists, one per line (a split)."
        ),
    ] = None,
    template: Template = None,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    precision: Precision = None,
    threads: Threads = None,
    frames: Frames = None,
    text_length: Annotated[
        int | None, typer.Option(metavar="L", min=3, help="Tokens per text (default: the paper's).")
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(
            metavar="CLIPSxCROPS",
            help="Clips x crops per video, averaged in recognition (default: the paper's 1x3 for "
            "kinetics400 and ssv2, else 1x1).",
        ),
    ] = None,
    ties: Annotated[
        str,
        typer.Option(
            metavar="RULE", help="How equal scores rank: expected (the mean rank), or authors."
        ),
    ] = "expected",
    dual_softmax: Annotated[
        bool, typer.Option("--dual-softmax", help="Multiply scores by a softmax over all queries.")
    ] = False,
    truncation: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="How to cut long texts: keep-eot keeps the end token, authors does as their code.",
        ),
    ] = "keep-eot",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out videos that are not in --videos.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder that keeps features, so that a stopped run goes on."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            help="Folder to write: every answer as CSV, the scores, charts and an HTML page.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER",
            help="Earlier eval to compare with on the same queries: its --json output or --out "
            "folder.",
        ),
    ] = None,
    batch: Batch = 1,
    workers: Workers = None,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    decoder: Decoder = "auto",
    timeout: Timeout = 60.0,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Measure retrieval or recognition on annotated videos.

    Retrieval gives R@1, R@5, R@10, median and mean rank, recognition top-1 and top-5: with
    intervals, and with all settings that decide them.

    Videos that cannot be read are named and left out; the exit code is then 2.
    """
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import say
    from stan_infer.evaluation.from_files import evaluate
    from stan_infer.text.templates import PLAIN

    result = evaluate(
        checkpoint,
        dataset,
        annotations,
        videos,
        labels=labels,
        split_words=split_words,
        subset=subset,
        template=template or PLAIN,
        frames=frames,
        text_length=text_length,
        views=views,
        ties=ties,
        dual_softmax=dual_softmax,
        truncation=truncation,
        allow_missing=allow_missing,
        cache=cache,
        out=out,
        compare=compare,
        decoder=decoder,
        batch=batch,
        workers=workers,
        timeout_s=timeout,
        say=say,
        progress=progress_bar,
        **session_options(context),
    )
    _show(result, json)
    if result.failed:
        total = result.facts["videos"] + len(result.failed)
        say(f"{len(result.failed)} of {total} videos could not be read and are in no figure")
        raise typer.Exit(2)


def _show(result: ModelEvaluation, json: bool) -> None:
    from stan_infer.cli.report import print_facts, print_json, print_lines, print_table
    from stan_infer.evaluation.page import copies_sentence

    if json:
        print_json("eval", result.to_dict())
        return
    rows = []
    for direction, figures in result.figures.items():
        intervals = result.intervals[direction]
        cells = {
            name: f"{value:.1f} ({intervals[name][0]:.1f} to {intervals[name][1]:.1f})"
            if name in intervals
            else f"{value:.1f}"
            for name, value in figures.items()
        }
        rows.append({"": direction.replace("_", " "), **cells})
    print_table(rows)
    print_lines("")
    if remark := copies_sentence(result.facts):
        print_lines(f"{remark}.")
    print_facts({**result.facts, "model": result.model, **result.session})
    if found := result.comparison:
        print_lines("")
        print_table(
            [
                {
                    "": f"{direction.replace('_', ' ')} {name}",
                    "difference": f"{d['difference']:+.1f}",
                    "95 % interval": "{:+.1f} to {:+.1f}".format(*d["interval"]),
                }
                for direction, of in found["differences"].items()
                for name, d in of.items()
            ]
        )
        print_lines(f"{found['sentence']}." + (f" {remark}." if remark else ""))
