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
    Precision,
    Provider,
    Settings,
    Threads,
    Timeout,
    Weights,
    Workers,
    open_for,
)


def embed(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    videos: Annotated[list[Path], typer.Argument(help="Videos, or folders of videos.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.npz", help="File to write.")],
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
    from stan_infer.errors import InputError
    from stan_infer.library.embed import (
        EmbedOptions,
        Reading,
        collect,
        embed_videos,
        save_embeddings,
        why_keep,
    )
    from stan_infer.system.atomic import check_file, files_of
    from stan_infer.video.decode_worker import early_workers
    from stan_infer.video.find import list_videos
    from stan_infer.video.spec import ClipSpec

    if out.suffix != ".npz":
        raise InputError(f"--out {out} must end in .npz")
    paths = list_videos(videos)
    sources = [*files_of(checkpoint), *([calibration] if calibration else []), *paths]
    check_file(out, why_keep, sources=sources)
    with early_workers(workers, len(paths)):
        session = open_for(context, yielding=True)
        with progress_bar("embedding", len(paths)) as step:

            def on_reading(reading: Reading) -> None:
                step()
                if reading.error:
                    say(f"error: {reading.error}")

            readings = embed_videos(
                session,
                paths,
                EmbedOptions(batch, workers, timeout),
                spec=ClipSpec.of(session.config, decoder=decoder, frames=frames),
            )
            good, bad = collect(readings, on_reading)
    if not good:
        raise InputError(f"none of the {len(paths)} videos could be read; {out} was not written")
    save_embeddings(out, good, session, checkpoint, sources=sources)
    record = {
        "out": str(out),
        "videos": len(good),
        "failed": len(bad),
        **session.describe(),
        "decoders": sorted({r.clip.decoder for r in good if r.clip}),
    }
    if json:
        failures = [{"video": str(r.path), "error": r.error} for r in bad]
        print_json("embed", {**record, "failures": failures})
    else:
        print_facts(record)
    if bad:
        raise typer.Exit(2)
