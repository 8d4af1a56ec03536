"""The command `stan-infer eval`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stan_infer.cli.options import (
    AutoRebuild,
    Batch,
    Calibration,
    CheckpointOrFolder,
    Decoder,
    Device,
    Engine,
    Json,
    Labels,
    Provider,
    Settings,
    SplitWords,
    Timeout,
    Weights,
    Workers,
    class_names,
    open_for,
)

if TYPE_CHECKING:
    from stan_infer.config import StanConfig
    from stan_infer.engines.session import Session
    from stan_infer.evaluation.datasets import DataSet
    from stan_infer.evaluation.evaluate import Evaluation
    from stan_infer.evaluation.feature_cache import FeatureCache
    from stan_infer.library.embed import EmbedOptions


def eval(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    dataset: Annotated[
        str,
        typer.Option(
            help="msrvtt, didemo, lsmdc, msvd, kinetics400, ssv2; or retrieval, recognition: CSV "
            "with the columns video,text or video,label."
        ),
    ],
    annotations: Annotated[Path, typer.Option(help="The data set's own annotation file.")],
    videos: Annotated[Path, typer.Option(help="Folder that holds the videos, at any depth.")],
    labels: Labels = None,
    split_words: SplitWords = False,
    subset: Annotated[
        Path | None, typer.Option(help="File of the videos to keep, one name per line (a split).")
    ] = None,
    template: Annotated[str, typer.Option(help="Text of a class, as in 'a video of {}'.")] = "{}",
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, bf16 (default: fp32; of a folder its own).")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=64, help="Frames per video (default: the paper's).")
    ] = None,
    text_length: Annotated[
        int | None, typer.Option(min=3, help="Tokens per text (default: the paper's).")
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="Clips x crops per video, averaged in recognition (default: the paper's 1x3 for "
            "kinetics400 and ssv2, else 1x1)."
        ),
    ] = None,
    ties: Annotated[
        str, typer.Option(help="Of equal scores: expected (mean rank), or authors.")
    ] = "expected",
    dual_softmax: Annotated[
        bool, typer.Option("--dual-softmax", help="Multiply scores by a softmax over all queries.")
    ] = False,
    truncation: Annotated[
        str, typer.Option(help="How to cut long texts: keep-eot, or authors (as released).")
    ] = "keep-eot",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out videos that are not in --videos.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps features, so that a stopped run goes on.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            help="Folder to write: every answer as CSV, scores, charts, and a page with the worst.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER",
            help="Output of another eval --json, or its --out folder: the difference, paired.",
        ),
    ] = None,
    batch: Batch = 1,
    workers: Workers = None,
    settings: Settings = None,
    weights: Weights = None,
    decoder: Decoder = "auto",
    timeout: Timeout = 60.0,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Evaluate retrieval (R@1/5/10, MdR, MnR) or recognition (top-1/5) and state the protocol.

    Videos that cannot be read are named and left out; the exit code is then 2.
    """
    from stan_infer.artefacts.folder import sha256
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import say
    from stan_infer.errors import InputError
    from stan_infer.evaluation.compare import compared, read_other
    from stan_infer.evaluation.datasets import DATASETS, read_names, read_task
    from stan_infer.evaluation.evaluate import Protocol, evaluate
    from stan_infer.evaluation.feature_cache import check_cache
    from stan_infer.evaluation.result_folder import check_results
    from stan_infer.library.embed import EmbedOptions
    from stan_infer.library.model_files import model_hashes
    from stan_infer.system.atomic import check_outside, files_of
    from stan_infer.video.find import locate_videos

    read = [annotations, labels, subset, calibration, compare]
    sources = [*files_of(checkpoint), videos, *(p for p in read if p is not None)]
    if cache is not None:
        check_cache(cache, [*files_of(checkpoint), videos])
    if out is not None:
        check_results(out, sources=sources)
        if cache is not None:
            check_outside(cache, out, "--out")
    other = None if compare is None else read_other(compare)
    task = read_task(
        dataset,
        annotations,
        labels=class_names(labels, split_words),
        subset=None if subset is None else read_names(subset),
    )
    preset = DATASETS[dataset]
    split = preset.split(task)
    if not videos.is_dir():
        raise InputError(f"--videos {videos} is not a folder; give the folder of the videos")
    counts = preset.views if views is None else _views(views)
    found = locate_videos(videos, task.videos)
    missing = [name for name, path in zip(task.videos, found, strict=True) if path is None]
    if missing and not allow_missing:
        raise InputError(
            f"{len(missing)} of {len(found)} videos of {annotations} are not in {videos}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; add them, or leave "
            "them out with --allow-missing"
        )
    if len(missing) == len(found):
        raise InputError(
            f"no video of {annotations} is in {videos}; its files need the names that the "
            "annotations have"
        )
    _tell_twins(task.videos, found)
    task = task.keep([i for i, path in enumerate(found) if path is not None])
    paths = [path for path in found if path is not None]
    if other is not None:
        other.check(task)
    session = open_for(context, yielding=True)
    protocol = Protocol(
        _config(session.config, preset, frames, text_length),
        views=counts,
        decoder=decoder,
        truncation=truncation,
        template=template,
        ties=ties,
        dual_softmax=dual_softmax,
    )
    ran = session.describe()
    options = EmbedOptions(batch, workers, timeout)
    hashes = model_hashes(checkpoint)
    kept = None if cache is None else _open_cache(cache, checkpoint, hashes, weights, session)
    with progress_bar("evaluating", len(paths)) as step:

        def on_video(error: str | None) -> None:
            step()
            if error:
                say(f"error: {error}")

        try:
            result = evaluate(
                session, task, paths, protocol, options, cache=kept, on_video=on_video
            )
        finally:
            if kept is not None:
                kept.flush()
    facts = {
        "data set": dataset,
        "split": _split(split, subset, len(found), len(paths) - len(result.failed)),
        "annotations": annotations.name,
        "annotations sha256": sha256(annotations),
        "settings from": preset.settings_from,
        **result.facts,
        "views from": "--views" if views else "the paper" if counts != (1, 1) else "one view",
        "missing": len(missing),
        "unreadable": len(result.failed),
    }
    record = _record(result, {"model": checkpoint, "model_sha256": hashes, "session": ran}, facts)
    record |= {"missing": missing}
    if other is not None:
        record["comparison"] = compared(result.answers, facts, other)
    if out is not None:
        files = dict(zip(task.videos, paths, strict=True))
        _write(out, record, result, files, decoder, options, sources)
    _show(record, facts, json)
    if result.failed:
        say(f"{len(result.failed)} of {len(paths)} videos could not be read and are in no figure")
        raise typer.Exit(2)


def _write(
    out: Path,
    record: dict[str, Any],
    result: Evaluation,
    files: dict[str, Path],
    decoder: str,
    options: EmbedOptions,
    sources: list[Path],
) -> None:
    """Write the folder of --out, with pictures of the videos of the worst questions."""
    from stan_infer.cli.progress import progress_bar
    from stan_infer.evaluation.page import worst_videos
    from stan_infer.evaluation.result_folder import write_results
    from stan_infer.evaluation.thumbnails import thumbnails

    names = [result.answers.task.videos[i] for i in worst_videos(result.answers)]
    with progress_bar("drawing thumbnails", len(names)) as step:
        found = thumbnails([files[n] for n in names], decoder, options, step)
    pictures = {n: found[files[n]] for n in names if files[n] in found}
    title = f"{Path(record['model']).name} on {record['protocol']['data set']}"
    write_results(out, title, record, result.answers, pictures, sources=sources)


def _split(name: str, subset: Path | None, videos: int, read: int) -> str:
    """What was evaluated: the split, the list that chose it, and whether all of it was there."""
    chosen = "" if subset is None else f", those of {subset.name}"
    return name + chosen + (f", incomplete: {read} of {videos}" if read < videos else "")


def _tell_twins(names: Sequence[str], found: Sequence[Path | None]) -> None:
    """Say which names of the annotations mean the same file: its video is there twice."""
    from stan_infer.cli.report import say

    first: dict[str, str] = {}
    twins = []
    for name, path in zip(names, found, strict=True):
        if path is not None:
            same = first.setdefault(os.path.realpath(path), name)
            twins += [f"{same} and {name} are {path.name}"] if same != name else []
    if twins:
        say(
            f"{len(twins)} videos are there under two names and count twice: {'; '.join(twins[:3])}"
        )


def _record(result: Evaluation, ran: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """What --json prints and metrics.json holds."""
    from stan_infer.evaluation.answers import asked, candidates

    task = result.answers.task
    hits = {
        direction: {
            name: [int(h) if h in (0, 1) else h for h in hit.tolist()] for name, hit in of.items()
        }
        for direction, of in result.answers.hits.items()
    }
    return {
        "schema": "stan-infer/eval/1",
        **ran,
        "protocol": facts,
        "figures": result.figures,
        "intervals": result.intervals,
        "outcomes": result.outcomes,
        "hits": hits,
        "asked": asked(task),
        "candidates": candidates(task),
        "failures": [{"video": k, "error": v} for k, v in result.failed.items()],
    }


def _show(record: dict[str, Any], facts: dict[str, Any], json: bool) -> None:
    from stan_infer.cli.report import print_facts, print_json, print_lines, print_table

    if json:
        print_json("eval", record)
        return
    rows = []
    for direction, figures in record["figures"].items():
        intervals = record["intervals"][direction]
        cells = {
            name: f"{value:.1f} ({intervals[name][0]:.1f} to {intervals[name][1]:.1f})"
            if name in intervals
            else f"{value:.1f}"
            for name, value in figures.items()
        }
        rows.append({"": direction.replace("_", " "), **cells})
    print_table(rows)
    print_facts({**facts, "model": record["model"], **record["session"]})
    if found := record.get("comparison"):
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
        print_lines(f"{found['sentence']}.")


def _config(
    config: StanConfig, preset: DataSet, frames: int | None, text_length: int | None
) -> StanConfig:
    import dataclasses

    """The model's config with the settings of the data set, or those that were given."""
    t = preset.mug_frames if config.is_mug and preset.mug_frames else preset.frames
    side = config.short_side if preset.resize is None else round(config.image_size * preset.resize)
    return dataclasses.replace(
        config,
        frames=frames or t or config.frames,
        context_length=text_length or preset.context_length or config.context_length,
        short_side=side,
    )


def _views(text: str) -> tuple[int, int]:
    from stan_infer.errors import InputError

    match = re.fullmatch(r"(\d{1,3})x(\d{1,3})", text)
    if not match:
        raise InputError(f"--views {text!r} is not CLIPSxCROPS, as in --views 1x3")
    return int(match[1]), int(match[2])


def _open_cache(
    folder: Path, checkpoint: str, hashes: dict[str, str], weights: str | None, session: Session
) -> FeatureCache:
    from stan_infer.evaluation.feature_cache import FeatureCache

    model = " ".join(hashes.values()) or checkpoint
    model += f" {weights}" if weights else ""
    # The number of threads differs from run to run and changes no feature.
    ran = {k: v for k, v in session.describe().items() if k != "threads"}
    key = {"model": model, "config": session.config.to_dict(), "session": ran}
    return FeatureCache(folder, key)
