"""stan-infer inspect."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stan_infer.cli.options import Checkpoint, Json, Settings, parse_settings


def inspect(
    checkpoint: Checkpoint,
    settings: Settings = None,
    frames: Annotated[int | None, typer.Option(help="T of the GFLOPs (default: config).")] = None,
    json: Json = False,
) -> None:
    """Show what a checkpoint is: architecture, parameters, GFLOPs, what was inferred or ignored."""
    from stan_infer.checkpoint import inspect_checkpoint
    from stan_infer.report import print_facts, print_json, say

    found = inspect_checkpoint(checkpoint, parse_settings(settings))
    record = _record(checkpoint, found, frames)
    if json:
        print_json("inspect", record)
        return
    facts = {k: v for k, v in record.items() if k not in ("config", "notes", "ignored", "hints")}
    print_facts(facts | {f"  {k}": v for k, v in record["config"].items()})
    hints = {k: v for k, v in record["hints"].items() if v not in (None, {}, [])}
    if hints:
        print_facts({f"hint {k}": v for k, v in hints.items()})
    for key, why in record["ignored"].items():
        say(f"ignored: {key} ({why})")
    for note in record["notes"]:
        say(f"note: {note}")


def _record(checkpoint: str, found: Any, frames: int | None) -> dict[str, Any]:
    from math import prod

    from stan_infer.errors import InputError
    from stan_infer.flops import text_flops, video_flops
    from stan_infer.layouts import parameter_shapes

    config = found.layout.config
    t = config.frames if frames is None else frames
    if not 1 <= t <= config.max_frames:
        raise InputError(f"--frames {t} is out of range; allowed are 1 to {config.max_frames}")
    parts = {"trunk": 0, "branch": 0, "text": 0}
    for name, shape in parameter_shapes(config).items():
        part = {"visual": "trunk", "branch": "branch"}.get(name.split(".")[0], "text")
        parts[part] += prod(shape)
    towers = ["video", "text"] if config.has_text else ["video"]
    return {
        "checkpoint": checkpoint,
        "layout": found.layout.name,
        "file_bytes": found.bytes,
        "stored_values": found.dtypes,
        "towers": " and ".join(towers) + ("" if config.has_text else " (text tower missing)"),
        "parameters": sum(parts.values()),
        **{f"parameters_{k}": v for k, v in parts.items()},
        "frames": t,
        "gflop_per_clip": video_flops(config, t) / 1e9,
        "gflop_per_text": text_flops(config, config.context_length) / 1e9,
        "config": config.to_dict(),
        "hints": found.hints,
        "ignored": found.layout.ignored,
        "notes": list(found.layout.notes),
    }
