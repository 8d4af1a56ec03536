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
    Json,
    Locked,
    Provider,
    Settings,
    Timeout,
    Weights,
    Workers,
    session_options,
)


def embed(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    videos: Annotated[list[Path], typer.Argument(help="Videos, or folders of videos.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.npz", help="File to write.")],
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
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
    """Write the embeddings of videos to a .npz file.

    Videos that cannot be read are named and left out; the exit code is then 2.
    """
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import print_facts, print_json, say
    from stan_infer.library.embeddings import embed_videos

    found = embed_videos(
        checkpoint,
        videos,
        out,
        batch=batch,
        workers=workers,
        decoder=decoder,
        timeout_s=timeout,
        say=say,
        progress=progress_bar,
        **session_options(context),
    )
    record = {
        "out": str(out),
        "videos": len(found.paths),
        "failed": len(found.failed),
        **found.session,
        "decoders": sorted(set(found.decoders)),
    }
    if json:
        failures = [{"video": k, "error": v} for k, v in found.failed.items()]
        print_json("embed", {**record, "failures": failures})
    else:
        print_facts(record)
    if found.failed:
        raise typer.Exit(2)
