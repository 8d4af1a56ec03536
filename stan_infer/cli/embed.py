"""The command `stan-infer embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stan_infer.cli.options import (
    AutoRebuild,
    Batch,
    Calibration,
    CheckpointOrFolder,
    Decoder,
    Device,
    Engine,
    Frames,
    Json,
    Locked,
    Precision,
    Provider,
    Settings,
    Text,
    Texts,
    Threads,
    Timeout,
    Weights,
    Workers,
    listed_texts,
    session_options,
)


def embed(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="FILE", help="File to write: .npz, .npy (and .json), .parquet."
        ),
    ],
    videos: Annotated[
        list[Path] | None, typer.Argument(metavar="VIDEOS", help="Videos, or folders of videos.")
    ] = None,
    text: Text = None,
    texts: Texts = None,
    level: Annotated[
        str | None,
        typer.Option(
            metavar="video|frame|token",
            help="What gets a vector: each video, each frame, or each frame and each token of a "
            "text (default: what the model's head compares).",
        ),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Divide every vector by its length.")
    ] = False,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    precision: Precision = None,
    threads: Threads = None,
    frames: Frames = None,
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
    """Write the embeddings of videos and texts to a file.

    Videos that cannot be read are named and left out; the exit code is then 2.
    """
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import print_facts, print_json, say
    from stan_infer.library.embeddings import embed_to_file

    found = embed_to_file(
        checkpoint,
        videos or [],
        listed_texts(text, texts),
        out,
        level=level,
        normalise=normalise,
        frames=frames,
        decoder=decoder,
        read=[] if texts is None else [texts],
        batch=batch,
        workers=workers,
        timeout_s=timeout,
        say=say,
        progress=progress_bar,
        **session_options(context),
    )
    record = {
        "out": str(found.out),
        "videos": found.videos,
        "texts": found.texts,
        "failed": len(found.failed),
        "level": found.level,
        "normalised": found.normalised,
        **found.session,
        "decoders": list(found.decoders),
    }
    if json:
        failures = [{"video": k, "error": v} for k, v in found.failed.items()]
        print_json("embed", {**record, "info": found.info, "failures": failures})
    else:
        words = {
            "level": ", ".join(dict.fromkeys(found.level.values())),
            "decoders": ", ".join(found.decoders) or None,
        }
        print_facts(record | words)
    if found.failed:
        raise typer.Exit(2)
