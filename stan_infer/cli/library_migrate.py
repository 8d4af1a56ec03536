"""The command `stan-infer library migrate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stan_infer.cli.given import session_options
from stan_infer.cli.options import (
    AutoRebuild,
    BatchOfLibrary,
    Calibration,
    CheckpointOrFolder,
    DecoderOfLibrary,
    Device,
    Engine,
    FramesOfLibrary,
    Json,
    LibraryFolder,
    Locked,
    Parts,
    Precision,
    Provider,
    Settings,
    Threads,
    Timeout,
    Weights,
    Workers,
)


def migrate(
    context: typer.Context,
    library: LibraryFolder,
    model: CheckpointOrFolder,
    everything: Annotated[
        bool, typer.Option("--all", help="Embed all again, also where the vectors could stay.")
    ] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Leave out files that cannot be read any more.")
    ] = False,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    precision: Precision = None,
    threads: Threads = None,
    frames: FramesOfLibrary = None,
    batch: BatchOfLibrary = None,
    windows: Parts = None,
    workers: Workers = None,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    decoder: DecoderOfLibrary = None,
    timeout: Timeout = 60.0,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Make a library that of another model or stack.

    What must be is embedded again. That is done beside the library, which is searched as before
    until it is replaced in one step. Stopped at any moment, it goes on when it is run again.
    """
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import print_facts, print_json, say
    from stan_infer.library.migrate_library import migrate_library
    from stan_infer.video.windows import parse_windows

    given: dict[str, Any] = {"frames": frames, "batch": batch, "decoder": decoder}
    if windows is not None:
        given["windows"] = parse_windows(windows)
    done = migrate_library(
        library, model, everything=everything, drop=drop, workers=workers, timeout_s=timeout,
        say=say, progress=progress_bar, **{k: v for k, v in given.items() if v is not None},
        **session_options(context),
    )  # fmt: skip
    if json:
        print_json("library-migrate", done.to_dict())
        return
    record = {"library": str(library), "rows": done.rows, "embedded": done.embedded}
    print_facts({**record, "lost": len(done.lost), "stack": done.stack and str(done.stack)})
