"""The command `stan-infer library verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from stan_infer.cli.given import session_options
from stan_infer.cli.options import (
    AutoRebuild,
    Calibration,
    Device,
    Engine,
    Json,
    LibraryFolder,
    Locked,
    ModelIfAny,
    Precision,
    Provider,
    Settings,
    Threads,
    Timeout,
    Weights,
)


def verify(
    context: typer.Context,
    library: LibraryFolder,
    model: ModelIfAny = None,
    files: Annotated[
        bool, typer.Option("--files", help="Also hash all videos again, to find changed ones.")
    ] = False,
    engine: Engine = None,
    device: Device = None,
    provider: Provider = None,
    precision: Precision = None,
    threads: Threads = None,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    timeout: Timeout = 60.0,
    calibration: Calibration = None,
    auto_rebuild: AutoRebuild = False,
    json: Json = False,
) -> None:
    """Check every vector of a library, and its database.

    A vector is finite, of length 1 and as it was written. With a model also whether it makes the
    vectors of the canary clips. The exit code is 4 if something is wrong.
    Nothing is changed.
    """
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import print_facts, print_json, say
    from stan_infer.errors import InputError
    from stan_infer.library.verify_library import verify_library

    words = {k: v for k, v in session_options(context).items() if v not in (None, False)}
    if model is None and words.keys() - {"threads"}:
        raise InputError(f"{', '.join(sorted(words))}: these are of a model; give one")
    found = verify_library(
        library, model, files=files, progress=progress_bar, timeout_s=timeout,
        **(words if model is not None else {}),
    )  # fmt: skip
    if json:
        print_json("library-verify", found.to_dict())
    else:
        record = {"library": str(library), "vectors": found.vectors, "problems": found.count}
        record |= {"files": found.files} if files else {}
        stack = {} if found.stack is None else {"stack": str(found.stack)}
        print_facts({**record, **stack})
    for note in found.notes:
        say(f"note: {note}")
    for problem in found.problems:
        say(f"error: {problem}")
    found.check()
