"""`stan-infer embed DIR -o LIB`: what the command does where its output is a library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from stan_infer.errors import InputError

RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="In a library: try again what failed before.")
]


def names_library(out: str) -> bool:
    """Whether --out is a library: a folder, a name without a suffix, or one that ends with /."""
    return out.endswith(("/", os.sep)) or Path(out).is_dir() or not Path(out).suffix


def to_library(
    checkpoint: str, videos: list[Path], out: Path, *, parts: str | None, json: bool, **options: Any
) -> None:
    """Embed into the library and print what was done; exit code 2 if a file has no vectors."""
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import print_facts, print_json, say
    from stan_infer.library.embed_library import embed_library
    from stan_infer.video.windows import parse_windows

    if parts is not None:
        options["windows"] = parse_windows(parts)
    found = embed_library(checkpoint, videos, out, say=say, progress=progress_bar, **options)
    record = {
        "out": str(found.out),
        **{k: getattr(found, k) for k in ("rows", "videos", "unchanged", "embedded", "copies")},
        "renamed": found.renamed,
        "gone": found.gone,
        "failed": len(found.failed),
        "workers": found.workers,
        "windows": str(options["windows"]) if parts is not None else None,
        **found.session,
    }
    if json:
        failures = [{"video": k, "error": v} for k, v in found.failed.items()]
        stack = None if found.stack is None else found.stack.to_dict()
        print_json("embed", {**record, "stack": stack, "failures": failures})
    else:
        print_facts(record)
        if found.failed:
            first = next(iter(found.failed.values()))
            say(
                f"{len(found.failed)} of {found.videos} files have no vectors, or not all (the "
                f"first: {first}); --retry-failed tries them again, --json lists them"
            )
    if found.failed:
        raise typer.Exit(2)


def check_of_library(**given: Any) -> None:
    """Raise InputError for options of a file where --out is a library."""
    for name, value in given.items():
        if value:
            raise InputError(
                f"--{name} is of a file of embeddings (.npz, .npy, .parquet), and --out is a "
                "library: it holds a vector of length 1 for each video or part of one"
            )
