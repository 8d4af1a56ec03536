"""The command `stan-infer eval`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    class_names,
    open_for,
)

if TYPE_CHECKING:
    from stan_infer.config import StanConfig
    from stan_infer.engines.session import Session
    from stan_infer.evaluation.datasets import DataSet
    from stan_infer.evaluation.evaluate import Evaluation
    from stan_infer.evaluation.feature_cache import FeatureCache


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
    annotations: Annotations,
    videos: VideosOfNames,
    labels: Labels = None,
    split_words: SplitWords = False,
    subset: Annotated[
        Path | None, typer.Option(help="File of the videos to keep, one name per line (a split).")
    ] = None,
    template: Template = None,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    precision: Precision = None,
    threads: Threads = None,
    frames: Frames = None,
    text_length: Annotated[
        int | None, typer.Option(min=3, help="Tokens per text (default: the paper's).")
    ] = None,
    views: Annotated[
        str, typer.Option(help="Clips x crops per video, as in 1x3; probabilities are averaged.")
    ] = "1x1",
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
    """Measure retrieval or recognition on annotated videos.

    R@1/5/10, MdR and MnR, or top-1/5, with the protocol of every figure.

    Videos that cannot be read are named and left out; the exit code is then 2.
    """
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import say
    from stan_infer.errors import InputError
    from stan_infer.evaluation.datasets import DATASETS, read_names, read_task
    from stan_infer.evaluation.evaluate import Protocol, evaluate
    from stan_infer.evaluation.feature_cache import check_cache
    from stan_infer.library.embed import EmbedOptions
    from stan_infer.system.atomic import files_of
    from stan_infer.text.templates import PLAIN
    from stan_infer.video.find import locate_videos

    if cache is not None:
        check_cache(cache, [*files_of(checkpoint), videos])
    task = read_task(
        dataset,
        annotations,
        labels=class_names(labels, split_words),
        subset=None if subset is None else read_names(subset),
    )
    split = DATASETS[dataset].split(task)
    if not videos.is_dir():
        raise InputError(f"--videos {videos} is not a folder; give the folder of the videos")
    counts = _views(views)
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
    session = open_for(context, yielding=True)
    preset = DATASETS[dataset]
    protocol = Protocol(
        _config(session.config, preset, frames, text_length),
        views=counts,
        decoder=decoder,
        truncation=truncation,
        template=template or PLAIN,
        ties=ties,
        dual_softmax=dual_softmax,
    )
    ran = session.describe()
    kept = None if cache is None else _open_cache(cache, checkpoint, weights, session)
    with progress_bar("evaluating", len(paths)) as step:

        def on_video(error: str | None) -> None:
            step()
            if error:
                say(f"error: {error}")

        try:
            result = evaluate(
                session,
                task,
                paths,
                protocol,
                EmbedOptions(batch, workers, timeout),
                cache=kept,
                on_video=on_video,
            )
        finally:
            if kept is not None:
                kept.flush()
    facts = {
        "data set": dataset,
        "split": _split(split, subset, len(found), len(paths) - len(result.failed)),
        "annotations": annotations.name,
        "settings from": preset.settings_from,
        **result.facts,
        "missing": len(missing),
        "unreadable": len(result.failed),
    }
    _show(result, {"model": checkpoint, "session": ran}, facts, missing, json)
    if result.failed:
        say(f"{len(result.failed)} of {len(paths)} videos could not be read and are in no figure")
        raise typer.Exit(2)


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


def _show(
    result: Evaluation,
    ran: dict[str, Any],
    facts: dict[str, Any],
    missing: list[str],
    json: bool,
) -> None:
    from stan_infer.cli.report import print_facts, print_json, print_table

    if json:
        record = {
            **ran,
            "protocol": facts,
            "figures": result.figures,
            "intervals": result.intervals,
            "outcomes": result.outcomes,
            "missing": missing,
            "failures": [{"video": k, "error": v} for k, v in result.failed.items()],
        }
        print_json("eval", record)
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
    print_facts({**facts, "model": ran["model"], **ran["session"]})


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
    folder: Path, checkpoint: str, weights: str | None, session: Session
) -> FeatureCache:
    from stan_infer.artefacts.folder import MANIFEST, sha256
    from stan_infer.checkpoints.weights_folder import is_exported, weights_files
    from stan_infer.evaluation.feature_cache import FeatureCache

    if is_exported(checkpoint):
        model = sha256(Path(checkpoint) / MANIFEST)  # which holds the hash of every other file
    else:
        files = weights_files(checkpoint)
        model = " ".join(map(sha256, files)) if files else checkpoint
        model += f" {weights}" if weights else ""
    # The number of threads differs from run to run and changes no feature.
    ran = {k: v for k, v in session.describe().items() if k != "threads"}
    key = {"model": model, "config": session.config.to_dict(), "session": ran}
    return FeatureCache(folder, key)
