"""The command `stan-infer embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stan_infer.cli.embed_library import (
    RetryFailed,
    check_of_library,
    names_library,
    to_library,
)
from stan_infer.cli.given import listed_texts, session_options
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
    Parts,
    Precision,
    Provider,
    Settings,
    Text,
    Texts,
    Threads,
    Timeout,
    Weights,
    Workers,
)


def embed(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    out: Annotated[
        str,  # a Path loses the / at its end
        typer.Option(
            "-o",
            "--out",
            metavar="FILE|LIBRARY",
            help="File to write: .npz, .npy (and .json), .parquet. Or a library: a folder that is"
            " made, or gets what is new; end a name that has a dot with /.",
        ),
    ],
    videos: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="VIDEOS", help="Videos, or folders of videos; for a library also lists (.txt)."
        ),
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
    windows: Parts = None,
    retry_failed: RetryFailed = False,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Write the embeddings of videos and texts.

    Into a file, or those of videos into a library. Videos that cannot be read are named and left
    out; the exit code is then 2. A library goes on where it was stopped, and the next run embeds
    what is new or changed.
    """
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import print_facts, print_json, say
    from stan_infer.errors import InputError
    from stan_infer.library.embeddings import embed_to_file
    from stan_infer.video.windows import parse_windows

    reading: dict[str, Any] = {
        "frames": frames,
        "decoder": decoder,
        "batch": batch,
        "workers": workers,
    }
    reading["timeout_s"] = timeout
    place = Path(out)
    if names_library(out):
        check_of_library(text=text, texts=texts, level=level, normalise=normalise)
        given = {**reading, **session_options(context)}
        to_library(
            checkpoint, videos or [], place,
            parts=windows, retry_failed=retry_failed, json=json, **given,
        )  # fmt: skip
        return
    if retry_failed:
        raise InputError(
            f"--retry-failed is of a library, and --out {out} is a file: give the name of a folder"
        )
    parts = None if windows is None else parse_windows(windows)
    found = embed_to_file(
        checkpoint,
        videos or [],
        listed_texts(text, texts),
        place,
        level=level,
        normalise=normalise,
        windows=parts,
        read=[] if texts is None else [texts],
        **reading,
        say=say,
        progress=progress_bar,
        **session_options(context),
    )
    record = {
        "out": str(found.out),
        "videos": found.videos,
        "rows": found.rows,
        "texts": found.texts,
        "failed": len(found.failed),
        "level": found.level,
        "normalised": found.normalised,
        "windows": None if parts is None else str(parts),
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
