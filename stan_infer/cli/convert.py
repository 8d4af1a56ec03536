"""The command `stan-infer convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stan_infer.cli.given import parse_settings
from stan_infer.cli.options import Checkpoint, Json, Locked, Settings, Weights


def convert(
    checkpoint: Checkpoint,
    target: Annotated[Path, typer.Argument(metavar="DST.safetensors", help="File to write.")],
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    json: Json = False,
) -> None:
    """Rewrite a checkpoint as safetensors, with its config.

    Weights stay as they are, bit for bit; the config is metadata.
    """
    from stan_infer.checkpoints.load import convert_counted
    from stan_infer.cli.report import print_facts, print_json

    _, size = convert_counted(checkpoint, target, parse_settings(settings, weights))
    record = {"source": checkpoint, "target": str(target), "bytes": size}
    if json:
        print_json("convert", record)
    else:
        print_facts(record)
